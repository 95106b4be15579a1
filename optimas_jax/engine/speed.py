"""Measured speed of the engine on this machine, for a model of given sizes: no weights are needed."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.checkpoints.sources import cache_dir, resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.engine.batching import ContinuousBatch
from optimas_jax.engine.decode_batch import RowRequest
from optimas_jax.engine.memory import with_caches
from optimas_jax.engine.pool import use_compilation_cache
from optimas_jax.engine.prefill import PASS_PROMPTS, WORTH_DEALING
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.models.backbone import Network, abstract_params
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.flat import flat_tokens
from optimas_jax.parallel.platform import Compute, default_compute, free_memory, return_free_memory

TOGETHER = (1, 8, 32, 64)  # requests in flight together
LENGTHS = (128, 768)  # tokens of a prompt
_TOKENS, _CALLS = 8, 5  # tokens of a measured call, and number of calls
PROMPTS = (64, 768)  # tokens of a prompt in measured passes
_PASSES = (1, PROMPTS[0]), (8, PROMPTS[0]), (2, PROMPTS[1])  # number of prompts, and their tokens
_FEWEST = 4  # layers that are measured of a large model
_LARGEST = 1 << 30  # bytes of the weights that are measured whole; of larger models only some layers are


@dataclasses.dataclass(frozen=True)
class EngineSpeed:
    """Seconds of a model's engine.

    Attributes:
      prompt: seconds of a token of a prompt of ``PROMPTS[j]`` tokens.
      prompts: seconds of a pass over prompts, without the seconds of its tokens.
      step: seconds in which every one of ``TOGETHER[i]`` requests gets a token, after prompts of ``LENGTHS[j]`` tokens.
      load_prompts, load_step: seconds in which the program of a pass, or of a step, is loaded. Every size of a batch
        has its own.
    """

    prompt: tuple[float, ...]
    prompts: float
    step: tuple[tuple[float, ...], ...]
    load_prompts: float = 0.0
    load_step: float = 0.0

    def step_seconds(self, together: int, length: int) -> float:
        """Seconds in which every one of ``together`` requests with prompts of ``length`` tokens gets a token: linear
        between the measured numbers, and beyond them."""
        return _linear(together, TOGETHER, [_linear(length, LENGTHS, seconds) for seconds in self.step])

    def prompt_seconds(self, length: int) -> float:
        """Seconds of a token of a prompt of ``length`` tokens: linear between the measured lengths, and beyond them."""
        return _linear(length, PROMPTS, self.prompt)

    def times(self, factor: float) -> EngineSpeed:
        """The speed of a model of so many times the size; its programs take as long to load."""
        prompt = tuple(factor * value for value in self.prompt)
        step = tuple(tuple(factor * value for value in seconds) for seconds in self.step)
        return dataclasses.replace(self, prompt=prompt, prompts=factor * self.prompts, step=step)


def measure_engine(config: BackboneConfig) -> EngineSpeed:
    """Times the engine on the first device, with weights that are all equal.

    Takes about 35 s for SmolLM2-135M on two processor cores. Of a model above 1 GiB two numbers of layers are measured,
    from which the others follow.

    Raises:
      MemoryError: if these layers take more than half of the free memory.
    """
    use_compilation_cache(cache_dir() / "xla")
    of_layer = _weight_bytes(_with_layers(config, 2)) - _weight_bytes(_with_layers(config, 1))
    room = (_LARGEST - _weight_bytes(_with_layers(config, 1))) // of_layer
    depth = min(config.num_layers, max(1 + room, _FEWEST))
    check_room(_with_layers(config, depth), f"measuring {depth} of {config.num_layers} layers")
    speed = _measure(_with_layers(config, depth))
    if depth == config.num_layers:
        return speed
    half = _measure(_with_layers(config, depth // 2))
    more = (config.num_layers - depth) / (depth - depth // 2)

    def extrapolated(value: Any, at_half: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(extrapolated, value, at_half))
        return value + more * max(value - at_half, 0.0)

    return EngineSpeed(*map(extrapolated, dataclasses.astuple(speed), dataclasses.astuple(half)))


def check_room(config: BackboneConfig, what: str) -> None:
    """Raises ``MemoryError`` if a model's weights take more than half of the free memory of the first device.

    Args:
      what: needs the weights, for the message.
    """
    needed, free = _weight_bytes(config), free_memory(jax.devices()[0])
    if free is not None and needed > free / 2:
        raise MemoryError(
            f"{what} takes {needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free, half of which may be taken"
        )


def _with_layers(config: BackboneConfig, depth: int) -> BackboneConfig:
    """The model with its first layers alone."""
    kinds = config.layer_kinds[:depth]
    window = config.window if "sliding" in kinds else 0
    return dataclasses.replace(config, num_layers=depth, layer_kinds=kinds, window=window)


def _weight_bytes(config: BackboneConfig) -> int:
    shapes = abstract_params(config, default_compute())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _measure(config: BackboneConfig) -> EngineSpeed:
    network = Network(config, default_compute())
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.02, leaf.dtype), abstract_params(config, network.compute))
    # Every answer goes on to its limit: no token ends it.
    tokenizer = dataclasses.replace(load_tokenizer(resolve("random:0")), eos_ids=())
    sampler = Sampler(with_caches(network, free_memory(jax.devices()[0])), params, tokenizer)
    loads: dict[tuple[int, int], float] = {}
    step = tuple(tuple(_step_seconds(sampler, together, length, loads) for length in LENGTHS) for together in TOGETHER)
    load_step = statistics.median(loads.values())
    few, many, longer = (_pass(sampler, together, length) for together, length in _PASSES)
    # Seconds of passes are a line in their tokens; of many prompts there are several passes.
    prompt = max(many.seconds - many.count * few.seconds, 0.0) / (many.tokens - many.count * few.tokens)
    prompts = max(few.seconds - few.tokens * prompt, 0.0)
    at_long = max(longer.seconds - longer.count * prompts, 0.0) / longer.tokens
    load_prompts = statistics.median((few.load, many.load, longer.load))
    speed = EngineSpeed((prompt, at_long), prompts, step, load_prompts, load_step)
    del sampler, params
    gc.collect()  # a sampler and its caches refer to each other, and would keep the weights
    return_free_memory()
    return speed


def _step_seconds(sampler: Sampler, together: int, length: int, loads: dict[tuple[int, int], float]) -> float:
    """Seconds of a step for so many requests. They have one prompt, which is computed once.

    Args:
      loads: seconds of loading the programs of steps, by size of the batch; gets the seconds of this size if it is new.
    """
    batch, request = (
        sampler.own_batch(),
        sampler.row_request(SampleRequest(tuple(range(1, length + 1)), _TOKENS * _CALLS)),
    )
    admitted = _admit(batch, [request] * together)
    size = batch.sizes[0]
    least, load = _least([_timed(partial(batch.step, _TOKENS)) for _ in range(_CALLS - 1)])
    loads.setdefault(size, load)
    return together / admitted * least / _TOKENS  # those without room wait, and then take as long


@dataclasses.dataclass(frozen=True)
class _Passes:
    """Measured passes over prompts.

    Attributes:
      count: number of passes.
      tokens: in all, with padding.
      seconds: of all.
      load: seconds of loading their programs.
    """

    count: int
    tokens: int
    seconds: float
    load: float


def _pass(sampler: Sampler, together: int, length: int) -> _Passes:
    """Measures passes over prompts that share nothing."""
    batch, vocab, seconds = sampler.own_batch(), sampler.network.config.vocab_size, []
    for ids in np.random.default_rng((together, length)).integers(1, vocab, (_CALLS, together, length)):
        requests = [sampler.row_request(SampleRequest(tuple(map(int, prompt)), 1)) for prompt in ids]
        seconds.append(_timed(partial(_admit, batch, requests)))
        batch.step(1)  # all answers end
    least, load = _least(seconds)
    sizes = [(length - 1) * len(prompts) for prompts in passes_of([length - 1] * together, sampler.network.compute)]
    return _Passes(len(sizes), sum(map(flat_tokens, sizes)), least, load)


def passes_of(tokens: Sequence[int], compute: Compute) -> list[list[int]]:
    """Passes over prompts with so many new tokens each, as ``engine.prefill`` deals them: prompts of each pass, by
    their positions in ``tokens``."""
    passes: list[list[int]] = []
    waiting = sorted(range(len(tokens)), key=lambda prompt: -tokens[prompt])
    while waiting:
        parts: list[list[int]] = [[] for _ in range(compute.lanes)]
        sums = [0] * compute.lanes
        for prompt in waiting:
            number = sums.index(min(sums))
            fits = sums[number] + tokens[prompt] <= compute.prefill_tokens and len(parts[number]) < PASS_PROMPTS
            if fits or not any(parts):
                parts[number].append(prompt)
                sums[number] += tokens[prompt]
        chosen = [prompt for part in parts for prompt in part]
        together = sum(sums) < WORTH_DEALING and len(chosen) <= PASS_PROMPTS
        passes += [chosen] if together else [part for part in parts if part]
        waiting = [prompt for prompt in waiting if prompt not in chosen]
    return passes


def _admit(batch: ContinuousBatch[int], requests: Sequence[RowRequest]) -> int:
    """Lets requests join a batch, and waits until their prompts are computed; returns how many had room."""
    admitted = batch.admit(list(enumerate(requests)))
    batch.wait()
    return len(admitted)


def _timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _least(seconds: Sequence[float]) -> tuple[float, float]:
    """The least seconds of the calls after the first, and by how much the first one was longer: it loads or
    compiles."""
    least = min(seconds[1:])
    return least, max(seconds[0] - least, 0.0)


def _linear(x: float, at: Sequence[float], values: Sequence[float]) -> float:
    """The line through the two values around ``x``, or beyond them through the last or first two. None falls: more
    requests or longer prompts never take less time, and where they seem to, it is noise."""
    rising = np.maximum.accumulate(values)
    index = int(np.clip(np.searchsorted(at, x), 1, len(at) - 1))
    slope = (rising[index] - rising[index - 1]) / (at[index] - at[index - 1])
    return max(float(rising[index - 1] + slope * (x - at[index - 1])), 0.0)
