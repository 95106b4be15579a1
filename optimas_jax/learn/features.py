"""Cache of features (the output of the frozen layers) on the host, for later epochs, adaptation and further scoring."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from optimas_jax.learn.token_group import TokenGroup

_MAX_BYTES = 256 << 20


class FeatureCache:
    """Features [length, D] by a group's text; the least recently used are evicted first."""

    def __init__(self, max_bytes: int = _MAX_BYTES):
        self._max_bytes, self._bytes = max_bytes, 0
        self._entries: OrderedDict[tuple[tuple[int, ...], ...], np.ndarray] = OrderedDict()

    def __contains__(self, group: TokenGroup) -> bool:
        return group.text in self._entries

    def get(self, groups: Sequence[TokenGroup], tokens: int) -> np.ndarray | None:
        """Features [tokens, D] of groups laid end to end, or None if any group is not in the cache."""
        if any(group not in self for group in groups):
            return None
        parts = [self._entries[group.text] for group in groups]
        for group in groups:
            self._entries.move_to_end(group.text)
        out = np.zeros((tokens, parts[0].shape[1]), parts[0].dtype)
        np.concatenate(parts, out=out[: sum(map(len, parts))])
        return out

    def put(self, groups: Sequence[TokenGroup], features: np.ndarray) -> None:
        """Stores the features [tokens, D] of groups laid end to end."""
        start = 0
        for group in groups:
            part = features[start : start + group.length].copy()
            start += group.length
            if group not in self:
                self._entries[group.text] = part
                self._bytes += part.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1].nbytes
