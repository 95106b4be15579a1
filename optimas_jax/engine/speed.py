"""Measured speed of the engine on this machine, for a model of given sizes: no weights are needed."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import cache_dir, resolve
from optimas_jax.engine.memory import with_caches
from optimas_jax.engine.pool import use_compilation_cache
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.models.backbone import Network, abstract_params
from optimas_jax.models.config import BackboneConfig
from optimas_jax.parallel.platform import default_compute, free_memory, return_free_memory

TOGETHER = (1, 8, 32, 64)  # requests in flight together
LENGTHS = (128, 768)  # tokens of a prompt
_TOKENS, _CALLS = 8, 5  # tokens of a measured call, and number of calls
_FEWEST = 4  # layers that are measured of a large model
_LARGEST = 1 << 30  # bytes of the weights that are measured whole; of larger models only some layers are


@dataclasses.dataclass(frozen=True)
class EngineSpeed:
    """Seconds of a model's engine.

    Attributes:
      prompt: seconds of a token of a prompt.
      step: seconds in which every one of ``TOGETHER[i]`` requests gets a token, after prompts of ``LENGTHS[j]`` tokens.
    """

    prompt: float
    step: tuple[tuple[float, ...], ...]

    def step_seconds(self, together: int, length: int) -> float:
        """Seconds in which every one of ``together`` requests with prompts of ``length`` tokens gets a token: linear
        between the measured numbers, and beyond them."""
        return _linear(together, TOGETHER, [_linear(length, LENGTHS, seconds) for seconds in self.step])

    def times(self, factor: float) -> EngineSpeed:
        """The speed of a model of so many times the size."""
        return EngineSpeed(
            factor * self.prompt, tuple(tuple(factor * value for value in seconds) for seconds in self.step)
        )


def measure_engine(config: BackboneConfig) -> EngineSpeed:
    """Times the engine on the first device, with weights that are all equal.

    Takes about 10 s for SmolLM2-135M on two processor cores, and three times as long before its programs are in the
    compilation cache. Of a model above 1 GiB two numbers of layers are measured, from which the others follow.

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

    def extrapolated(value: float, at_half: float) -> float:
        return value + more * max(value - at_half, 0.0)

    steps = zip(speed.step, half.step, strict=True)
    return EngineSpeed(
        extrapolated(speed.prompt, half.prompt),
        tuple(tuple(map(extrapolated, *seconds)) for seconds in steps),
    )


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
    step = tuple(tuple(_step_seconds(sampler, together, length) for length in LENGTHS) for together in TOGETHER)
    speed = EngineSpeed(_prompt_seconds(sampler), step)
    del sampler, params
    gc.collect()  # a sampler and its caches refer to each other, and would keep the weights
    return_free_memory()
    return speed


def _step_seconds(sampler: Sampler, together: int, length: int) -> float:
    """Seconds of a step for so many requests. They have one prompt, which is computed once."""
    batch, request = sampler.batch(), sampler.row_request(SampleRequest(tuple(range(1, length + 1)), _TOKENS * _CALLS))
    admitted = len(batch.admit([(number, request) for number in range(together)]))
    seconds = _seconds([lambda: batch.step(_TOKENS)] * (_CALLS - 1))
    return together / admitted * min(seconds[1:]) / _TOKENS  # those without room wait, and then take as long


def _prompt_seconds(sampler: Sampler) -> float:
    """Seconds of a token of prompts that share nothing."""
    together, length = TOGETHER[1], LENGTHS[0]
    ids = np.random.default_rng(0).integers(1, sampler.network.config.vocab_size, (_CALLS, together, length))
    batches = [[SampleRequest(tuple(map(int, prompt)), 1) for prompt in batch] for batch in ids]
    seconds = _seconds([partial(sampler.generate, batch) for batch in batches])
    return min(seconds[1:]) / (together * length)


def _seconds(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each call; the first one compiles."""
    seconds = []
    for call in calls:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _linear(x: float, at: Sequence[float], values: Sequence[float]) -> float:
    """The line through the two values around ``x``, or beyond them through the last or first two. None falls: more
    requests or longer prompts never take less time, and where they seem to, it is noise."""
    rising = np.maximum.accumulate(values)
    index = int(np.clip(np.searchsorted(at, x), 1, len(at) - 1))
    slope = (rising[index] - rising[index - 1]) / (at[index] - at[index - 1])
    return max(float(rising[index - 1] + slope * (x - at[index - 1])), 0.0)
