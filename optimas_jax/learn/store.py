"""Checkpoints of training calls, named by the digest of their inputs.

A training call with the same inputs has the same name, so it is not repeated. A checkpoint is complete when it has its
metadata file, which is written last and in one step.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from optimas_jax.core.types import StopRun
from optimas_jax.models.lora import Params
from optimas_jax.parallel.transfer import fetch, put

_ARRAYS = "arrays.safetensors"


class CheckpointError(StopRun):
    """A checkpoint that cannot be written or read."""


class CheckpointStore:
    """Checkpoints in one folder: ``<name>/arrays.safetensors`` and ``<name>/metadata.json``."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()

    def _folder_of(self, name: str) -> Path:
        """Raises ``CheckpointError`` for a name that leads elsewhere: names may come from a file or a client."""
        if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
            raise CheckpointError(f"no checkpoint can be called {name!r}")
        return self.folder / name

    def metadata(self, name: str) -> dict[str, Any] | None:
        """The metadata of a checkpoint, or None if there is no complete checkpoint of that name."""
        path = self._folder_of(name) / "metadata.json"
        if not path.is_file() or not (path.parent / _ARRAYS).is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not even text
            raise CheckpointError(
                f"{path} is damaged ({error}): delete {path.parent}, it will be trained again"
            ) from error

    def save(self, name: str, params: Params, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint; an incomplete one of the same name is replaced."""
        path = self._folder_of(name)
        try:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
            arrays = {key: np.ascontiguousarray(array) for key, array in _flatten(fetch(params)).items()}
            save_file(arrays, path / _ARRAYS)
            partial = path / "metadata.json.partial"
            partial.write_text(json.dumps(metadata, indent=1), encoding="utf-8")
            partial.replace(path / "metadata.json")
        except (OSError, safetensors.SafetensorError) as error:  # the latter for a disk that fills up under the arrays
            raise CheckpointError(
                f"cannot write the checkpoint {path} ({error}): make room and run the same command again"
            ) from error

    def load(self, name: str, like: Params, sharding: jax.sharding.Sharding | None = None) -> Params:
        """Reads arrays into the structure of ``like``.

        Args:
          name: of an existing checkpoint.
          like: tree with the expected shapes.
          sharding: of the loaded arrays, independent of the mesh that they were saved from; None for the default
            device.
        """
        path = self._folder_of(name) / _ARRAYS
        try:
            stored = load_file(path)
            shapes = {key: tuple(leaf.shape) for key, leaf in _flatten(like).items()}
            found = {key: array.shape for key, array in stored.items()}
            if found != shapes:
                unlike = sorted(key for key in {*found, *shapes} if found.get(key) != shapes.get(key))
                raise ValueError(f"it has other arrays or shapes: {', '.join(unlike[:5])}")
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"cannot read the checkpoint {path} ({type(error).__name__}: {error}). Delete {path.parent}, it will "
                "be trained again"
            ) from error
        move = jnp.asarray if sharding is None else partial(put, sharding=sharding)
        return _unflatten({key: move(array) for key, array in stored.items()}, like)


def _flatten(params: Params) -> dict[str, jax.Array]:
    """One level, with names like ``lora/layers/3/q/lora_a``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in leaves}


def _unflatten(flat: dict[str, jax.Array], like: Params) -> Params:
    names = _flatten(like)
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])
