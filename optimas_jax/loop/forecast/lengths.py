"""Lengths of answers: local models that are on this machine answer the first requests of a rehearsal."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import gc
from collections.abc import Mapping, Sequence

import numpy as np

from optimas_jax.checkpoints.weights import is_here
from optimas_jax.core.progress import Progress
from optimas_jax.core.running import event_loop
from optimas_jax.engine.pool import Engines
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import EngineError, LocalCompleter
from optimas_jax.loop.forecast.rates import Counter, Waits
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.parallel.platform import return_free_memory

Lengths = Mapping[tuple[str, str], float]  # by model and role: tokens of an answer, as a share of its limit

_EACH = 8  # requests of each role that are answered
_SECONDS = 60.0  # estimated seconds of answers above which none is asked for


@dataclasses.dataclass
class FirstRequests:
    """The first requests of each role and local model."""

    kept: dict[tuple[str, str], list[CompletionRequest]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )

    def see(self, request: CompletionRequest) -> None:
        """Keeps a request, unless its role has enough, or it asks for an adapter, which no plan has."""
        requests = self.kept[request.model, request.role]
        if len(requests) < _EACH and not request.adapter:
            requests.append(request)

    def of(self, model: str) -> list[CompletionRequest]:
        """The requests of one model."""
        return [request for (name, _), requests in self.kept.items() if name == model for request in requests]


def measure_lengths(
    first: FirstRequests, models: Sequence[str], count: Counter, waits: Waits, progress: Progress
) -> tuple[Lengths, tuple[str, ...]]:
    """Asks local models for answers and counts their tokens.

    Args:
      first: requests of a rehearsal. Their prompts are the run's, except that outputs of other components in them are
        made up.
      models: whose weights are loaded if they are on this machine, one after another.
      count, waits: of tokens of a prompt, and of seconds; a model that would take too long is not asked.

    Returns:
      The mean lengths; and a sentence for each model whose lengths were not measured.
    """
    lengths: dict[tuple[str, str], float] = {}
    unknown = []
    for model in models:
        requests = first.of(model)
        if not requests:
            continue
        tokens = [count(request) for request in requests]
        seconds = sum(
            waits.seconds(request, prompt, request.max_tokens, len(requests), max(tokens))
            for request, prompt in zip(requests, tokens, strict=True)
        )
        if not is_here(model):
            reason = "its weights are not on this machine"
        elif seconds > _SECONDS:
            reason = f"a few answers would take {seconds:.0f} s"
        else:
            progress.line(f"asking {model} for {len(requests)} answers")
            reason = _measure(model, requests, lengths, progress)
        if reason:
            unknown.append(f"lengths of answers of {model} are assumed: {reason}")
    return lengths, tuple(unknown)


def _measure(
    model: str, requests: Sequence[CompletionRequest], lengths: dict[tuple[str, str], float], progress: Progress
) -> str:
    """Adds the mean lengths of a model's answers; returns why there are none, or ""."""
    engines = Engines(MeshConfig(1), progress)
    completer = LocalCompleter(model, functools.partial(engines.sampler, model))
    shares = collections.defaultdict(list)
    try:
        for request, share in zip(requests, event_loop.run(_shares(completer, requests)), strict=True):
            shares[request.model, request.role].append(share)
    except (EngineError, MemoryError, RuntimeError) as error:  # the latter is JAX's, on a device without memory
        return str(error)
    finally:
        completer.close()
        del completer, engines
        gc.collect()  # a sampler and its caches refer to each other, and would keep the weights
        return_free_memory()
    lengths.update({key: float(np.mean(values)) for key, values in shares.items()})
    return ""


async def _shares(completer: LocalCompleter, requests: Sequence[CompletionRequest]) -> list[float]:
    answers = await asyncio.gather(*map(completer.complete, requests))
    return [answer.completion_tokens / request.max_tokens for answer, request in zip(answers, requests, strict=True)]
