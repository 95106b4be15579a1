"""Lengths of answers: local models that are on this machine answer the first requests of a rehearsal."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import gc
from collections.abc import Mapping, Sequence

from optimas_jax.checkpoints.sources import is_here
from optimas_jax.core.progress import Progress
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import StopRun
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.speed import EngineSpeed, check_room
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.loop.forecast.rates import Counter, sizes_of
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.parallel.platform import return_free_memory

Lengths = Mapping[tuple[str, str], tuple[int, ...]]  # by model and role: tokens of some answers

_EACH = 8  # requests of each role that are answered
_SECONDS = 60.0  # estimated seconds of answers above which none is asked for
# Whatever keeps a model from answering; RuntimeError is JAX's, on a device without memory.
_FAULTS = (StopRun, ValueError, OSError, MemoryError, RuntimeError)


@dataclasses.dataclass
class FirstRequests:
    """The first requests of each model and role."""

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
    first: FirstRequests,
    models: Sequence[str],
    count: Counter,
    speeds: Mapping[str, EngineSpeed],
    progress: Progress,
) -> tuple[Lengths, tuple[str, ...]]:
    """Asks local models for answers and counts their tokens.

    Args:
      first: requests of a rehearsal. Their prompts are the run's, except that outputs of other components in them are
        made up.
      models: loaded one after another, on one device, if their weights are on this machine.
      count: counts the tokens of a prompt.
      speeds: of the models; one that would take too long is not asked.

    Returns:
      The lengths; and a sentence for each model some of whose lengths were not measured.
    """
    lengths: dict[tuple[str, str], tuple[int, ...]] = {}
    unknown = []
    for model in models:
        requests = first.of(model)
        reason = _reason_against(model, requests, count, speeds.get(model)) if requests else ""
        if requests and not reason:
            progress.line(f"asking {model} for {len(requests)} answers")
            measured, reason = _measure(model, requests, progress)
            lengths |= measured
        if reason:
            unknown.append(f"lengths of answers of {model} are assumed: {reason}")
    return lengths, tuple(unknown)


def _reason_against(
    model: str, requests: Sequence[CompletionRequest], count: Counter, speed: EngineSpeed | None
) -> str:
    """Why a model is not asked, or ""."""
    if speed is None:
        return "its speed is not known"
    try:
        config = sizes_of(model)
        if config is None or not is_here(model):
            return "it is not on this machine, or a model of the hub, which may have changed"
        check_room(config, "loading it")
        tokens = [count(request) for request in requests]
    except _FAULTS as error:
        return str(error)
    steps = max(request.max_tokens for request in requests)
    seconds = sum(size * speed.prompt_seconds(size) for size in tokens) + steps * speed.step_seconds(
        len(requests), max(tokens)
    )
    return f"a few answers would take {seconds:.0f} s" if seconds > _SECONDS else ""


def _measure(model: str, requests: Sequence[CompletionRequest], progress: Progress) -> tuple[Lengths, str]:
    """The lengths of a model's answers; and why some have none, or ""."""
    engines = Engines(MeshConfig(1), progress)
    completer = LocalCompleter(model, functools.partial(engines.sampler, model))
    tokens, fault = collections.defaultdict(list), ""
    try:
        completer.sampler()  # a model that cannot be loaded fails once, not for every request
        for request, answer in zip(requests, event_loop.run(_answers(completer, requests)), strict=True):
            if isinstance(answer, int):
                tokens[request.model, request.role].append(answer)
            else:
                fault = fault or f"{request.role}: {answer}"
    except _FAULTS as error:
        fault = str(error)
    finally:
        completer.close()
        del completer, engines
        gc.collect()  # a sampler and its caches refer to each other, and would keep the weights
        return_free_memory()
    return {key: tuple(values) for key, values in tokens.items()}, fault


async def _answers(completer: LocalCompleter, requests: Sequence[CompletionRequest]) -> list[int | BaseException]:
    """Tokens of each answer, or its error."""

    async def tokens(request: CompletionRequest) -> int:
        return (await completer.complete(request)).completion_tokens

    return await asyncio.gather(*map(tokens, requests), return_exceptions=True)
