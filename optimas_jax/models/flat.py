"""Flat batches: sequences of different lengths laid end to end, for all passes over whole sequences.

Sizes are rounded up to buckets, so that the number of compilations is bounded. The results of a sequence do not depend
on these sizes (``models.layout``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from optimas_jax.models.layout import BLOCK, TILE, AnyLayout, TilePairs, Tiles


@dataclasses.dataclass(frozen=True)
class FlatSequence:
    """One sequence to lay out.

    Attributes:
      ids: tokens, at least one.
      blocks: stored blocks of the keys before the first of ``ids``.
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
        """Number of keys, stored ones included."""
        return self.start + len(self.ids)


class Flat(NamedTuple):
    """A flat batch: ids [T] and positions [T] int32, and the layout of its sequences."""

    input_ids: Any
    positions: Any
    layout: AnyLayout


def bucket(size: int, least: int, per_doubling: int = 2) -> int:
    """Smallest bucket that holds ``size``. Buckets are multiples of ``least``, or coarser if there are still
    ``per_doubling`` of them between powers of two."""
    step = max(least, (1 << max(size - 1, 0).bit_length()) // (2 * per_doubling))
    return max(-(-size // step) * step, least)


def flat_tokens(count: int) -> int:
    """Number of tokens that a batch of ``count`` tokens has room for."""
    return bucket(count, TILE, 4)


def sequence_room(count: int, *, tiled: bool) -> int:
    """Number of sequences that a batch of ``count`` sequences has room for."""
    return bucket(count, 32) if tiled else bucket(count, 1, 1)


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
      sequences: at least one, or none if ``like`` has some; either all with ``parts`` or all without.
      pad_id: token of the padding at the end.
      tiled: layout ``Tiles`` if true, else ``TilePairs``.
      stored: P, number of positions of the prefix cache.
      slots: room for stored positions of a sequence, a size of ``Tiles``; 0 for as many as ``sequences`` have.
      tokens: T before rounding up to a bucket; default: all tokens of ``sequences``.
      like: sequences for which the layout must have room, too (for as many, each as long), so that layouts of several
        batches with the same ``tokens`` have the same shapes.

    Returns:
      numpy arrays.
    """
    # Padding tokens cost as much as real ones. A program costs about as much as 300 tokens.
    tokens = flat_tokens(tokens or sum(len(sequence.ids) for sequence in sequences))
    ids, positions = np.full(tokens, pad_id, np.int32), np.zeros(tokens, np.int32)
    begins = np.cumsum([0, *(len(sequence.ids) for sequence in sequences)])
    for begin, sequence in zip(begins, sequences, strict=False):
        span = slice(begin, begin + len(sequence.ids))
        ids[span] = sequence.ids
        sequence_positions = sequence.positions
        positions[span] = (
            np.arange(sequence.start, sequence.length) if sequence_positions is None else sequence_positions
        )
    sizes = _Sizes(
        max(len(sequences), len(like)),
        max(len(sequence.ids) for sequence in (*sequences, *like)),
        max(sequence.length for sequence in (*sequences, *like)),
    )
    if tiled:
        layout = _tiles(sequences, begins, tokens, slots, sizes)
    else:
        before = max(sum(sequence.start for sequence in some) for some in (sequences, like))
        layout = _tile_pairs(sequences, begins, tokens, stored, bucket(before, TILE, 1) if before else 0, sizes)
    return Flat(ids, positions, layout)


class _Sizes(NamedTuple):
    """Room of a layout: number of sequences, tokens of a sequence, keys of a sequence."""

    rows: int
    queries: int
    keys: int


def _tiles(sequences: Sequence[FlatSequence], begins: np.ndarray, tokens: int, slots: int, sizes: _Sizes) -> Tiles:
    rows = sequence_room(sizes.rows, tiled=True)
    row_of, key_index, part = np.full(tokens, -1, np.int32), np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    starts = np.zeros(rows, np.int32)
    width = -(-max(slots, *(sequence.start for sequence in sequences), 1) // TILE) * TILE // BLOCK
    blocks = np.zeros((rows, width), np.int32)
    for row, sequence in enumerate(sequences):
        span = slice(begins[row], begins[row + 1])
        row_of[span] = row
        key_index[span] = np.arange(sequence.start, sequence.length)
        part[span] = 0 if sequence.parts is None else sequence.parts
        starts[row] = sequence.start
        blocks[row, : len(sequence.blocks)] = sequence.blocks
    segments: list[tuple[int, int, int, int]] = []
    bounds = [0]
    for begin in range(0, tokens, TILE):
        members = sorted({int(row) for row in row_of[begin : begin + TILE]} - {-1})
        shared = _shared_blocks([sequences[row] for row in members]) * BLOCK // TILE if len(members) > 1 else 0
        if shared:
            segments.append((members[0], 0, shared, 1))
        for row in members:
            inside = slice(max(begin, begins[row]), min(begin + TILE, begins[row + 1]))
            ranges = _seen_tiles(key_index[inside], part[begins[row] : inside.stop], shared)
            segments += [(row, first, stop, 0) for first, stop in ranges]
        bounds.append(len(segments))
    table = np.zeros((2 * (tokens // TILE + rows), 4), np.int32)
    table[: len(segments)] = np.reshape(segments, (-1, 4))
    firsts = np.zeros(rows, np.int32)
    firsts[: len(sequences)] = begins[:-1]
    return Tiles(row_of, key_index, part, firsts, starts, blocks, table, np.asarray(bounds, np.int32))


def _seen_tiles(key_index: np.ndarray, parts: np.ndarray, shared: int) -> list[tuple[int, int]]:
    """Ranges (first, stop) of the key tiles that a span of tokens of a sequence sees.

    Args:
      key_index: of these tokens, ascending.
      parts: parts of all tokens of the sequence in the batch, up to the last of these tokens.
      shared: number of key tiles at the start that another segment covers.
    """
    stop = int(key_index[-1]) // TILE + 1
    first_part = parts[-len(key_index)]
    if not first_part:
        return [(shared, stop)]
    # Candidates see the prefix and themselves, not each other.
    prefix_stop = -(-int((parts == 0).sum()) // TILE)
    candidate_first = int(np.argmax(parts == first_part)) // TILE
    return [(0, prefix_stop), (candidate_first, stop)] if candidate_first > prefix_stop else [(0, stop)]


def _shared_blocks(sequences: Sequence[FlatSequence]) -> int:
    """Number of stored blocks that all sequences begin with."""
    columns = list(zip(*(sequence.blocks for sequence in sequences), strict=False))
    return next((count for count, column in enumerate(columns) if len(set(column)) > 1), len(columns))


def _tile_pairs(
    sequences: Sequence[FlatSequence], begins: np.ndarray, tokens: int, stored: int, before: int, sizes: _Sizes
) -> TilePairs:
    """The layout ``TilePairs``; ``before``: S0, room for stored keys."""
    sequence_of, key_index, part = np.full(tokens, -1, np.int32), np.zeros(tokens, np.int32), np.zeros(tokens, np.int32)
    of_store = np.full(before, stored, np.int32), np.full(before, -2, np.int32), np.zeros(before, np.int32)
    starts = np.cumsum([0, *(sequence.start for sequence in sequences)])
    pairs = {(tile, (before + tile * TILE) // TILE): 0 for tile in range(tokens // TILE)}
    for row, sequence in enumerate(sequences):
        begin, span = begins[row], slice(begins[row], begins[row + 1])
        sequence_of[span], key_index[span] = row, np.arange(sequence.start, sequence.length)
        part[span] = 0 if sequence.parts is None else sequence.parts
        in_store = slice(starts[row], starts[row + 1])
        for array, values in zip(
            of_store, (stored_indices(sequence.blocks), row, np.arange(sequence.start)), strict=True
        ):
            array[in_store] = values
        for tile in range(begin // TILE, -(-span.stop // TILE)):
            inside = slice(max(tile * TILE, begin), min((tile + 1) * TILE, span.stop))
            ranges = [(in_store.start, in_store.stop)]
            ranges += [
                (before + begin + first, before + begin + stop) for first, stop in _seen(part[span], inside, begin)
            ]
            for first, stop in ranges:
                pairs |= {(tile, key): 1 for key in range(first // TILE, -(-stop // TILE)) if stop > first}
    by_query = [(query, key, real) for (query, key), real in sorted(pairs.items())]
    without = sorted(set(range((before + tokens) // TILE)) - {key for _, key in pairs})
    by_key = sorted([*by_query, *((0, key, 0) for key in without)], key=lambda pair: (pair[1], pair[0]))
    # The most pairs that T tokens can have, if every sequence is as long as the longest.
    reach = -(-(sizes.queries - 1) // TILE) + 1
    room = bucket(tokens // TILE * (min(reach, tokens // TILE) + before // TILE) + before // TILE, 64, 1)
    tables = np.zeros((2, room, 3), np.int32)
    for table, rows in zip(tables, (by_query, by_key), strict=True):
        table[: len(rows)] = rows
    counts = np.asarray([len(by_query), len(by_key)], np.int32)
    return TilePairs(sequence_of, key_index, part, of_store[0], of_store[1], of_store[2], tables[0], tables[1], counts)


def _seen(parts: np.ndarray, inside: slice, begin: int) -> list[tuple[int, int]]:
    """Ranges (first, stop) of the tokens of a sequence that its tokens ``inside`` a tile see, counted from its first
    token.

    Args:
      parts: of all its tokens.
      inside: indices in the batch, in which the sequence begins at ``begin``.
    """
    first_part, stop = parts[inside.start - begin], inside.stop - begin
    if not first_part:
        return [(0, stop)]
    return [(0, int((parts == 0).sum())), (int(np.argmax(parts == first_part)), stop)]


def stored_indices(blocks: Sequence[int]) -> np.ndarray:
    """Indices [n * BLOCK] int32 of the positions of stored blocks [n]."""
    return (np.asarray(blocks, np.int32)[:, None] * BLOCK + np.arange(BLOCK, dtype=np.int32)).reshape(-1)
