"""Placement of arrays on a mesh: weights and optimiser state by rules, batches shard by shard.

Weights are cut along both axes: ``model`` cuts heads and MLP columns (each device computes its part), ``data`` cuts the
other dimension (each device stores its part, XLA gathers it when a layer needs it).

A batch on a mesh has a leading axis of *shards*, one for each device along ``data``. A shard holds whole sequences, so
that attention never crosses devices:

    one device:  input_ids [T]      x [T, D]
    mesh:        input_ids [S, T]   x [S, T, D], cut along the first axis
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
AnyMesh = Mesh | AbstractMesh  # of devices, or, for shapes alone, of a number of them
Rules = Sequence[tuple[str, P]]

SHARED = "shared"  # see ``on_each_shard``

# The first pattern that matches a name counts, and there must be one.
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
    """A key of a dict, an attribute of a named tuple, or an index."""
    return str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))


def shardings(tree: Any, mesh: AnyMesh, rules: Rules = RULES) -> Any:
    """A tree of ``NamedSharding`` like ``tree`` (of arrays or shapes). A dimension that an axis does not divide is
    not cut along it.

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
    """Parameters or a state of training on a mesh, cut by ``RULES``."""
    return tree if mesh is None else put_tree(tree, shardings(tree, mesh))


def keep_placed(tree: Any, mesh: AnyMesh | None) -> Any:
    """Inside a jitted function: its outputs are cut as ``place`` cuts its inputs, so that the next call with them is
    the same program."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def put_shards(parts: Sequence[T], mesh: AnyMesh | None) -> T:
    """Arrays of each shard of a batch, all of the same shapes, stacked on the mesh; without one those of the only
    shard as they are."""
    if mesh is None:
        return parts[0]
    return place_shards(jax.tree.map(lambda *leaves: np.stack(leaves), *parts), mesh)


def place_shards(tree: T, mesh: AnyMesh | None) -> T:
    """Arrays whose first axis is cut along the shards of a mesh; without one as they are."""
    return tree if mesh is None else put_tree(tree, NamedSharding(mesh, P(DATA)))


def keep_shards(x: jax.Array, mesh: AnyMesh | None, *axes: str | None) -> jax.Array:
    """Inside a jitted function: x [S, ...] stays cut along its shards, and its other dimensions as ``axes`` say (by
    default not at all)."""
    return x if mesh is None else cut_along(x, mesh, DATA, *axes)


def cut_along(x: jax.Array, mesh: AnyMesh, *axes: str | None) -> jax.Array:
    """Inside a jitted function: x is cut along ``axes``; other dimensions, and those that do not divide, are whole."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _dividing(x.shape, axes, mesh)))


def _dividing(shape: Sequence[int], axes: Iterable[str | None], mesh: AnyMesh) -> P:
    """The axes that divide their dimensions, as XLA writes the placement of its outputs: without axes of one device,
    and without None at the end."""
    kept = [
        axis if axis is not None and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for size, axis in zip(shape, axes, strict=False)
    ]
    while kept and kept[-1] is None:
        kept.pop()
    return P(*kept)


def on_each_shard(
    function: Callable[..., Any], mesh: AnyMesh | None, specs: Sequence[Any], out: Any
) -> Callable[..., Any]:
    """``function`` of the arrays of one shard, run on each device by itself.

    Args:
      function: of arrays without the axis of shards.
      specs: for each argument, or each of its leaves, how its dimensions behind the shards are cut; ``SHARED`` for an
        array without shards, which all devices have whole.
      out: the same of its result.

    Returns:
      A function of arrays with the axis of shards; ``function`` itself without a mesh.
    """
    if mesh is None:
        return function

    def of_device(*args: Any) -> Any:
        own = [
            jax.tree.map(lambda leaf, spec: leaf if spec is SHARED else leaf[0], arg, _spread(spec, arg))
            for arg, spec in zip(args, specs, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*own))

    def behind_shards(spec: Any) -> Any:
        return jax.tree.map(lambda one: P() if one is SHARED else P(DATA, *one), spec, is_leaf=_is_spec)

    in_specs = tuple(behind_shards(spec) for spec in specs)
    return jax.shard_map(of_device, mesh=mesh, in_specs=in_specs, out_specs=behind_shards(out), check_vma=False)


def _is_spec(spec: Any) -> bool:
    return isinstance(spec, P) or spec is SHARED


def _spread(spec: Any, arg: Any) -> Any:
    """A spec for every leaf of an argument: its own, or the one of the whole."""
    return jax.tree.map(lambda _: spec, arg) if _is_spec(spec) else spec


def head_axis(mesh: AnyMesh | None, heads: int) -> str | None:
    """The axis along which so many heads are cut; None where they do not divide."""
    return MODEL if mesh is not None and heads % mesh.shape[MODEL] == 0 else None


def zeros(shape: Sequence[int], dtype: Any, mesh: AnyMesh | None, axes: Sequence[str | None]) -> jax.Array:
    """Zeros; on a mesh cut along ``axes``, and never whole on one device."""
    if mesh is None:
        return jnp.zeros(shape, dtype)
    placed = NamedSharding(mesh, _dividing(shape, axes, mesh))
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=placed)()


def replicate(tree: Any, mesh: AnyMesh | None) -> Any:
    """A tree that every device of the mesh has whole.

    Also for a mesh of one device: outputs of a jitted step are committed to devices, and with uncommitted inputs the
    same step would be compiled again.
    """
    return tree if mesh is None else put_tree(tree, NamedSharding(mesh, P()))
