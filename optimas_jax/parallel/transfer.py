"""Arrays from the host to devices and back, where a mesh may span several processes.

With a single process these are ``jax.device_put`` and ``jax.device_get``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

T = TypeVar("T")


def put(value: Any, sharding: Sharding) -> jax.Array:
    """An array on the devices of a sharding. With several processes all of them have the value, and each fills its own
    devices; that the values are equal is not checked."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return _moved(sharding)(value)[0]
    host = np.asarray(value)
    return put_read(lambda index: host[index], host.shape, sharding)


def put_read(read: Callable[[Any], np.ndarray], shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
    """An array that is read by index, on the devices of a sharding. Each process reads only the parts that its own
    devices hold, every part once."""
    if sharding.is_fully_addressable:
        return jax.device_put(read(...), sharding)
    parts: dict[str, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = read(index)
        return parts[str(index)]

    return jax.make_array_from_callback(shape, sharding, part)


def fetch(tree: Any) -> Any:
    """The arrays of a tree as numpy arrays, whole in every process. With several processes all must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    leaves, treedef = jax.tree.flatten(tree)
    split = [
        index
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
    ]
    if split:
        replicated = NamedSharding(leaves[split[0]].sharding.mesh, P())
        for index, leaf in zip(split, _moved(replicated)(*(leaves[index] for index in split)), strict=True):
            leaves[index] = leaf
    return jax.device_get(jax.tree.unflatten(treedef, leaves))


@lru_cache(maxsize=64)
def _moved(sharding: Sharding) -> Callable[..., tuple[jax.Array, ...]]:
    """A program that returns its arrays on the devices of a sharding."""
    return jax.jit(lambda *arrays: arrays, out_shardings=sharding)


def put_tree(tree: T, placed: Any) -> T:
    """A tree of arrays on the devices of a mesh; ``placed``: one sharding for all arrays, or a tree of shardings."""
    leaves = jax.tree.leaves(placed)
    if not leaves or leaves[0].is_fully_addressable:
        return jax.device_put(tree, placed)
    if isinstance(placed, Sharding):
        return jax.tree.map(lambda leaf: put(leaf, placed), tree)
    return jax.tree.map(put, tree, placed)
