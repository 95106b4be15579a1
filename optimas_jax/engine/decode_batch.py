"""A batch of requests that are decoded together; requests join and leave it between two steps.

The batch is a cache on the device and a few numbers per row on the host. Between two steps, finished rows are returned,
waiting requests are prefilled into free rows, and the batch is resized. On CPU the answer to a request does not depend
on any of this, to the bit: its keys are in its row by position, and the number of rows is one of
``Compute.decode_rows`` (tests check this for vocabularies of at least 1,024 tokens; on meshes see
``parallel.platform.for_several_devices``). Numbers of rows and slots are rounded up to buckets, which bounds the number
of compilations. Every token reads all slots, so a batch starts with slots for the first tokens of its answers, and gets
more when an answer needs them: most answers end far before their limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from optimas_jax.engine.constrain import Constraint
from optimas_jax.engine.memory import most_rows, slot_bucket, wanted_slots
from optimas_jax.engine.multi_lora import LoadedAdapter
from optimas_jax.engine.prefill import Prefilled, Prefiller, Prompt
from optimas_jax.engine.prefix_cache import Ids
from optimas_jax.engine.sampling import Rows, decode, empty_cache, insert, rearrange
from optimas_jax.engine.stop_texts import StopTexts
from optimas_jax.models.backbone import Cache, Network
from optimas_jax.models.lora import Params
from optimas_jax.parallel.platform import in_turn, return_free_memory
from optimas_jax.parallel.sharding import place_shards, put_shards
from optimas_jax.parallel.transfer import fetch

_STOP_TOKENS = 16  # tokens between two searches for stop texts that cross tokens
MANY = 4  # slots are dropped when there are this many times as many as needed
_MOST_PASSES = 16  # times that the oldest waiting request is passed over before the others wait for it

Key = TypeVar("Key")
Flight = tuple[Any, "RowRequest"] | None  # the request in a row, with its key


def enough_done(active: int) -> int:
    """Number of requests, of so many in flight, after whose ends a batch lets others join."""
    return max(active // 4, 1)


def rows_for(count: int, sizes: Sequence[int]) -> int:
    """The smallest of ``sizes`` that holds ``count`` requests."""
    return next(size for size in sizes if size >= count)


def coarse_sizes(sizes: Sequence[int]) -> Sequence[int]:
    """Every other of ``sizes``, the largest one included: a batch that gets smaller changes its size less often."""
    return sizes[::-2][::-1]


class RowRequest(NamedTuple):
    """A request in the form that a row of a batch needs.

    Attributes:
      prompt: its tokens.
      limit: most tokens to sample.
      temperature, top_p, seed: see ``engine.sampler.SampleRequest``.
      stops: [V] int8, see ``engine.sampling.Rows``.
      adapter: None for the base.
      stop_texts: stop texts that may cross tokens, which the host looks for; None if there are none.
      constraint: of this request's answer alone; None for any answer.
      origin: the ``engine.sampler.SampleRequest`` that it was made from.
    """

    prompt: Ids
    limit: int
    temperature: float
    top_p: float
    seed: int
    stops: np.ndarray
    adapter: LoadedAdapter | None = None
    stop_texts: StopTexts | None = None
    constraint: Constraint | None = None
    origin: Any = None

    @property
    def slots(self) -> int:
        """Most cache slots that the request can fill; the last sampled token needs none."""
        return len(self.prompt) + self.limit - 1


@dataclasses.dataclass(frozen=True)
class Admission:
    """Requests that were assigned rows; their prompts must be prefilled and written before the next step.

    Attributes:
      keys: keys of the requests.
      rows: prompt -> the rows that its keys and values go to. A prompt is without its last token, which decoding reads.
    """

    keys: list[Any]
    rows: dict[Prompt, list[int]]


class DecodeBatch(Generic[Key]):
    """Requests in flight; ``Key`` is the caller's identifier of a request."""

    def __init__(self, network: Network, params: Params, prefiller: Prefiller, blank: np.ndarray):
        """``blank``: [V] bool, tokens of white space."""
        self._network, self._params, self._prefiller, self._blank = network, params, prefiller, blank
        self._mesh, self._row_sizes = network.mesh, network.compute.decode_rows
        self._shards = prefiller.shards
        self._flights: list[Flight] = []  # by row; the rows of a shard follow each other
        self._rows: Rows | None = None
        self._cache: Cache | None = None
        self._slots = 0
        self._reserved = 0  # slots that the cache may grow to, which memory is kept for
        self._oldest: Key | None = None  # the waiting request that was passed over last
        self._passes = 0  # how often it was

    @property
    def active(self) -> list[Key]:
        """Keys of the requests in flight."""
        return [flight[0] for flight in self._flights if flight is not None]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and of slots."""
        return len(self._flights), self._slots

    def admit(self, waiting: Sequence[tuple[Key, RowRequest]], most: int) -> Admission:
        """Assigns rows to as many waiting requests as there is room for, oldest first, up to ``most`` in flight.

        A request that needs more slots than the batch may grow to waits until no other request fits, or until it has
        been passed over ``_MOST_PASSES`` times: under steady load some other request always fits.
        """
        slots = self._reserved if self.active else 0
        fitting = [(key, request) for key, request in waiting if request.slots <= slots]
        due = bool(waiting) and self._oldest == waiting[0][0] and self._passes >= _MOST_PASSES
        if waiting and (due or not fitting):
            # The size that most requests need, or that of the request that is due; smaller requests fit as well.
            wanted = [slot_bucket(request.slots) for _, request in (waiting[:1] if due else waiting)]
            slots = max(max(set(wanted), key=lambda size: (wanted.count(size), -size)), slots)
            fitting = [(key, request) for key, request in waiting if request.slots <= slots]
        room = min(most_rows(self._network.compute, slots) * self._shards, most) - len(self.active) if fitting else 0
        admitted = fitting[: max(room, 0)]
        shards = self._choose_shards([request for _, request in admitted], most_rows(self._network.compute, slots))
        if admitted:
            first = max(wanted_slots(len(request.prompt), request.limit) for _, request in admitted)
            count = max(load + shards.count(shard) for shard, load in enumerate(self._loads))
            self._resize(count, max(first, self._slots if self.active else 0))
            self._reserved = slots
            if admitted[0][0] != waiting[0][0]:
                self._passes = self._passes + 1 if self._oldest == waiting[0][0] else 1
                self._oldest = waiting[0][0]
        return self._assign_rows(admitted, shards)

    @property
    def _loads(self) -> list[int]:
        """Requests in flight in each shard."""
        return [sum(flight is not None for flight in part) for part in self._by_shard(self._flights)]

    def _by_shard(self, rows: Sequence[Flight]) -> list[Sequence[Flight]]:
        """The rows of each shard, which are contiguous."""
        size = len(rows) // self._shards
        return [rows[shard * size : (shard + 1) * size] for shard in range(self._shards)]

    def _choose_shards(self, requests: Sequence[RowRequest], most: int) -> list[int]:
        """A shard for each request: the one that runs its prompt already, or the one with the fewest requests.

        Args:
          most: most requests of a shard.
        """
        loads, chosen, shard_of = self._loads, [], {}
        for request in requests:
            prompt = request.prompt, request.adapter
            shard = shard_of.get(prompt, 0)
            if prompt not in shard_of or loads[shard] > min(loads):
                shard = loads.index(min(loads))
            assert loads[shard] < most
            shard_of[prompt] = shard
            loads[shard] += 1
            chosen.append(shard)
        return chosen

    def fit(self) -> None:
        """Gives a batch with requests in flight slots for their next tokens. Drops unneeded rows and slots only if they
        are many: every size of a batch is a program to compile."""
        flying = [(row, flight[1]) for row, flight in enumerate(self._flights) if flight is not None]
        assert flying and self._rows is not None
        limit = max(slot_bucket(request.slots) for _, request in flying)
        self._reserved = limit if MANY * limit <= self._reserved else self._reserved
        wanted = max(
            wanted_slots(len(request.prompt), request.limit, int(self._rows.count[row])) for row, request in flying
        )
        slots = self._slots if wanted <= self._slots < MANY * wanted else wanted
        sizes = coarse_sizes(self._row_sizes)
        if rows_for(max(self._loads), sizes) * self._shards < len(self._flights):
            self._resize(max(self._loads), slots, sizes)
        elif slots != self._slots:
            self._resize(len(self._flights) // self._shards, slots)

    def write(self, prefilled: Prefilled, admission: Admission) -> None:
        """Writes the keys and values of a prefill pass into the rows of admitted requests."""
        size = len(self._flights) // self._shards
        indices = np.full((self._shards, size, self._slots), np.iinfo(np.int32).max, np.int32)
        rows, counts = np.zeros((self._shards, size), np.int32), np.zeros(self._shards, np.int32)
        for prompt, in_pass in zip(prefilled.prompts, prefilled.indices, strict=True):
            for row in admission.rows.get(prompt, ()):
                target = prompt.shard, counts[prompt.shard]
                rows[target], indices[target][: len(in_pass)] = row - prompt.shard * size, in_pass
                counts[prompt.shard] += 1
        if not counts.any():
            return
        assert self._cache is not None
        cache = list(self._cache)
        where = put_shards([*zip(indices, rows, counts, strict=True)], self._mesh)
        for layer, (stored, computed) in enumerate(zip(prefilled.stored, prefilled.computed, strict=True)):
            cache[layer] = in_turn(insert(self._mesh, cache[layer], stored, computed, *where), self._mesh)
            self._cache = tuple(cache)

    def step(self, most: int = np.iinfo(np.int32).max) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        """Decodes until a quarter of the requests in flight are done, for at most ``most`` tokens or as many as there
        are slots for (``fit``); returns key, tokens and log-probs of each request that is done."""
        if self._rows is not None:
            used = self._rows.position[[flight is not None for flight in self._flights]]
            most = min(most, self._slots - int(used.max(initial=0)))
        enough = enough_done(len(self.active))
        free = len(self._flights) - len(self.active) + enough
        finished: list[tuple[Key, np.ndarray, np.ndarray]] = []
        while self.active and len(finished) < enough and most > 0:
            flying = [flight[1] for flight in self._flights if flight is not None]
            watched = any(request.stop_texts is not None for request in flying)
            constrained = any(request.constraint is not None for request in flying)
            stretch = 1 if constrained else min(most, _STOP_TOKENS) if watched else most
            assert self._rows is not None
            checked = self._rows.count
            self._decode(free, stretch, self._allowed() if constrained else None)
            self._constrain()
            finished += self._take_finished(checked)
            most -= stretch
        return finished

    def _allowed(self) -> np.ndarray:
        """[B, ceil(V / 32)] int32: the tokens that may come next in each row, a bit each."""
        allowed = np.full((len(self._flights), -(-len(self._blank) // 32)), -1, np.int32)
        for row, flight in enumerate(self._flights):
            if flight is not None and flight[1].constraint is not None:
                flight[1].constraint.fill(allowed[row])
        return allowed

    def _constrain(self) -> None:
        """Adds the new token of each row to its constraint, and removes the tokens that the constraint takes back."""
        for row, flight in enumerate(self._flights):
            if flight is None or flight[1].constraint is None:
                continue
            assert self._rows is not None
            rows, (_, request) = self._rows, flight
            token = int(rows.token[row])
            if request.stops[token] == 0 and (back := request.constraint.append(token)):  # type: ignore[union-attr]
                count = int(rows.count[row]) - back
                tokens_kept = rows.tokens[row, :count]
                rows.count[row], rows.position[row] = count, rows.position[row] - back
                rows.token[row] = tokens_kept[-1] if count else request.prompt[-1]
                rows.begun[row], rows.done[row] = bool(np.any(~self._blank[tokens_kept])), False

    def _decode(self, free: int, most: int, allowed: np.ndarray | None) -> None:
        """Decodes until ``free`` rows are done or free, or ``most`` tokens of each; ``allowed`` see ``sampling``."""
        assert self._rows is not None and self._cache is not None
        placed = place_shards(self._rows, self._mesh)
        cache, self._cache = self._cache, None  # donated
        adapters = [None if flight is None else flight[1].adapter for flight in self._flights]
        stack = self._prefiller.adapters.stack(adapters)
        gate = None if stack is None else place_shards(stack.gate(adapters), self._mesh)
        allowed = None if allowed is None else place_shards(allowed, self._mesh)
        rows, self._cache = decode(
            self._network,
            stack and stack.config,
            self._params,
            {} if stack is None else stack.params,
            gate,
            cache,
            placed,
            self._blank,
            np.int32(free),
            np.int32(most),
            allowed,
        )
        constant = {name: getattr(self._rows, name) for name in ("limits", "seeds", "temperatures", "top_p", "stops")}
        changed = fetch({name: getattr(rows, name) for name in Rows._fields if name not in constant})
        self._rows = Rows(**constant, **{name: np.array(value) for name, value in changed.items()})

    def _take_finished(self, checked: np.ndarray) -> list[tuple[Key, np.ndarray, np.ndarray]]:
        """Frees the rows that are done, or have a stop text among the tokens after the first ``checked`` [B]; returns
        key, tokens and log-probs of each."""
        assert self._rows is not None
        finished = []
        for row, flight in enumerate(self._flights):
            if flight is None:
                continue
            key, request = flight
            count, stopped = int(self._rows.count[row]), None
            if request.stop_texts is not None:
                ids = self._rows.tokens[row, :count].tolist()
                stopped = request.stop_texts.stopped_at(ids, min(int(checked[row]), count))
            if self._rows.done[row] or stopped is not None:
                count = count if stopped is None else stopped
                tokens, logprobs = self._rows.tokens[row, :count], self._rows.logprobs[row, :count]
                finished.append((key, tokens.copy(), logprobs.copy()))
                self._flights[row] = None
                self._rows.done[row] = True
        return finished

    def partial(self) -> list[tuple[Key, np.ndarray]]:
        """Key and tokens so far of each request in flight, without tokens that may be taken back."""
        rows = self._rows
        if rows is None:
            return []
        flying = [(row, *flight) for row, flight in enumerate(self._flights) if flight is not None]
        counts = {row: request.constraint.settled for row, _, request in flying if request.constraint is not None}
        return [(key, rows.tokens[row, : counts.get(row, rows.count[row])].copy()) for row, key, _ in flying]

    def drop(self, keys: Collection[Key]) -> None:
        """Frees the rows of abandoned requests."""
        for row, flight in enumerate(self._flights):
            if flight is not None and flight[0] in keys:
                assert self._rows is not None
                self._flights[row], self._rows.done[row] = None, True

    def wait(self) -> None:
        """Waits until the devices have done all that they were given."""
        jax.block_until_ready(self._cache)

    def clear(self) -> None:
        """Forgets all requests in flight and the cache."""
        self._flights, self._rows, self._cache, self._slots, self._reserved = [], None, None, 0, 0

    def _resize(self, count: int, slots: int, sizes: Sequence[int] = ()) -> None:
        """Resizes the batch to ``slots`` slots and, in each shard, the smallest of ``sizes`` (default: all) that holds
        ``count`` requests."""
        size = rows_for(count, sizes or self._row_sizes)
        if size * self._shards == len(self._flights) and slots == self._slots:
            return
        old_size = len(self._flights) // self._shards
        occupied = [
            [row for row, flight in enumerate(values) if flight is not None] for values in self._by_shard(self._flights)
        ]
        order = [np.asarray([*rows, *[old_size] * (size - len(rows))], np.int32) for rows in occupied]
        # Each old layer is freed as soon as the new one exists: two whole caches would take twice the memory.
        layers, self._cache = list(self._cache or ()) if any(occupied) else [], None
        placed = put_shards(order, self._mesh)
        for index, layer in enumerate(layers):
            layers[index] = in_turn(rearrange(self._mesh, layer, placed, slots), self._mesh)
        self._cache = tuple(layers) if any(occupied) else empty_cache(self._network, size, slots)
        # Caches of many sizes, and programs compiled for them, leave gaps between buffers in use: in a run of
        # configs/hotpotqa.py more than a GB, whose pages would stay with the process while requests keep coming.
        return_free_memory()
        moves = [
            (shard * old_size + source, shard * size + row)
            for shard, rows in enumerate(occupied)
            for row, source in enumerate(rows)
        ]
        old, self._rows = self._rows, self._empty_rows(size * self._shards, slots)
        flights: list[Flight] = [None] * (size * self._shards)
        for source, row in moves:
            assert old is not None
            flights[row] = self._flights[source]
            for name in Rows._fields:
                values = getattr(old, name)[source]
                target = getattr(self._rows, name)
                if name in ("tokens", "logprobs"):
                    count_kept = min(old.tokens.shape[1], slots)
                    target[row, :count_kept] = values[:count_kept]
                else:
                    target[row] = values
        self._flights, self._slots = flights, slots

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

    def _assign_rows(self, admitted: Sequence[tuple[Key, RowRequest]], shards: Sequence[int]) -> Admission:
        """Puts requests into free rows of their shards."""
        size = len(self._flights) // self._shards
        rows_of: dict[Prompt, list[int]] = {}
        for (key, request), shard in zip(admitted, shards, strict=True):
            row = self._flights.index(None, shard * size)
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
                rows_of.setdefault(Prompt(ids[:-1], request.adapter, shard), []).append(row)
        return Admission([key for key, _ in admitted], rows_of)
