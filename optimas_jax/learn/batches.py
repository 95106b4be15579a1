"""Groups of candidates laid out as flat batches, so that candidates share the computation of their prefix.

A group becomes one sequence ``[prefix | candidate 1 | ... | candidate M]``; each candidate sees the prefix and itself
(``models.layout.Tiles.part``), at the positions that it would have alone. A batch holds as many groups as its tokens
allow. On CPU, results of a group do not depend on the other groups of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.models.flat import Flat, FlatSequence, bucket, flatten, sequence_room


class GroupBatch(NamedTuple):
    """A batch of groups; numpy arrays. Indices refer to the flat batch.

    Attributes:
      flat: tokens and sequences, see ``models.flat``; sequence g is group g.
      ends: [G, M] int32, index of each candidate's last token.
      valid: [G, M] bool, False for padding.
      rewards: [G, M] float32.
      component: [G] int32.
    """

    flat: Flat
    ends: Any
    valid: Any
    rewards: Any
    component: Any


def plan_batches(
    groups: Sequence[TokenGroup], tokens: int, *, most: int = 0, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Plans which groups share a batch.

    Args:
      groups: none longer than ``tokens``.
      tokens: most tokens (T) of a batch.
      most: most groups of a batch; 0 for as many as fit.
      rng: shuffles the groups (training); None puts groups of similar length together (scoring).

    Returns:
      Indices of the groups of each batch.

    Raises:
      ValueError: for a group that is longer than a batch.
    """
    longest = max((group.length for group in groups), default=0)
    if longest > tokens:
        raise ValueError(
            f"a group of {longest} tokens does not fit a batch of {tokens} tokens: truncate or split it, or raise "
            "batch.tokens"
        )
    if rng is None:
        order = sorted(range(len(groups)), key=lambda index: -groups[index].length)
    else:
        order = rng.permutation(len(groups)).tolist()
    plan: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = groups[index].length
        # First fit: a shorter group fills the room at the end of a batch.
        fits = (
            index
            for index, tokens_left in enumerate(room)
            if tokens_left >= length and not len(plan[index]) == most > 0
        )
        number = next(fits, len(plan))
        if number == len(plan):
            plan.append([])
            room.append(tokens)
        plan[number].append(index)
        room[number] -= length
    return plan


def deal(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Deals sequences of these lengths to parts of about the same length, the longest first.

    Returns:
      Indices of the sequences of each part; if there are fewer sequences than parts, the last parts are empty.
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        min(dealt, key=lambda part: sum(lengths[member] for member in part)).append(index)
    return dealt


def lay_out(group: TokenGroup) -> FlatSequence:
    """A group as one sequence: its tokens, their positions and parts."""
    start = len(group.prefix_ids)
    positions = [range(start), *(range(start, start + len(ids)) for ids in group.candidate_ids)]
    return FlatSequence(
        ids=[token for part in group.text for token in part],
        positions=[position for part in positions for position in part],
        parts=[number for number, part in enumerate(group.text) for _ in part],
    )


def make_batch(
    groups: Sequence[TokenGroup],
    *,
    candidates: int,
    pad_id: int,
    tiled: bool,
    tokens: int = 0,
    like: Sequence[TokenGroup] = (),
) -> GroupBatch:
    """Lays out one batch; ``tiled``, ``tokens`` and ``like`` as in ``models.flat.flatten``."""
    sequences, like_sequences = ([lay_out(group) for group in some] for some in (groups, like))
    flat = flatten(sequences, pad_id=pad_id, tiled=tiled, tokens=tokens, like=like_sequences)
    size = (sequence_room(max(len(groups), len(like)), tiled=tiled), candidates)
    ends, valid = np.zeros(size, np.int32), np.zeros(size, bool)
    rewards, component = np.zeros(size, np.float32), np.zeros(size[0], np.int32)
    start = 0
    for row, group in enumerate(groups):
        count = len(group.candidate_ids)
        if count > candidates:
            raise ValueError(f"{count} candidates in a group, a batch has room for {candidates}")
        lengths = [len(part) for part in group.text]
        ends[row, :count] = start + np.cumsum(lengths)[1:] - 1
        valid[row, :count] = True
        rewards[row, :count] = group.rewards
        component[row] = group.component
        start += group.length
    return GroupBatch(flat, ends, valid, rewards, component)


def make_batches(
    parts: Sequence[Sequence[TokenGroup]], *, candidates: int, pad_id: int, tiled: bool, tokens: int = 0
) -> list[GroupBatch]:
    """A batch for each part, all of the same shapes; some parts may be empty."""
    longest = max((group for part in parts for group in part), key=lambda group: group.length)
    most = max(tokens, *(sum(group.length for group in part) for part in parts))
    like = [longest] * max(map(len, parts))
    return [
        make_batch(part, candidates=candidates, pad_id=pad_id, tiled=tiled, tokens=most, like=like) for part in parts
    ]


class CandidateTokens(NamedTuple):
    """The tokens of a batch's candidates, end to end: C of them with padding.

    Attributes:
      before: [C] int32 index of the token before (a candidate's first one follows its prefix).
      ids: [C] int32.
      owner: [C] int32 index of the candidate in the flattened [G * M]; G * M for padding.
      valid: [C] bool, False for padding.
    """

    before: Any
    ids: Any
    owner: Any
    valid: Any


def candidate_tokens(
    groups: Sequence[TokenGroup], room: tuple[int, int], least: int = 0, *, multiple: int = 64
) -> CandidateTokens:
    """The candidates' tokens of the groups of a batch, with room for ``least`` tokens; numpy arrays.

    Args:
      room: (G, M) of the batch.
      multiple: C is a multiple of it (``Compute.vocab_chunk``).
    """
    before, ids, owner, start = [], [], [], 0
    for row, group in enumerate(groups):
        last_of_prefix = start + len(group.prefix_ids) - 1
        begin = last_of_prefix + 1
        for number, part in enumerate(group.candidate_ids):
            before += [last_of_prefix, *range(begin, begin + len(part) - 1)]
            ids += part
            owner += [row * room[1] + number] * len(part)
            begin += len(part)
        start += group.length
    count = len(ids)
    padding = [0] * (bucket(max(count, least), multiple) - count)
    return CandidateTokens(
        np.asarray([*before, *padding], np.int32),
        np.asarray([*ids, *padding], np.int32),
        np.asarray([*owner, *[room[0] * room[1]] * len(padding)], np.int32),
        np.arange(count + len(padding)) < count,
    )
