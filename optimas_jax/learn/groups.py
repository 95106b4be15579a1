"""Groups of candidates laid out as flat batches, so that candidates share the computation of their prefix.

A group becomes one sequence ``[prefix | candidate 1 | ... | candidate M]``; each candidate sees the prefix and itself
(``models.attention.Spans.branches``) at the positions that it would have alone. A batch holds as many groups as fit
its tokens. On CPU, what a group gets does not depend on the groups that it shares a batch with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from optimas_jax.models.flat import Flat, FlatSequence, flatten


@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """One group in ids. The score of a candidate is read at its last token.

    Attributes:
      prefix_ids: task and input, shared by the candidates; at least one token.
      candidate_ids: one sequence per candidate; at least one token each.
      rewards: mean global reward of each candidate; zeros where only scores are wanted.
      component: index of the reward head.
    """

    prefix_ids: tuple[int, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    rewards: tuple[float, ...]
    component: int

    @property
    def length(self) -> int:
        return len(self.prefix_ids) + sum(map(len, self.candidate_ids))

    @property
    def text(self) -> tuple[tuple[int, ...], ...]:
        """What the backbone reads: prefix and candidates."""
        return (self.prefix_ids, *self.candidate_ids)

    @cached_property
    def sequence(self) -> FlatSequence:
        """Its tokens, their positions and parts."""
        start = len(self.prefix_ids)
        positions = [range(start), *(range(start, start + len(ids)) for ids in self.candidate_ids)]
        return FlatSequence(
            ids=[token for part in self.text for token in part],
            positions=[place for part in positions for place in part],
            branches=[number for number, part in enumerate(self.text) for _ in part],
        )


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch.

    Attributes:
      tokens: T; on a mesh, per device along ``data``.
      group_tokens: longer groups are truncated to it.
      candidates: M, at most, of a group.
    """

    tokens: int = 1024
    group_tokens: int = 512
    candidates: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.group_tokens <= self.tokens:
            raise ValueError(
                f"a batch of {self.tokens} tokens cannot hold a group of group_tokens = {self.group_tokens}: lower it"
            )


class GroupBatch(NamedTuple):
    """A batch of groups; numpy arrays. Places count in the flat batch.

    Attributes:
      flat: tokens and sequences, see ``models.flat``; sequence g is group g.
      ends: [G, M] int32, place of each candidate's last token.
      valid: [G, M] bool, False for padding.
      rewards: [G, M] float32.
      component: [G] int32.
    """

    flat: Flat
    ends: Any
    valid: Any
    rewards: Any
    component: Any


def truncate(group: TokenGroup, tokens: int) -> TokenGroup:
    """Fits a group into ``tokens``: long candidates lose their middle, then the prefix loses its start (the input's
    end matters most). The last token of every candidate, where its score is read, is kept."""
    share = max(2, tokens // (len(group.candidate_ids) + 1))
    if group.length <= tokens:
        return group
    candidates = tuple(ids if len(ids) <= share else (*ids[: share - 1], ids[-1]) for ids in group.candidate_ids)
    room = tokens - sum(map(len, candidates))
    if room < 1:
        raise ValueError(f"{len(candidates)} candidates do not fit {tokens} tokens: raise group_tokens")
    return dataclasses.replace(group, prefix_ids=group.prefix_ids[-room:], candidate_ids=candidates)


def plan_batches(
    groups: Sequence[TokenGroup], tokens: int, *, most: int = 0, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Which groups share a batch.

    Args:
      groups: none longer than ``tokens``.
      tokens: T.
      most: groups of a batch; 0 for as many as fit.
      rng: shuffles the groups (training); None puts groups of like length together (scoring).

    Returns:
      Indices of the groups of each batch.
    """
    if rng is None:
        order = sorted(range(len(groups)), key=lambda index: -groups[index].length)
    else:
        order = rng.permutation(len(groups)).tolist()
    plan: list[list[int]] = []
    room: list[int] = []
    for index in order:
        length = groups[index].length
        # First fit: what is left at the end of a batch is filled by a shorter group.
        place = next(
            (place for place, left in enumerate(room) if left >= length and not len(plan[place]) == most > 0), None
        )
        if place is None:
            plan.append([])
            room.append(tokens)
            place = len(plan) - 1
        plan[place].append(index)
        room[place] -= length
    return plan


def make_batch(
    groups: Sequence[TokenGroup], *, candidates: int, pad_id: int, tokens: int = 0, coarse: bool = False
) -> GroupBatch:
    """Lays out one batch; ``tokens`` and ``coarse`` as in ``models.flat.flatten``."""
    flat = flatten([group.sequence for group in groups], stored=0, pad_id=pad_id, tokens=tokens, coarse=coarse)
    size = (len(flat.spans.starts), candidates)
    ends, valid = np.zeros(size, np.int32), np.zeros(size, bool)
    rewards, component = np.zeros(size, np.float32), np.zeros(size[0], np.int32)
    start = 0
    for place, group in enumerate(groups):
        count = len(group.candidate_ids)
        if count > candidates:
            raise ValueError(f"{count} candidates in a group, a batch has room for {candidates}")
        lengths = [len(part) for part in group.text]
        ends[place, :count] = start + np.cumsum(lengths)[1:] - 1
        valid[place, :count] = True
        rewards[place, :count] = group.rewards
        component[place] = group.component
        start += group.length
    return GroupBatch(flat, ends, valid, rewards, component)
