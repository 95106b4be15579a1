"""Placement of arrays on a mesh: weights and optimiser state by rules, batches shard by shard.

Weights are split along both axes: ``model`` splits heads and MLP columns (each device computes its part), ``data``
splits the other dimension (each device stores its part, and XLA gathers it when a layer needs it).

A batch on a mesh has a leading axis of *shards*, one for each device along ``data``. A shard holds whole sequences, so
that attention never crosses devices:

    one device:  input_ids [T]      x [T, D]
    mesh:        input_ids [S, T]   x [S, T, D], split along the first axis
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from optimas_jax.parallel.mesh import DATA, MODEL
from optimas_jax.parallel.transfer import put_tree

T = TypeVar("T")
AnyMesh = Mesh | AbstractMesh  # a mesh of devices, or, for shapes alone, of a number of devices
Rules = Sequence[tuple[str, P]]

SHARED = "shared"  # see ``on_each_shard``

# The first pattern that matches a name counts. Every name must match one.
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
    (r"(^|/)(head|value)/kernel$", P()),  # [D, C]: tiny
    (r"(^|/)(step|count)$", P()),  # of the optimiser
)


def param_names(tree: Any) -> list[str]:
    """``layers/3/q/weight`` and so on, in the order of ``jax.tree.leaves``."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return ["/".join(_key_name(key) for key in path) for path, _ in paths]


def _key_name(key: Any) -> str:
    """Name of an element of a path: key of a dict, attribute of a named tuple, or index."""
    return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))


def shardings(tree: Any, mesh: AnyMesh, rules: Rules = RULES) -> Any:
    """A tree of ``NamedSharding`` like ``tree`` (of arrays or shapes). A dimension that an axis does not divide is
    not split along it.

    Raises:
      ValueError: naming every parameter that no rule matches.
    """
    leaves = jax.tree.leaves(tree)
    nameless, result = [], []
    for name, leaf in zip(param_names(tree), leaves, strict=True):
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None:
            nameless.append(name)
            continue
        result.append(NamedSharding(mesh, _dividing(leaf.shape, tuple(spec), mesh)))
    if nameless:
        raise ValueError(f"no rule says how to place {', '.join(nameless)} on a mesh")
    return jax.tree.unflatten(jax.tree.structure(tree), result)


def place(tree: Any, mesh: AnyMesh | None) -> Any:
    """Parameters or a state of training on a mesh, split by ``RULES``; unchanged without a mesh."""
    return tree if mesh is None else put_tree(tree, shardings(tree, mesh))


def keep_placed(tree: Any, mesh: AnyMesh | None) -> Any:
    """Inside a jitted function: makes its outputs split as ``place`` splits its inputs, so that the next call with them
    uses the same program."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def put_shards(parts: Sequence[T], mesh: AnyMesh | None) -> T:
    """Arrays of each shard of a batch, all of the same shapes, stacked on the mesh; without a mesh the arrays of the
    only shard, unchanged."""
    if mesh is None:
        return parts[0]
    return place_shards(jax.tree.map(lambda *leaves: np.stack(leaves), *parts), mesh)


def place_shards(tree: T, mesh: AnyMesh | None) -> T:
    """Arrays with their first axis split along the shards of a mesh; unchanged without a mesh."""
    return tree if mesh is None else put_tree(tree, NamedSharding(mesh, P(DATA)))


def keep_shards(x: jax.Array, mesh: AnyMesh | None, *axes: str | None) -> jax.Array:
    """Inside a jitted function: keeps x [S, ...] split along its shards, and its other dimensions along ``axes`` (by
    default not at all)."""
    return x if mesh is None else cut_along(x, mesh, DATA, *axes)


def cut_along(x: jax.Array, mesh: AnyMesh, *axes: str | None) -> jax.Array:
    """Inside a jitted function: splits x along ``axes``; other dimensions, and indivisible ones, stay whole."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _dividing(x.shape, axes, mesh)))


def _dividing(shape: Sequence[int], axes: Iterable[str | None], mesh: AnyMesh) -> P:
    """The axes that divide their dimensions, in the form that XLA uses for the placement of its outputs: without axes
    of one device, and without None at the end."""
    dividing = [
        axis if axis is not None and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for size, axis in zip(shape, axes, strict=False)
    ]
    while dividing and dividing[-1] is None:
        dividing.pop()
    return P(*dividing)


def on_each_shard(
    function: Callable[..., Any], mesh: AnyMesh | None, specs: Sequence[Any], out: Any
) -> Callable[..., Any]:
    """Makes a function of one shard run on each device by itself.

    Args:
      function: of arrays without the axis of shards.
      specs: for each argument, or each of its leaves, how the dimensions after the axis of shards are split; ``SHARED``
        for an array without shards, of which every device has the whole.
      out: the same for its result.

    Returns:
      A function of arrays with the axis of shards; ``function`` itself without a mesh.
    """
    if mesh is None:
        return function

    def of_device(*args: Any) -> Any:
        shard_args = [
            jax.tree.map(lambda leaf, spec: leaf if spec is SHARED else leaf[0], arg, _spread(spec, arg))
            for arg, spec in zip(args, specs, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*shard_args))

    def behind_shards(spec: Any) -> Any:
        return jax.tree.map(
            lambda leaf_spec: P() if leaf_spec is SHARED else P(DATA, *leaf_spec), spec, is_leaf=_is_spec
        )

    in_specs = tuple(behind_shards(spec) for spec in specs)
    return jax.shard_map(of_device, mesh=mesh, in_specs=in_specs, out_specs=behind_shards(out), check_vma=False)


def _is_spec(spec: Any) -> bool:
    return isinstance(spec, P) or spec is SHARED


def _spread(spec: Any, arg: Any) -> Any:
    """A spec for every leaf of an argument: its own, or the spec of the whole argument."""
    return jax.tree.map(lambda _: spec, arg) if _is_spec(spec) else spec


def head_axis(mesh: AnyMesh | None, heads: int) -> str | None:
    """The axis along which so many heads are split; None if it does not divide them."""
    return MODEL if mesh is not None and heads % mesh.shape[MODEL] == 0 else None


def zeros(shape: Sequence[int], dtype: Any, mesh: AnyMesh | None, axes: Sequence[str | None]) -> jax.Array:
    """Zeros; on a mesh split along ``axes``, and never whole on one device."""
    if mesh is None:
        return jnp.zeros(shape, dtype)
    placed = NamedSharding(mesh, _dividing(shape, axes, mesh))
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=placed)()


def replicate(tree: Any, mesh: AnyMesh | None) -> Any:
    """A tree of which every device of the mesh has a whole copy.

    Needed for a mesh of one device, too: outputs of a jitted step are committed to devices, and with uncommitted inputs
    the same step would be compiled again.
    """
    return tree if mesh is None else put_tree(tree, NamedSharding(mesh, P()))
