"""Sequences of different lengths laid end to end: the batch that every pass over whole sequences computes on.

Sizes are rounded up to buckets, so that the number of compilations is bounded; what a sequence gets does not depend on
them (``models.attention``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from optimas_jax.models.attention import BLOCK, TILE, Spans, Tiles
from optimas_jax.parallel.sharding import place_rows


@dataclasses.dataclass(frozen=True)
class FlatSequence:
    """One sequence to lay out.

    Attributes:
      ids: its tokens, at least one.
      blocks: the stored blocks of the keys that come before the first of ``ids``.
      positions: RoPE positions of ``ids``; default: counting from ``start``.
      parts: part of a group that each token belongs to (``Tiles.part``); default: a plain sequence.
    """

    ids: Sequence[int]
    blocks: Sequence[int] = ()
    positions: Sequence[int] | None = None
    parts: Sequence[int] | None = None

    @property
    def start(self) -> int:
        """Position of the first of ``ids``."""
        return len(self.blocks) * BLOCK

    @property
    def length(self) -> int:
        """Keys that its last token sees, at most."""
        return self.start + len(self.ids)


class Flat(NamedTuple):
    """A flat batch: ids [T] and positions [T] int32, and where its sequences are."""

    input_ids: Any
    positions: Any
    layout: Tiles | Spans


def bucket(size: int, least: int, per_doubling: int = 2) -> int:
    """Smallest bucket that holds ``size``: multiples of ``least``, or coarser where that still gives
    ``per_doubling`` buckets between powers of two."""
    step = max(least, (1 << max(size - 1, 0).bit_length()) // (2 * per_doubling))
    return max(-(-size // step) * step, least)


def flatten(
    sequences: Sequence[FlatSequence],
    *,
    pad_id: int,
    tiled: bool,
    stored: int = 0,
    slots: int = 0,
    tokens: int = 0,
    like: Sequence[FlatSequence] = (),
) -> Flat:
    """Lays sequences end to end.

    Args:
      sequences: at least one; all with ``parts`` or none.
      pad_id: fills what is left.
      tiled: ``Tiles`` or ``Spans``.
      stored: P, positions that may have been stored.
      slots: most positions that are stored of a sequence; 0 for as many as there are. A size of ``Tiles``.
      tokens: T, rounded up to a bucket; default: what there is.
      like: other sequences that this layout has room for (as many, each as long): with the same ``tokens``, layouts of
        the same shapes.

    Returns:
      numpy arrays.
    """
    # Padding tokens cost as much as real ones. A program costs about as much as 300 tokens.
    tokens = bucket(tokens or sum(len(one.ids) for one in sequences), TILE, 4)
    ids, positions = np.full(tokens, pad_id, np.int32), np.zeros(tokens, np.int32)
    begins = np.cumsum([0, *(len(one.ids) for one in sequences)])
    for begin, one in zip(begins, sequences, strict=False):
        ids[begin : begin + len(one.ids)] = one.ids
        positions[begin : begin + len(one.ids)] = (
            np.arange(one.start, one.length) if one.positions is None else one.positions
        )
    sizes = _Sizes(
        max(len(sequences), len(like)),
        max(len(one.ids) for one in (*sequences, *like)),
        max(one.length for one in (*sequences, *like)),
    )
    if tiled:
        layout = _tiles(sequences, begins, tokens, slots, sizes)
    else:
        layout = _spans(sequences, begins, tokens, stored, sizes)
    return Flat(ids, positions, layout)


class _Sizes(NamedTuple):
    """Sequences, and the most tokens and keys of one, that a layout has room for."""

    rows: int
    queries: int
    keys: int


def _tiles(sequences: Sequence[FlatSequence], begins: np.ndarray, tokens: int, slots: int, sizes: _Sizes) -> Tiles:
    rows = bucket(sizes.rows, 32)
    sequence, place, part = np.full(tokens, -1, np.int32), np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    starts = np.zeros(rows, np.int32)
    width = -(-max(slots, *(one.start for one in sequences), 1) // TILE) * TILE // BLOCK
    blocks = np.zeros((rows, width), np.int32)
    for row, one in enumerate(sequences):
        own = slice(begins[row], begins[row + 1])
        sequence[own] = row
        place[own] = np.arange(one.start, one.length)
        part[own] = 0 if one.parts is None else one.parts
        starts[row] = one.start
        blocks[row, : len(one.blocks)] = one.blocks
    segments: list[tuple[int, int, int, int]] = []
    bounds = [0]
    for begin in range(0, tokens, TILE):
        members = sorted({int(row) for row in sequence[begin : begin + TILE]} - {-1})
        shared = _shared_blocks([sequences[row] for row in members]) * BLOCK // TILE if len(members) > 1 else 0
        if shared:
            segments.append((members[0], 0, shared, 1))
        for row in members:
            inside = slice(max(begin, begins[row]), min(begin + TILE, begins[row + 1]))
            segments += [
                (row, *tiles, 0) for tiles in _seen_tiles(place[inside], part[begins[row] : inside.stop], shared)
            ]
        bounds.append(len(segments))
    table = np.zeros((2 * (tokens // TILE + rows), 4), np.int32)
    table[: len(segments)] = segments
    firsts = np.zeros(rows, np.int32)
    firsts[: len(sequences)] = begins[:-1]
    return Tiles(sequence, place, part, firsts, starts, blocks, table, np.asarray(bounds, np.int32))


def _seen_tiles(places: np.ndarray, parts: np.ndarray, shared: int) -> list[tuple[int, int]]:
    """Ranges of key tiles that some tokens of a sequence see.

    Args:
      places: of the tokens, counting up.
      parts: of all tokens of the batch's sequence up to the last of them.
      shared: tiles at the start that are seen to already.
    """
    stop = int(places[-1]) // TILE + 1
    first_part = parts[-len(places)]
    if not first_part:
        return [(shared, stop)]
    # Candidates see the prefix and themselves, not each other.
    prefix_stop = -(-int((parts == 0).sum()) // TILE)
    own_first = int(np.argmax(parts == first_part)) // TILE
    return [(0, prefix_stop), (own_first, stop)] if own_first > prefix_stop else [(0, stop)]


def _shared_blocks(sequences: Sequence[FlatSequence]) -> int:
    """How many stored blocks all of them begin with."""
    columns = list(zip(*(one.blocks for one in sequences), strict=False))
    return next((count for count, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _spans(sequences: Sequence[FlatSequence], begins: np.ndarray, tokens: int, stored: int, sizes: _Sizes) -> Spans:
    # Padding in rows costs memory bandwidth only, and training steps take long to compile: few shapes.
    rows = bucket(sizes.rows, 8, 1)
    slots = bucket(sizes.keys, 128, 1)
    # Queries and keys are the same tokens where nothing is stored.
    width = bucket(sizes.queries, TILE, 1) if stored else slots
    inverse, starts = np.zeros(tokens, np.int32), np.zeros(rows, np.int32)
    queries, keys = np.full((rows, width), tokens, np.int32), np.full((rows, slots), stored + tokens, np.int32)
    parts = np.full((rows, slots), -1, np.int32)
    for row, one in enumerate(sequences):
        count = len(one.ids)
        places = np.arange(begins[row], begins[row] + count)
        inverse[places] = row * width + np.arange(count)
        queries[row, :count] = places
        keys[row, : one.start] = stored_places(one.blocks)
        keys[row, one.start : one.length] = stored + places
        starts[row] = one.start
        if one.parts is not None:
            parts[row, :count] = one.parts
    return Spans(queries, keys, inverse, starts, None if sequences[0].parts is None else parts)


def stored_places(blocks: Sequence[int]) -> np.ndarray:
    """Places [n * BLOCK] int32 of the positions of stored blocks [n]."""
    return (np.asarray(blocks, np.int32)[:, None] * BLOCK + np.arange(BLOCK, dtype=np.int32)).reshape(-1)


def place_flat(flat: Flat, mesh: Mesh | None) -> Flat:
    """Puts a flat batch on the mesh: tokens are cut along ``data``, where its sequences lie is copied."""
    tokens = ("input_ids", "positions", "sequence", "place", "part", "inverse")
    layout = {name: part for name, part in flat.layout._asdict().items() if part is not None}
    arrays = {"input_ids": flat.input_ids, "positions": flat.positions, **layout}
    placed = place_rows(arrays, mesh, tuple(name for name in tokens if name in arrays))
    layout = flat.layout._replace(**{name: placed[name] for name in layout})
    return Flat(placed["input_ids"], placed["positions"], layout)
