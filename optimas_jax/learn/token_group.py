"""A group of candidates in ids: what crosses from text to arrays."""

from __future__ import annotations

import dataclasses


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
