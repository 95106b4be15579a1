"""Checkpoints of training calls, named by the digest of their inputs.

A training call with the same inputs has the same name, so it is not repeated. A checkpoint is complete when it has its
metadata file, which is written last and in one step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from optimas_jax.core.text.json_text import check_form, parse_json
from optimas_jax.core.types import StopRun
from optimas_jax.models.lora import Params
from optimas_jax.parallel.transfer import fetch, put

_ARRAYS = "arrays"


class CheckpointError(StopRun):
    """A checkpoint that cannot be written or read."""


class CheckpointStore:
    """Checkpoints in one folder: ``<name>/arrays`` (Orbax) and ``<name>/metadata.json``."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()

    def _folder_of(self, name: str) -> Path:
        """The folder of a checkpoint; raises ``CheckpointError`` for a name that leads out of the store, since names
        may come from a file or a client."""
        if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
            raise CheckpointError(f"no checkpoint can be called {name!r}")
        return self.folder / name

    def metadata(self, name: str, form: Any = dict[str, Any]) -> dict[str, Any] | None:
        """The metadata of a checkpoint, or None if there is no complete checkpoint of that name.

        Args:
          form: of the metadata (``core.text.json_text.check_form``).

        Raises:
          CheckpointError: the metadata are damaged.
        """
        path = self._folder_of(name) / "metadata.json"
        if not path.exists():
            return None
        try:
            data = parse_json(path.read_bytes())
            check_form(form, data)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}): delete {path.parent}, it will be trained again"
            ) from error
        return data

    def save(self, name: str, params: Params, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint; an incomplete one of the same name is replaced."""
        path = self._folder_of(name)
        try:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
            arrays = {key: np.asarray(array) for key, array in _flatten(fetch(params)).items()}
            _checkpointer().save(path / _ARRAYS, args=ocp.args.PyTreeSave(arrays))
            partial = path / "metadata.json.partial"
            partial.write_text(json.dumps(metadata, indent=1), encoding="utf-8")
            partial.replace(path / "metadata.json")
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
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
            stored = _read(path, _flatten(like))
            shapes = {key: tuple(leaf.shape) for key, leaf in _flatten(like).items()}
            stored_shapes = {key: array.shape for key, array in stored.items()}
            if stored_shapes != shapes:
                different = sorted(
                    key for key in {*stored_shapes, *shapes} if stored_shapes.get(key) != shapes.get(key)
                )
                raise ValueError(f"it has other arrays or shapes: {', '.join(different[:5])}")
        except Exception as error:
            raise CheckpointError(
                f"cannot read the checkpoint {path} ({type(error).__name__}: {error}). Delete {path.parent}, it will "
                "be trained again"
            ) from error
        move = jnp.asarray if sharding is None else partial(put, sharding=sharding)
        return _unflatten({key: move(array) for key, array in stored.items()}, like)


def _checkpointer() -> ocp.Checkpointer:
    """Orbax's checkpointer for process 0, which alone has the folder: Orbax must not wait for the other processes."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="host")
    options = alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _read(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint, on the host."""
    state_folder = path / "state"  # written by Orbax's other interface, which earlier runs used
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    return _checkpointer().restore(
        state_folder if state_folder.is_dir() else path, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
    )


def _flatten(params: Params) -> dict[str, jax.Array]:
    """Parameters as a dict of one level, with names like ``lora/layers/3/q/lora_a``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in leaves}


def _unflatten(flat: dict[str, jax.Array], like: Params) -> Params:
    names = _flatten(like)
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])
