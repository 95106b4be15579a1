"""A system whose answers are made up, so that the loop around it can be rehearsed without a model.

Prompts are rendered as they will be, so that they have their true length. Whether an answer differs from what the
component says by default is drawn at random, and so is whether another answer has another score (``World``). What sends
no request, a retriever or a choice of models, is run as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from optimas_jax.core.component import Component, RunContext
from optimas_jax.core.scoring import metric_arguments
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, derive_seed, digest
from optimas_jax.core.values import Value
from optimas_jax.llm.agent import AgentCall
from optimas_jax.llm.base import Completion, CompletionRequest, FunctionCall, Returned
from optimas_jax.llm.component import ModelCall
from optimas_jax.llm.sandbox import Execution, ExecutionRequest


@dataclasses.dataclass(frozen=True)
class World:
    """What a rehearsal assumes.

    Attributes:
      changes: how often an answer differs where its prompt, its value or its seed does.
      differs: how often another answer has another score.
      before, after: mean score of first answers, and of others.
      accepts: whether the best proposal of every iteration is accepted.
      usable: how often a proposer's answer is an instruction.
      length: share of its limit that an answer takes.
      speed: seconds of an answer, in multiples of what is expected.
    """

    changes: float
    differs: float
    before: float
    after: float
    accepts: bool = False
    usable: float = 1.0
    length: float = 0.5
    speed: float = 1.0


def draw(*parts: Any) -> float:
    """A number in [0, 1) that stands for its arguments."""
    return int(digest(*parts)[:13], 16) / 16**13


class ImaginedSystem:
    """Makes up the answers and the scores of a system.

    Attributes:
      system: the same graph and spaces; a program becomes a chain of its components (``as_chain``).
    """

    def __init__(self, system: System, examples: Iterable[Example], seed: int, world: World):
        """``examples``: of all splits. ``seed``: of the run."""
        self._world, self._metric, self._is_noise = world, system.metric, False
        names = [one.name for one in system.components]
        self._example_of = {derive_seed(seed, e.id, name): e.id for e in examples for name in names}
        self._example_with: dict[tuple[str, str], str] = {}  # by component and inputs
        self._first: dict[tuple[str, str], str] = {}  # by component or metric, and example: what came first
        graph = as_chain(system) if system.program is not None else system
        self._asks_judge = inspect.iscoroutinefunction(system.metric) and system.program is None
        self.system = dataclasses.replace(
            graph,
            components=tuple(self._imagined(one) for one in graph.components),
            metric=self._judge if inspect.iscoroutinefunction(system.metric) else self._score,
        )

    def _imagined(self, component: Component) -> Component:
        async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
            asked = _Asked(context.completer)
            outputs = None
            with contextlib.suppress(Exception):  # of a component that cannot read what is made up
                outputs = await component.run(fields, value, dataclasses.replace(context, completer=asked))
            if outputs is not None and not asked.requests:
                return outputs
            length = max((imagined_length(request, self._world.length) for request in asked.requests), default=_SHORT)
            noise = any(map(is_random, asked.requests))
            self._is_noise = self._is_noise or noise
            changes = 1.0 if noise else self._world.changes
            tag = self._tag(component.name, fields, value, context, changes)
            return dict.fromkeys(component.outputs, tag + _WORD * ((length - len(tag)) // len(_WORD)))

        return dataclasses.replace(component, run=run)

    def _tag(
        self, name: str, fields: Mapping[str, Any], value: Value | None, context: RunContext, changes: float
    ) -> str:
        """Stands for the example, and for whether the component's answer differs from its first one there."""
        here = (name, digest(fields))
        example = self._example_of.get(context.seed) or self._example_with.get(here) or ""
        self._example_with[here] = example
        key = digest(name, fields, repr(value), context.seed)
        first = self._first.setdefault((name, example), key) if example else key
        same = bool(example) and (key == first or draw("answer", key) >= changes)
        return f"{digest(example)[:6]}{'' if same else key[:6]}"

    def _score(self, outputs: Any, example: Any) -> float:
        """The made-up score of outputs."""
        key, given = digest(example), digest(outputs)
        first = self._first.setdefault(("metric", key), given)
        differs = min(_NOISE, self._world.differs) if self._is_noise else self._world.differs
        same = given == first or draw("score differs", key, given) >= differs
        return float(draw("score", key) < self._world.before if same else draw("score", key, given) < self._world.after)

    async def _judge(self, outputs: Any, example: Any, gold: Any, trace: Any, context: Any) -> float:
        """The same of a metric that asks a model: its requests are made."""
        if self._asks_judge:
            known = {"outputs": outputs, "example": example, "gold": gold, "trace": trace, "context": context}
            with contextlib.suppress(Exception):
                await self._metric(*(known[name] for name in metric_arguments(self._metric)))
        return self._score(outputs, example)


_NOISE = 0.1  # how often another answer has another score, where random weights answer
_WORD = " word"
_SHORT = 40  # characters of an output that no model wrote
_LONG = 200  # tokens of an answer whose limit is no guide to its length


def imagined_tokens(request: CompletionRequest, share: float) -> int:
    """Tokens of an imagined answer: a share of its limit, but of long limits not more than answers mostly take."""
    if is_random(request):
        return request.max_tokens
    return max(1, round(min(share * request.max_tokens, 2 * share * _LONG)))


def imagined_length(request: CompletionRequest, share: float) -> int:
    """Characters of the same: of random weights, which write bytes, two a token, else a word."""
    return imagined_tokens(request, share) * (2 if is_random(request) else len(_WORD))


def is_random(request: CompletionRequest) -> bool:
    """Whether random weights answer: never as before, and never shortly."""
    return request.model.startswith("random:")


@dataclasses.dataclass
class _Asked:
    """A completer that notes the requests of one call. A second request for one schema is not sent: it would say that
    the first answer cannot be read, as no imagined one can."""

    inner: Any
    requests: list[CompletionRequest] = dataclasses.field(default_factory=list)

    async def complete(self, request: CompletionRequest) -> Completion:
        if request.schema is not None and self.requests:
            raise ValueError("imagined answers are not read")
        self.requests.append(request)
        return await self.inner.complete(request)

    async def execute(self, request: ExecutionRequest) -> Execution:
        return await self.inner.execute(request)

    async def call(self, request: FunctionCall) -> Returned:
        return await self.inner.call(request)


def as_chain(system: System) -> System:
    """A program as a graph that calls every component once, in the order of declaration; each reads the row and what
    came before it. What a program really calls, only running it can tell, and it is not run.

    A component that asks no model of the run is not run, either: it is a function of the user's.
    """
    fields, components = list(system.input_fields), list[Component]()
    for one in system.components:
        outputs = (f"{one.name} output",)
        components.append(dataclasses.replace(one, inputs=tuple(fields), outputs=outputs, run=_runnable(one)))
        fields += outputs
    return dataclasses.replace(
        system, components=tuple(components), output_fields=components[-1].outputs, program=None, read_by=None
    )


async def _nothing() -> Mapping[str, Any]:
    return {}


def _runnable(component: Component) -> Any:
    """The run of a component of a program, if it only renders a request."""
    if isinstance(getattr(component.run, "__self__", None), ModelCall | AgentCall):
        return component.run

    async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        if not component.metered:  # it asks a model by a client of its own: a call, of unknown cost
            await context.completer.call(FunctionCall(digest(fields, repr(value)), component.name, _nothing))
        raise NotImplementedError  # a made-up output stands for what it returns

    return run
