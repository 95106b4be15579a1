"""A batch of requests that is decoded together, and that requests join and leave.

The batch is a cache on the device and a few numbers per row on the host. Between two stretches of decoding, finished
rows are handed out, waiting requests are prefilled into free ones, and the batch grows or shrinks to what is needed.
What a request gets does not depend on any of this: its keys stand in its row by position, and the number of rows is one
of ``ROWS``, between which XLA's CPU code gives every row the same bits (with 25 to 32 or more than 48 it orders
products differently; tests hold this), for vocabularies of 1,024 tokens and more. Rows and slots come in buckets, which
bound the number of compilations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from optimas_jax.engine.multi_lora import LoadedAdapter
from optimas_jax.engine.prefill import Begin, Prefiller, Prompt, Writer
from optimas_jax.engine.prefix_cache import Ids
from optimas_jax.engine.sampling import Rows, decode, empty_cache, insert, rearrange
from optimas_jax.models.attention import KeysValues, StoredKeysValues
from optimas_jax.models.backbone import Cache, Network
from optimas_jax.models.flat import bucket
from optimas_jax.models.lora import Params
from optimas_jax.parallel.mesh import DATA
from optimas_jax.parallel.sharding import place_rows

ROWS = (4, 8, 16, 24, 40)
_CACHE_TOKENS = 12 * 1024  # rows x slots: bounds the memory of the cache

Key = TypeVar("Key")


class RowRequest(NamedTuple):
    """What a row needs to know of a request.

    Attributes:
      prompt: its tokens.
      limit: most tokens to sample.
      temperature, top_p, seed: see ``engine.sampler.SampleRequest``.
      stops: [V] int8, see ``engine.sampling.Rows``.
      adapter: None for the base.
    """

    prompt: Ids
    limit: int
    temperature: float
    top_p: float
    seed: int
    stops: np.ndarray
    adapter: LoadedAdapter | None = None

    @property
    def slots(self) -> int:
        """Cache slots that it may fill; the last sampled token needs none."""
        return len(self.prompt) + self.limit - 1


class Joining(NamedTuple):
    """Requests that have got rows, whose prompts must be run before the next step.

    Attributes:
      keys: of the requests.
      prompts: all different; their last tokens, which decoding reads, are left out.
      begin: for ``Prefiller.run`` on these prompts.
    """

    keys: list[Any]
    prompts: list[Prompt]
    begin: Begin


class DecodeBatch(Generic[Key]):
    """Requests in flight; ``Key`` is whatever the caller knows them by."""

    def __init__(self, network: Network, params: Params, prefiller: Prefiller, blank: np.ndarray):
        """``blank``: [V] bool, tokens of white space."""
        self._network, self._params, self._prefiller, self._blank = network, params, prefiller, blank
        self._mesh = prefiller.mesh
        self._flights: list[tuple[Key, RowRequest] | None] = []  # by row
        self._rows: Rows | None = None
        self._cache: Cache | None = None
        self._slots = 0

    @property
    def active(self) -> list[Key]:
        """Keys of the requests in flight."""
        return [flight[0] for flight in self._flights if flight is not None]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and slots."""
        return len(self._flights), self._slots

    def admit(self, waiting: Sequence[tuple[Key, RowRequest]], most: int) -> Joining:
        """Gives rows to as many waiting requests as there is room for, oldest first, up to ``most`` in flight.

        Requests that need more slots than the batch has wait until no other does.
        """
        slots = self._slots if self.active else 0
        fitting = [one for one in waiting if one[1].slots <= slots]
        if waiting and not fitting:
            # The size that most requests want; smaller ones fit as well.
            wanted = [_slot_bucket(request.slots) for _, request in waiting]
            slots = max(max(set(wanted), key=lambda size: (wanted.count(size), -size)), slots)
            fitting = [one for one in waiting if one[1].slots <= slots]
        room = min(_most_rows(slots), most) - len(self.active) if fitting else 0
        admitted = fitting[: max(room, 0)]
        if admitted:
            self._resize(len(self.active) + len(admitted), slots)
        return self._join(admitted)

    def shrink(self) -> None:
        """Gives up rows that are not needed, if they are many: every size of a batch is a program to compile."""
        if self._rows_for(len(self.active), ROWS[::2]) < len(self._flights):
            self._resize(len(self.active), self._slots, ROWS[::2])

    def step(self, most: int = np.iinfo(np.int32).max) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        """Decodes until a quarter of the requests in flight are done, or ``most`` tokens of each; returns the keys of
        those that are done, their tokens and log-probs."""
        active = len(self.active)
        assert self._rows is not None and self._cache is not None
        free = len(self._flights) - active + max(active // 4, 1)
        placed = place_rows(self._rows._asdict(), self._mesh, Rows._fields)
        cache, self._cache = self._cache, None  # donated
        adapters = [None if flight is None else flight[1].adapter for flight in self._flights]
        stack = self._prefiller.adapters.stack(adapters)
        gate = None if stack is None else place_rows({"gate": stack.gate(adapters)}, self._mesh, ("gate",))["gate"]
        rows, self._cache = decode(
            self._network,
            stack and stack.config,
            self._params,
            {} if stack is None else stack.params,
            gate,
            cache,
            Rows(**placed),
            self._blank,
            np.int32(free),
            np.int32(most),
        )
        constant = {name: getattr(self._rows, name) for name in ("limits", "seeds", "temperatures", "top_p", "stops")}
        changed = jax.device_get({name: getattr(rows, name) for name in Rows._fields if name not in constant})
        self._rows = Rows(**constant, **{name: np.array(value) for name, value in changed.items()})
        finished = []
        for row, flight in enumerate(self._flights):
            if flight is not None and self._rows.done[row]:
                count = self._rows.count[row]
                tokens, logprobs = self._rows.tokens[row, :count], self._rows.logprobs[row, :count]
                finished.append((flight[0], tokens.copy(), logprobs.copy()))
                self._flights[row] = None
        return finished

    def partial(self) -> list[tuple[Key, np.ndarray]]:
        """Requests in flight with their tokens so far."""
        rows = self._rows
        if rows is None:
            return []
        flying = [(row, flight[0]) for row, flight in enumerate(self._flights) if flight is not None]
        return [(key, rows.tokens[row, : rows.count[row]].copy()) for row, key in flying]

    def clear(self) -> None:
        """Forgets all requests in flight and the cache."""
        self._flights, self._rows, self._cache, self._slots = [], None, None, 0

    def _rows_for(self, count: int, sizes: Sequence[int] = ROWS) -> int:
        return next(size for size in sizes if size * self._row_factor >= count) * self._row_factor

    def _resize(self, count: int, slots: int, sizes: Sequence[int] = ROWS) -> None:
        """Makes room for ``count`` requests of up to ``slots`` slots, in as few rows of ``sizes`` as hold them."""
        rows = self._rows_for(count, sizes)
        if rows == len(self._flights) and slots == self._slots:
            return
        kept = [row for row, flight in enumerate(self._flights) if flight is not None]
        order = np.asarray([*kept, *[len(self._flights)] * (rows - len(kept))], np.int32)
        if kept:
            assert self._cache is not None and self._rows is not None
            self._cache = tuple(rearrange(layer, order, slots) for layer in self._cache)
        else:
            self._cache = self._empty_cache(rows, slots)
        old, self._rows = self._rows, self._empty_rows(rows, slots)
        for row, source in enumerate(kept):
            assert old is not None
            for name in Rows._fields:
                part = getattr(old, name)[source]
                target = getattr(self._rows, name)
                if name in ("tokens", "logprobs"):
                    size = min(old.tokens.shape[1], slots)
                    target[row, :size] = part[:size]
                else:
                    target[row] = part
        self._flights = [*(self._flights[row] for row in kept), *[None] * (rows - len(kept))]
        self._slots = slots

    @property
    def _row_factor(self) -> int:
        """Rows are multiplied by this on meshes too wide to divide the fewest rows."""
        return 1 if self._mesh is None else -(-self._mesh.shape[DATA] // ROWS[0])

    def _empty_rows(self, rows: int, slots: int) -> Rows:
        vocab = len(self._blank)
        return Rows(
            limits=np.zeros(rows, np.int32),
            seeds=np.zeros(rows, np.uint32),
            temperatures=np.zeros(rows, np.float32),
            top_p=np.ones(rows, np.float32),
            stops=np.zeros((rows, vocab), np.int8),
            token=np.zeros(rows, np.int32),
            position=np.zeros(rows, np.int32),
            count=np.zeros(rows, np.int32),
            begun=np.zeros(rows, bool),
            done=np.ones(rows, bool),
            tokens=np.zeros((rows, slots), np.int32),
            logprobs=np.zeros((rows, slots), np.float32),
        )

    def _empty_cache(self, rows: int, slots: int) -> Cache:
        cache = empty_cache(self._network.config, self._network.compute.dtype, rows, slots)
        if self._mesh is None or self._mesh.size == 1:
            return cache
        sharding = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(DATA))
        return jax.device_put(cache, sharding)

    def _join(self, admitted: Sequence[tuple[Key, RowRequest]]) -> Joining:
        """Puts requests into free rows."""
        free = [row for row, flight in enumerate(self._flights) if flight is None]
        rows_of: dict[Prompt, list[int]] = {}
        for (key, request), row in zip(admitted, free, strict=False):
            self._flights[row] = (key, request)
            ids = request.prompt
            values = {
                "limits": request.limit,
                "seeds": request.seed % 2**32,
                "temperatures": request.temperature,
                "top_p": request.top_p,
                "stops": request.stops,
                "token": ids[-1],
                "position": len(ids) - 1,
                "count": 0,
                "begun": False,
                "done": False,
            }
            assert self._rows is not None
            for name, value in values.items():
                getattr(self._rows, name)[row] = value
            if len(ids) > 1:
                rows_of.setdefault(Prompt(ids[:-1], request.adapter), []).append(row)
        unique = list(rows_of)

        def begin(members: list[int], places: list[np.ndarray]) -> Writer:
            table = np.full((len(self._flights), self._slots), np.iinfo(np.int32).max, np.int32)
            rows = np.zeros(len(self._flights), np.int32)
            count = 0
            for member, at in zip(members, places, strict=True):
                for row in rows_of[unique[member]]:
                    rows[count], table[count, : len(at)] = row, at
                    count += 1

            def write(layer: int, stored: StoredKeysValues, own: KeysValues) -> None:
                assert self._cache is not None
                cache = list(self._cache)
                cache[layer] = insert(cache[layer], stored, own, table, rows, np.int32(count))
                self._cache = tuple(cache)

            return write

        return Joining([key for key, _ in admitted], unique, begin)


def _slot_bucket(slots: int) -> int:
    return bucket(slots, 128)


def _most_rows(slots: int) -> int:
    """Most requests that are decoded together."""
    return max(rows for rows in ROWS if rows == ROWS[0] or rows * slots <= _CACHE_TOKENS)
