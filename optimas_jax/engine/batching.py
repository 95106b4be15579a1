"""Continuous batching: requests join the decode batches as rows become free, and leave as they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

import numpy as np

from optimas_jax.engine.decode_batch import ROWS, DecodeBatch, Joining, Key, RowRequest
from optimas_jax.engine.prefill import Begin, Prefiller, Prompt, Writer
from optimas_jax.models.attention import KeysValues, StoredKeysValues
from optimas_jax.parallel.lanes import Lanes

_ALONE = 24  # requests: up to so many, one batch on all cores is faster than two side by side
_BESIDE = 16  # rows of batches side by side, as long as there are not enough requests for the most rows of each


class ContinuousBatch(Generic[Key]):
    """Requests in flight, in one decode batch a lane; ``Key`` is whatever the caller knows them by."""

    def __init__(self, lanes: Lanes, prefiller: Prefiller, make: Callable[[], DecodeBatch[Key]]):
        """``make`` makes an empty decode batch."""
        self._lanes, self._prefiller = lanes, prefiller
        self._batches = [make() for _ in range(lanes.count)]

    @property
    def active(self) -> list[Key]:
        """Keys of the requests in flight."""
        return [key for batch in self._batches for key in batch.active]

    def admit(self, waiting: Sequence[tuple[Key, RowRequest]]) -> list[Key]:
        """Takes in as many waiting requests as there is room for, oldest first. Returns the keys of those admitted."""
        most = _most_in_lane(len(self.active) + len(waiting), len(self._batches))
        joining: list[Joining] = []
        for batch in self._batches:
            joining.append(batch.admit(waiting, most))
            waiting = [one for one in waiting if one[0] not in joining[-1].keys]
        self._prefiller.run(*_together(joining))  # the more prompts, the better the passes are filled
        return [key for one in joining for key in one.keys]

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


def _together(joining: Sequence[Joining]) -> tuple[list[Prompt], Begin]:
    """What joins several batches, as if it joined one: prompts, all different, and where they go."""
    goes_to: dict[Prompt, list[tuple[int, int]]] = {}  # batches, and the prompt's place in what joins each
    for number, one in enumerate(joining):
        for place, prompt in enumerate(one.prompts):
            goes_to.setdefault(prompt, []).append((number, place))
    prompts = list(goes_to)

    def begin(members: list[int], places: list[np.ndarray]) -> Writer:
        writers = []
        for number, one in enumerate(joining):
            own = [
                (place, at)
                for member, at in zip(members, places, strict=True)
                for batch, place in goes_to[prompts[member]]
                if batch == number
            ]
            if own:
                writers.append(one.begin([place for place, _ in own], [at for _, at in own]))

        def write(layer: int, stored: StoredKeysValues, own: KeysValues) -> None:
            for writer in writers:
                writer(layer, stored, own)

        return write

    return prompts, begin


def _most_in_lane(requests: int, lanes: int) -> int:
    """Requests that a lane may have in flight, when there are so many in all."""
    if lanes == 1 or requests <= _ALONE:
        return requests
    return ROWS[-1] if requests >= lanes * ROWS[-1] else _BESIDE
