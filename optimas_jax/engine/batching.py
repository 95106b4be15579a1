"""Continuous batching: requests join the decode batches as rows become free, and leave when they are done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Generic

import numpy as np

from optimas_jax.engine.decode_batch import Admission, DecodeBatch, Key, RowRequest
from optimas_jax.engine.prefill import Prefiller
from optimas_jax.parallel.lanes import Lanes

_ALONE = 24  # requests: up to this number, one batch on all cores is faster than two side by side
_BESIDE = 16  # rows of each of several batches while the requests are too few to fill the largest size of each


class ContinuousBatch(Generic[Key]):
    """Requests in flight, in one decode batch per lane; ``Key`` is the caller's identifier of a request."""

    def __init__(self, lanes: Lanes, prefiller: Prefiller, make_batch: Callable[[], DecodeBatch[Key]]):
        """``make_batch`` returns an empty decode batch."""
        self._lanes, self._prefiller = lanes, prefiller
        self._batches = [make_batch() for _ in range(lanes.count)]

    @property
    def active(self) -> list[Key]:
        """Keys of the requests in flight."""
        return [key for batch in self._batches for key in batch.active]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Numbers of rows and of slots of each batch."""
        return [batch.shape for batch in self._batches]

    def admit(self, waiting: Sequence[tuple[Key, RowRequest]]) -> list[Key]:
        """Admits as many waiting requests as there is room for, oldest first, and prefills their prompts.

        Returns:
          The keys of the admitted requests.
        """
        largest = self._prefiller.network.compute.decode_rows[-1]
        most = most_in_lane(len(self.active) + len(waiting), len(self._batches), largest)
        admissions: list[Admission] = []
        for batch in self._batches:
            admissions.append(batch.admit(waiting, most))
            waiting = [(key, request) for key, request in waiting if key not in admissions[-1].keys]
        # All prompts in one call: more prompts fill the passes better.
        prompts = dict.fromkeys(prompt for admission in admissions for prompt in admission.rows)
        for prefilled in self._prefiller.run(list(prompts)):
            for batch, admission in zip(self._batches, admissions, strict=True):
                batch.write(prefilled, admission)
        return [key for admission in admissions for key in admission.keys]

    def step(self, most: int = np.iinfo(np.int32).max) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        """Decodes each batch until a quarter of its requests are done, for at most ``most`` tokens or as many as it has
        slots for.

        Returns:
          For each request that is done: key, tokens and log-probs.
        """
        busy = [batch for batch in self._batches if batch.active]
        for batch in busy:
            batch.fit()
        finished = self._lanes.map(lambda batch: batch.step(most), busy, lambda batch: batch.shape)
        return [answer for answers in finished for answer in answers]

    def partial(self) -> list[tuple[Key, np.ndarray]]:
        """Key and tokens so far of each request in flight."""
        return [answer for batch in self._batches for answer in batch.partial()]

    def drop(self, keys: Collection[Key]) -> None:
        """Removes abandoned requests from their batches."""
        for batch in self._batches:
            batch.drop(keys)

    def wait(self) -> None:
        """Waits until the devices have done all that they were given."""
        for batch in self._batches:
            batch.wait()

    def clear(self) -> None:
        """Forgets all requests in flight and the caches."""
        for batch in self._batches:
            batch.clear()


def most_in_lane(requests: int, lanes: int, largest: int) -> int:
    """Most requests in flight in one lane, of ``requests`` in all; ``largest`` is the largest size of a batch."""
    if lanes == 1 or requests <= _ALONE:
        return requests
    return largest if requests >= lanes * largest else _BESIDE
