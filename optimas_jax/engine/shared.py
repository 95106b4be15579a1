"""A continuous batch that all processes of a run hold, with the same requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic

import numpy as np

from optimas_jax.engine.batching import ContinuousBatch
from optimas_jax.engine.decode_batch import Key, RowRequest
from optimas_jax.parallel.lockstep import Shared, together

MOST = int(np.iinfo(np.int32).max)  # tokens of a step: no limit


class SharedBatch(Generic[Key]):
    """``ContinuousBatch`` by request number. The other processes get each request once, when it arrives. Which requests
    are admitted depends only on the requests in flight, so it is the same in all processes."""

    def __init__(
        self, batch: ContinuousBatch[int], row_request: Callable[[Any], RowRequest], shared: Shared | None = None
    ):
        """``batch``: of this process. ``row_request``: turns an ``engine.sampler.SampleRequest`` into a row.
        ``shared``: see ``parallel.lockstep``."""
        self.shared = shared
        self._batch, self._row_request = batch, row_request
        self._rows: dict[int, RowRequest] = {}
        self._numbers: dict[Key, int] = {}
        self._count = 0

    @property
    def active(self) -> list[Key]:
        """Keys of the requests in flight."""
        keys = self._keys()
        return [keys[number] for number in self._batch.active]

    def _keys(self) -> dict[int, Key]:
        return {number: key for key, number in self._numbers.items()}

    def admit(self, waiting: Sequence[tuple[Key, RowRequest]]) -> list[Key]:
        """See ``ContinuousBatch.admit``."""
        if not waiting:
            return []
        new = {}
        for key, row in waiting:
            if key not in self._numbers:
                self._numbers[key], self._rows[self._count], new[self._count] = self._count, row, row.origin
                self._count += 1
        admitted = self.admit_numbers([self._numbers[key] for key, _ in waiting], new)
        self._numbers = {key: number for key, number in self._numbers.items() if number in self._rows}
        keys = self._keys()
        return [keys[number] for number in admitted]

    def step(self, most: int = MOST) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        """See ``ContinuousBatch.step``."""
        if not self._batch.active:
            return []
        keys = self._keys()
        finished = [(keys[number], tokens, logprobs) for number, tokens, logprobs in self.step_numbers(int(most))]
        for key, _, _ in finished:
            del self._numbers[key]
        return finished

    def partial(self) -> list[tuple[Key, np.ndarray]]:
        """See ``ContinuousBatch.partial``."""
        keys = self._keys()
        return [(keys[number], tokens) for number, tokens in self._batch.partial()]

    def drop(self, keys: Collection[Key]) -> None:
        """See ``ContinuousBatch.drop``."""
        self.drop_numbers([self._numbers.pop(key) for key in keys])

    @together
    def drop_numbers(self, numbers: list[int]) -> None:
        """Drops requests in flight, in all processes."""
        self._batch.drop(numbers)
        self._rows = {number: row for number, row in self._rows.items() if number not in numbers}

    @together
    def admit_numbers(self, waiting: list[int], new: dict[int, Any]) -> list[int]:
        """Admits some of the waiting requests, in all processes; forgets requests that neither wait nor are in flight.

        Args:
          new: the requests of the waiting numbers that the other processes have not got yet.
        """
        for number, request in new.items():
            if number not in self._rows:  # in a process that follows
                self._rows[number] = self._row_request(request)
        admitted = self._batch.admit([(number, self._rows[number]) for number in waiting])
        needed = {*waiting, *self._batch.active}
        self._rows = {number: row for number, row in self._rows.items() if number in needed}
        return admitted

    @together
    def step_numbers(self, most: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Decodes, in all processes; returns the requests that are done, and forgets them."""
        finished = self._batch.step(most)
        for number, _, _ in finished:
            del self._rows[number]
        return finished

    @together
    def clear(self) -> None:
        """Forgets all requests and the caches."""
        self._batch.clear()
        self._rows, self._numbers = {}, {}
