"""Sharding of parameters, by an ordered list of (regex, PartitionSpec): the first match counts, and there must be one.

Weights are sharded along both axes: ``model`` shards heads and MLP columns (each device computes its part), ``data``
shards the other dimension (each device stores its part, XLA gathers it when a layer needs it).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optimas_jax.parallel.mesh import DATA, MODEL

Rules = Sequence[tuple[str, P]]

RULES: Rules = (
    (r"(^|/)(embed|lm_head)$", P(MODEL, DATA)),  # [V, D]
    (r"/(q|k|v|gate|up)/weight$", P(MODEL, DATA)),  # [heads or F, D]
    (r"/(o|down)/weight$", P(DATA, MODEL)),  # [D, heads or F]
    (r"/(q|k|v)/bias$", P(MODEL)),
    (r"/(q|k|v|gate|up)/lora_a$", P(DATA, None)),  # [D, R]
    (r"/(q|k|v|gate|up)/lora_b$", P(None, MODEL)),  # [R, heads or F]
    (r"/(o|down)/lora_a$", P(MODEL, None)),
    (r"/(o|down)/lora_b$", P(None, DATA)),
    (r"(norm|_norm)/scale$", P()),
    (r"^head/kernel$", P()),  # [D, C]: tiny
)


def param_names(tree: Any) -> list[str]:
    """``layers/3/q/weight`` and so on, in the order of ``jax.tree.leaves``."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return ["/".join(str(part.key) for part in path) for path, _ in paths]


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A tree of ``NamedSharding`` like ``tree`` (of arrays or shapes).

    Raises:
      ValueError: naming every parameter that no rule matches, or that a rule would cut into unequal parts.
    """
    leaves = jax.tree.leaves(tree)
    problems, result = [], []
    for name, leaf in zip(param_names(tree), leaves, strict=True):
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None:
            problems.append(f"{name}: no rule matches")
            continue
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                problems.append(f"{name}: {size} is not a multiple of {mesh.shape[axis]} ({axis})")
        result.append(NamedSharding(mesh, spec))
    if problems:
        raise ValueError("parameters cannot be placed on this mesh:\n  " + "\n  ".join(problems))
    return jax.tree.unflatten(jax.tree.structure(tree), result)


def place_rows(arrays: dict[str, np.ndarray], mesh: Mesh | None, split: Sequence[str]) -> dict[str, Any]:
    """Puts a batch on the mesh: the arrays named in ``split`` are sharded along ``data``, the others are replicated.

    Args:
      mesh: None for the default device.

    Raises:
      ValueError: if the rows do not divide among the devices.
    """
    if mesh is None or mesh.size == 1:
        return dict(arrays)
    for name in split:
        if len(arrays[name]) % mesh.shape[DATA]:
            raise ValueError(
                f"{len(arrays[name])} rows ({name}) do not divide among {mesh.shape[DATA]} devices along {DATA!r}: "
                "choose a multiple"
            )
    return {
        name: jax.device_put(value, NamedSharding(mesh, P(DATA) if name in split else P()))
        for name, value in arrays.items()
    }


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """A tree replicated on every device of the mesh.

    Also for a mesh of one device: the outputs of a jitted step are committed to devices, and with uncommitted inputs
      the
    same step would be compiled again.
    """
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, P()))
