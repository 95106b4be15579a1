"""Continuous batching: requests join the decode batches as rows become free, and leave as they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

import numpy as np

from optimas_jax.models.decode_batch import ROWS, DecodeBatch, Key, RowRequest
from optimas_jax.parallel.lanes import Lanes

_ALONE = 24  # requests: up to so many, one batch on all cores is faster than two side by side
_BESIDE = 16  # rows of batches side by side, as long as there are not enough requests for the most rows of each


class ContinuousBatch(Generic[Key]):
    """Requests in flight, in one decode batch a lane; ``Key`` is whatever the caller knows them by."""

    def __init__(self, lanes: Lanes, make: Callable[[], DecodeBatch[Key]]):
        """``make`` makes an empty decode batch."""
        self._lanes = lanes
        self._batches = [make() for _ in range(lanes.count)]

    @property
    def active(self) -> list[Key]:
        """Keys of the requests in flight."""
        return [key for batch in self._batches for key in batch.active]

    def admit(self, waiting: Sequence[tuple[Key, RowRequest]]) -> list[Key]:
        """Takes in as many waiting requests as there is room for, oldest first. Returns the keys of those admitted."""
        most = _most_in_lane(len(self.active) + len(waiting), len(self._batches))
        admitted: list[Key] = []
        for batch in self._batches:
            taken = batch.admit(waiting, most)
            waiting = [one for one in waiting if one[0] not in taken]
            admitted += taken
        return admitted

    def step(self, most: int = np.iinfo(np.int32).max) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        """Decodes each batch until a quarter of its requests are done, or ``most`` tokens of each; returns the keys of
        those that are done, their tokens and log-probs."""
        busy = [batch for batch in self._batches if batch.active]
        for batch in busy:
            batch.shrink()
        decode = self._lanes.map(lambda batch: batch.step(most), busy, lambda batch: batch.shape)
        return [one for done in decode for one in done]

    def partial(self) -> list[tuple[Key, np.ndarray]]:
        """Requests in flight with their tokens so far."""
        return [one for batch in self._batches for one in batch.partial()]

    def clear(self) -> None:
        """Forgets all requests in flight and the caches."""
        for batch in self._batches:
            batch.clear()


def _most_in_lane(requests: int, lanes: int) -> int:
    """Requests that a lane may have in flight, when there are so many in all."""
    if lanes == 1 or requests <= _ALONE:
        return requests
    return ROWS[-1] if requests >= lanes * ROWS[-1] else _BESIDE
