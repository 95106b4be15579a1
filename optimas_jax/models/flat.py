"""Sequences of different lengths laid end to end: the layout that every pass over whole sequences computes on.

Sizes are rounded up to buckets, so that the number of compilations is bounded; what a sequence gets does not depend on
them (``models.attention``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from optimas_jax.models.attention import Spans
from optimas_jax.parallel.sharding import place_rows


@dataclasses.dataclass(frozen=True)
class FlatSequence:
    """One sequence to lay out.

    Attributes:
      ids: its tokens, at least one.
      stored_at: places, among the stored keys, of the keys that come before the first of ``ids``.
      positions: RoPE positions of ``ids``; default: counting from ``start``.
      branches: part of a group that each token belongs to (``Spans.branches``); default: a plain sequence.
    """

    ids: Sequence[int]
    stored_at: Sequence[int] | np.ndarray = ()
    positions: Sequence[int] | None = None
    branches: Sequence[int] | None = None

    @property
    def start(self) -> int:
        """Position of the first of ``ids``."""
        return len(self.stored_at)

    @property
    def length(self) -> int:
        """Keys that its last token sees, at most."""
        return self.start + len(self.ids)


class Flat(NamedTuple):
    """A flat batch: ids [T] and positions [T] int32, and where its sequences are."""

    input_ids: Any
    positions: Any
    spans: Spans


def bucket(size: int, least: int, per_doubling: int = 2) -> int:
    """Smallest bucket that holds ``size``: multiples of ``least``, or coarser where that still gives
    ``per_doubling`` buckets between powers of two."""
    step = max(least, (1 << max(size - 1, 0).bit_length()) // (2 * per_doubling))
    return max(-(-size // step) * step, least)


def flatten(
    sequences: Sequence[FlatSequence], *, stored: int, pad_id: int, tokens: int = 0, coarse: bool = False
) -> Flat:
    """Lays sequences end to end.

    Args:
      sequences: at least one; all with ``branches`` or none.
      stored: P, how many stored keys they may refer to.
      pad_id: fills what is left.
      tokens: T, default the bucket of what there is.
      coarse: round sizes up to few shapes, for programs that take long to compile.

    Returns:
      numpy arrays.
    """
    total = sum(len(one.ids) for one in sequences)
    # Padding tokens cost as much as real ones; padding in attention costs little, and every shape costs memory.
    tokens = tokens or bucket(total, 128 if total > 128 else 64)
    sizes = (8, 16, 32) if coarse else (1, 4, 16, 32)
    rows = next((size for size in sizes if size >= len(sequences)), bucket(len(sequences), 32))
    slots = bucket(max(one.length for one in sequences), 256 if coarse else 128, 1)
    # Queries and keys are the same tokens where nothing is stored.
    width = bucket(max(len(one.ids) for one in sequences), 32, 1) if stored else slots
    grouped = sequences[0].branches is not None
    ids, positions, inverse = np.full(tokens, pad_id, np.int32), np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    queries = np.full((rows, width), tokens, np.int32)
    keys = np.full((rows, slots), stored + tokens, np.int32)
    starts, branches = np.zeros(rows, np.int32), np.full((rows, slots), -1, np.int32)
    begin = 0
    for row, one in enumerate(sequences):
        count = len(one.ids)
        places = np.arange(begin, begin + count)
        ids[places] = one.ids
        positions[places] = np.arange(one.start, one.length) if one.positions is None else one.positions
        inverse[places] = row * width + np.arange(count)
        queries[row, :count] = places
        keys[row, : one.start] = one.stored_at
        keys[row, one.start : one.length] = stored + places
        starts[row] = one.start
        if one.branches is not None:
            branches[row, :count] = one.branches
        begin += count
    return Flat(ids, positions, Spans(queries, keys, inverse, starts, branches if grouped else None))


def place_flat(flat: Flat, mesh: Mesh | None) -> Flat:
    """Puts a flat batch on the mesh: tokens are cut along ``data``, the places of its sequences are copied."""
    arrays = {"input_ids": flat.input_ids, "positions": flat.positions, "inverse": flat.spans.inverse}
    spans = {name: part for name, part in flat.spans._asdict().items() if name != "inverse" and part is not None}
    placed = place_rows({**arrays, **spans}, mesh, tuple(arrays))
    return Flat(
        placed["input_ids"],
        placed["positions"],
        Spans(**{name: placed.get(name) for name in Spans._fields}),
    )
