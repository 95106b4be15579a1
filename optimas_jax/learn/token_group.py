"""A group of candidates as token ids, without text or arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

Ids = tuple[int, ...]

_INPUTS = 32  # inputs keep at least 1 / 32 of a group's tokens; only then candidates are cut


@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """One group of candidates as token ids. The score of a candidate is read at its last token.

    Attributes:
      prefix_ids: task and input, shared by the candidates; at least one token.
      candidate_ids: one sequence per candidate; at least one token each.
      rewards: mean global reward of each candidate; zeros if only scores are wanted.
      component: index of the reward head.
    """

    prefix_ids: Ids
    candidate_ids: tuple[Ids, ...]
    rewards: tuple[float, ...]
    component: int

    @property
    def length(self) -> int:
        return len(self.prefix_ids) + sum(map(len, self.candidate_ids))

    @property
    def text(self) -> tuple[Ids, ...]:
        """The token sequences that the backbone reads: prefix and candidates."""
        return (self.prefix_ids, *self.candidate_ids)


def truncate(group: TokenGroup, tokens: int, task: int = 0) -> TokenGroup:
    """Fits a group into ``tokens``; a group that fits is returned unchanged.

    The prefix is cut first: it keeps the task, and the head and tail of the inputs. If that is not enough, the longest
    candidates are cut to one length. Each keeps its head, its tail with the last token (where its score is read), and
    the tokens where it first differs from another candidate.

    Args:
      group: of any length.
      tokens: most tokens of the result.
      task: length of the task, with which the prefix begins.

    Raises:
      ValueError: if there is no room for a token of the prefix and two of every candidate.
    """
    if group.length <= tokens:
        return group
    lengths = [len(ids) for ids in group.candidate_ids]
    room = tokens - sum(min(length, 2) for length in lengths)
    if room < 1:
        raise ValueError(f"{len(lengths)} candidates do not fit {tokens} tokens: raise group_tokens")
    prefix = min(len(group.prefix_ids), task + max(1, tokens // _INPUTS), max(1, tokens // 2), room)
    candidates = _cut_candidates(group.candidate_ids, _common_length(lengths, tokens - prefix))
    prefix = min(len(group.prefix_ids), tokens - sum(map(len, candidates)))
    return dataclasses.replace(group, prefix_ids=_cut_prefix(group.prefix_ids, prefix, task), candidate_ids=candidates)


def are_alike(group: TokenGroup, cut: TokenGroup) -> bool:
    """Whether candidates that differed in ``group`` are the same in ``cut``."""
    return len(set(cut.candidate_ids)) < len(set(group.candidate_ids))


def _common_length(lengths: Sequence[int], room: int) -> int:
    """The largest length L for which lengths cut to L fit into ``room`` together."""
    remaining, unfilled = room, sorted(lengths)
    for index, length in enumerate(unfilled):
        share = remaining // (len(unfilled) - index)
        if length > share:
            return share
        remaining -= length
    return max(lengths)


def _cut_prefix(ids: Ids, room: int, task: int) -> Ids:
    """The task, at most three quarters of ``room``, then head and tail of the inputs."""
    if len(ids) <= room:
        return ids
    inputs = ids[min(task, len(ids) - 1) :]
    kept = min(task, max(3 * room // 4, room - len(inputs)))
    return (*ids[:kept], *_cut(inputs, room - kept))


def _cut_candidates(candidates: Sequence[Ids], length: int) -> tuple[Ids, ...]:
    """Candidates cut to ``length``. If the cut makes different candidates equal, such as repetitions of different
    length, the shorter one loses further tokens."""
    cut = {ids: ids for ids in candidates if len(ids) <= length}
    for ids in sorted(dict.fromkeys(candidates), key=len, reverse=True):
        if ids not in cut:
            marks = {_first_difference(ids, other) for other in candidates if other != ids}
            options = [_cut(ids, length, marks)]
            while options[-1] in cut.values() and len(options[-1]) > 2:
                options.append(_cut(ids, len(options[-1]) - 1, marks))
            cut[ids] = options[-1] if options[-1] not in cut.values() else options[0]
    return tuple(cut[ids] for ids in candidates)


def _first_difference(ids: Ids, other: Ids) -> int:
    """The first index of ``ids`` at which ``other`` has another token or none; the last index if ``other`` begins with
    ``ids``."""
    pairs = enumerate(zip(ids, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(other), len(ids) - 1))


def _cut(ids: Ids, length: int, marks: Collection[int] = ()) -> Ids:
    """``length`` of the tokens, in order: head and tail in equal parts, and a few tokens from every mark on; always
    with the last token."""
    if len(ids) <= length:
        return ids
    width = max(1, length // (2 * (len(marks) + 2)))
    windows = [index for mark in sorted(marks) for index in range(mark, min(mark + width, len(ids)))]
    kept = {len(ids) - 1, *windows[: max(0, length - 2)]}
    head, tail = 0, len(ids) - 1
    while len(kept) < length:
        if head <= len(ids) - 1 - tail:
            kept.add(head)
            head += 1
        else:
            kept.add(tail)
            tail -= 1
    return tuple(ids[index] for index in sorted(kept))
