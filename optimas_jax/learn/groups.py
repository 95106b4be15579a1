"""Groups of candidates laid out as packed rows, so that candidates share the computation of their prefix.

A group becomes ``[prefix | candidate 1 | ... | candidate M]``; each candidate sees the prefix and itself
(``models.attention.Segments``) at the positions that it would have alone. Rows have one fixed length and hold several
groups each, so that little is padding and every function compiles once. What lands where depends on the order of the
groups alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

_TOKENS_PER_GROUP = 16  # a row of T tokens has places for T / 16 groups


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


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Shape of a batch: B rows of T tokens, with groups of at most M candidates.

    Attributes:
      rows: B; on a mesh, rows per device along ``data``.
      tokens: T; longer groups are truncated to it.
      candidates: M.
    """

    rows: int = 2
    tokens: int = 512
    candidates: int = 8

    @property
    def groups_per_row(self) -> int:
        return self.tokens // _TOKENS_PER_GROUP

    @property
    def groups(self) -> int:
        """G, places for groups in a batch."""
        return self.rows * self.groups_per_row


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """A batch of groups; numpy arrays.

    Attributes:
      input_ids: [B, T] int32.
      positions: [B, T] int32, every candidate continuing where its prefix ends.
      branches: [B, T] int32, a number for each prefix and each candidate of the row.
      trunks: [B, T] int32, the branch number of the token's prefix.
      ends: [G, M] int32, place of each candidate's last token in the flattened rows.
      valid: [G, M] bool, False for padding.
      rewards: [G, M] float32.
      component: [G] int32.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    trunks: np.ndarray
    ends: np.ndarray
    valid: np.ndarray
    rewards: np.ndarray
    component: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name: a pytree for jitted functions."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def truncate(group: TokenGroup, tokens: int) -> TokenGroup:
    """Fits a group into ``tokens``: long candidates lose their middle, then the prefix loses its start (the input's
    end matters most). The last token of every candidate, where its score is read, is kept."""
    share = max(2, tokens // (len(group.candidate_ids) + 1))
    length = group.length
    if length <= tokens:
        return group
    candidates = tuple(ids if len(ids) <= share else (*ids[: share - 1], ids[-1]) for ids in group.candidate_ids)
    room = tokens - sum(map(len, candidates))
    if room < 1:
        raise ValueError(f"{len(candidates)} candidates do not fit a row of {tokens} tokens: raise row_tokens")
    return dataclasses.replace(group, prefix_ids=group.prefix_ids[-room:], candidate_ids=candidates)


def batches(
    groups: Sequence[TokenGroup], shape: RowShape, *, pad_id: int, rng: np.random.Generator | None = None
) -> list[tuple[list[int], PackedRows]]:
    """Lays groups out in batches of one shape.

    Args:
      groups: at most ``shape.candidates`` candidates each; longer ones are truncated.
      shape: of every batch.
      pad_id: fills unused places.
      rng: shuffles the groups first (training); None keeps their order (scoring).

    Returns:
      For each batch, the indices of its groups in the order of places 0, 1, ..., and its rows.
    """
    order = range(len(groups)) if rng is None else rng.permutation(len(groups)).tolist()
    fitted = {index: truncate(groups[index], shape.tokens) for index in order}
    rows: list[list[int]] = []
    for index in order:
        _place(index, fitted, rows, shape)
    result = []
    for start in range(0, len(rows), shape.rows):
        members = rows[start : start + shape.rows]
        packed = _pack([[fitted[index] for index in row] for row in members], shape, pad_id)
        result.append(([index for row in members for index in row], packed))
    return result


def _place(index: int, groups: dict[int, TokenGroup], rows: list[list[int]], shape: RowShape) -> None:
    """First fit among the last few open rows, so that batches keep mixing."""
    for row in rows[-2 * shape.rows :]:
        used = sum(groups[other].length for other in row)
        if used + groups[index].length <= shape.tokens and len(row) < shape.groups_per_row:
            row.append(index)
            return
    rows.append([index])


def _pack(rows: Sequence[Sequence[TokenGroup]], shape: RowShape, pad_id: int) -> PackedRows:
    packed = PackedRows(
        input_ids=np.full((shape.rows, shape.tokens), pad_id, np.int32),
        positions=np.zeros((shape.rows, shape.tokens), np.int32),
        branches=np.full((shape.rows, shape.tokens), -1, np.int32),
        trunks=np.full((shape.rows, shape.tokens), -1, np.int32),
        ends=np.zeros((shape.groups, shape.candidates), np.int32),
        valid=np.zeros((shape.groups, shape.candidates), bool),
        rewards=np.zeros((shape.groups, shape.candidates), np.float32),
        component=np.zeros((shape.groups,), np.int32),
    )
    place = 0
    for row, groups in enumerate(rows):
        start, branch = 0, 0
        for group in groups:
            if len(group.candidate_ids) > shape.candidates:
                raise ValueError(f"{len(group.candidate_ids)} candidates in a group, the shape has {shape.candidates}")
            trunk, prefix_length = branch, len(group.prefix_ids)
            for part, ids in enumerate((group.prefix_ids, *group.candidate_ids)):
                stop = start + len(ids)
                offset = 0 if part == 0 else prefix_length
                packed.input_ids[row, start:stop] = ids
                packed.positions[row, start:stop] = np.arange(offset, offset + len(ids))
                packed.branches[row, start:stop] = branch
                packed.trunks[row, start:stop] = trunk
                if part > 0:
                    packed.ends[place, part - 1] = row * shape.tokens + stop - 1
                start, branch = stop, branch + 1
            count = len(group.candidate_ids)
            packed.valid[place, :count] = True
            packed.rewards[place, :count] = group.rewards
            packed.component[place] = group.component
            place += 1
    return packed
