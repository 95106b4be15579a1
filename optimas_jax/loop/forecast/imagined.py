"""A system whose answers are made up, so that the loop around it can be rehearsed without a model.

Prompts are rendered as in the run, so that they have their true length. Answers are words of their inputs, so that a
retriever finds as much with them as with true ones. Whether an answer differs from the component's first answer on an
example is drawn at random, and so is whether a different answer has a different score (``World``). Components that send
no request, such as a retriever or a choice of models, run as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimas_jax.core.component import Component, RunContext
from optimas_jax.core.scoring import metric_arguments
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, derive_seed, digest
from optimas_jax.core.values import Value
from optimas_jax.llm.agent import AgentCall
from optimas_jax.llm.base import Completion, CompletionRequest, FunctionCall, Returned
from optimas_jax.llm.component import ModelCall
from optimas_jax.llm.render import render_value
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.loop.forecast.lengths import Lengths


@dataclasses.dataclass(frozen=True)
class World:
    """Assumptions of a rehearsal.

    Attributes:
      changes: probability that an answer differs if its prompt or its value differs.
      redrawn: probability that it differs if it is drawn at a temperature above zero.
      differs: probability that a different answer has a different score.
      before, after: mean score of first answers, and of others.
      accepts: whether the best proposal of every iteration is accepted.
      usable: probability that a proposer's answer is an instruction.
      length: length of an answer, as a share of its limit.
      speed: seconds of an answer, in multiples of the expected seconds.
      lengths: tokens of some answers, where they are measured.
    """

    changes: float
    redrawn: float
    differs: float
    before: float
    after: float
    accepts: bool = False
    usable: float = 1.0
    length: float = 0.5
    speed: float = 1.0
    lengths: Lengths = dataclasses.field(default_factory=dict, hash=False)


def draw(*parts: Any) -> float:
    """A pseudo-random number in [0, 1), fixed by its arguments."""
    return int(digest(*parts)[:13], 16) / 16**13


class ImaginedSystem:
    """Makes up the answers and the scores of a system.

    Attributes:
      system: the same graph and spaces; a program becomes a chain of its components (``as_chain``).
    """

    def __init__(self, system: System, examples: Iterable[Example], seed: int, world: World):
        """``examples``: examples of all splits. ``seed``: seed of the run."""
        self._world, self._metric, self._is_noise = world, system.metric, False
        names = [component.name for component in system.components]
        self._example_of = {derive_seed(seed, e.id, name): e.id for e in examples for name in names}
        self._example_with: dict[tuple[str, str], str] = {}  # by component and inputs
        self._first_answer: dict[tuple[str, str], str] = {}  # by component and example
        self._first_outputs: dict[str, str] = {}  # their digest by that of the example
        graph = as_chain(system) if system.program is not None else system
        self._asks_judge = inspect.iscoroutinefunction(system.metric) and system.program is None
        self.system = dataclasses.replace(
            graph,
            components=tuple(self._imagined(component) for component in graph.components),
            metric=self._judge if inspect.iscoroutinefunction(system.metric) else self._score,
        )

    def _imagined(self, component: Component) -> Component:
        async def run(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
            """Outputs of the component itself if it sends no request, else made-up ones."""
            recorder = _Asked(context.completer)
            outputs = None
            with contextlib.suppress(Exception):  # a component may fail to read a made-up answer
                outputs = await component.run(fields, value, dataclasses.replace(context, completer=recorder))
            if outputs is not None and not recorder.requests:
                return outputs
            return dict.fromkeys(
                component.outputs, self._answer(component.name, fields, value, context.seed, recorder.requests)
            )

        return dataclasses.replace(component, run=run)

    def _answer(
        self,
        name: str,
        fields: Mapping[str, Any],
        value: Value | None,
        seed: int,
        requests: Sequence[CompletionRequest],
    ) -> str:
        """The answer of a component that sent these requests: its first one on the example, or another."""
        length = max((imagined_length(request, self._world) for request in requests), default=_SHORT)
        noise = any(map(is_random, requests))
        self._is_noise = self._is_noise or noise
        drawn = any(request.temperature > 0 for request in requests)
        changes = 1.0 if noise else self._world.redrawn if drawn else self._world.changes
        call = (name, digest(fields))
        example = self._example_of.get(seed) or self._example_with.get(call) or ""
        self._example_with[call] = example
        key = digest(name, fields, repr(value), seed)
        answer = made_up(" ".join(map(render_value, fields.values())), key[:6], length)
        if not example:
            return answer
        first = self._first_answer.setdefault((name, example), answer)
        return answer if draw("answer", key) < changes else first

    def _score(self, outputs: Any, example: Any) -> float:
        """The made-up score of outputs."""
        key, answer = digest(example), digest(outputs)
        first = self._first_outputs.setdefault(key, answer)
        differs = min(_NOISE, self._world.differs) if self._is_noise else self._world.differs
        same = answer == first or draw("score differs", key, answer) >= differs
        return float(
            draw("score", key) < self._world.before if same else draw("score", key, answer) < self._world.after
        )

    async def _judge(self, outputs: Any, example: Any, gold: Any, trace: Any, context: Any) -> float:
        """The made-up score of a metric that asks a model, whose requests are sent."""
        if self._asks_judge:
            arguments = {"outputs": outputs, "example": example, "gold": gold, "trace": trace, "context": context}
            with contextlib.suppress(Exception):
                await self._metric(*(arguments[name] for name in metric_arguments(self._metric)))
        return self._score(outputs, example)


def made_up(text: str, mark: str, length: int) -> str:
    """A text of ``length`` characters: the first words of ``text``, repeated if they are few, and a mark that makes it
    different from others."""
    room = max(length - len(mark) - 1, 0)
    words = " ".join(text[: 2 * room].split()) or _WORD
    return f"{(f'{words} ' * (room // len(words) + 1))[:room]} {mark}"


_NOISE = 0.1  # largest probability that a different answer has a different score, where random weights answer
_WORD = "imagined"
_CHARACTERS = 4  # of a token
_SHORT = 40  # characters of an output that no model wrote
_LONG = 200  # tokens of an answer with a limit far above its length


def imagined_tokens(request: CompletionRequest, world: World) -> int:
    """Tokens of an imagined answer: one of the measured lengths, else a share of its limit, at most the usual length of
    an answer."""
    if is_random(request):
        return request.max_tokens
    if measured := world.lengths.get((request.model, request.role)):
        return max(1, min(measured[int(draw("length", request.key) * len(measured))], request.max_tokens))
    return max(1, round(min(world.length * request.max_tokens, 2 * world.length * _LONG)))


def imagined_length(request: CompletionRequest, world: World) -> int:
    """Characters of an imagined answer: two for each token of random weights, which write bytes."""
    return imagined_tokens(request, world) * (2 if is_random(request) else _CHARACTERS)


def is_random(request: CompletionRequest) -> bool:
    """Whether a model with random weights answers: its answers always differ, and are as long as allowed."""
    return request.model.startswith("random:")


@dataclasses.dataclass
class _Asked:
    """A completer that records the requests of one call. A second request with a schema is not sent: components repeat
    a request if the answer cannot be read, and no imagined answer can be."""

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
    """A program as a graph that calls every component once, in the order of declaration; each reads the row and the
    outputs of the components before it. The true calls of a program are known only from running it, and it is not run.

    Components that ask no model of the run are functions of the user's, and are not run, either.
    """
    fields, components = list(system.input_fields), list[Component]()
    for component in system.components:
        outputs = (f"{component.name} output",)
        components.append(
            dataclasses.replace(component, inputs=tuple(fields), outputs=outputs, run=_runnable(component))
        )
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
        if not component.metered:  # it asks a model through its own client: one call, of unknown cost
            await context.completer.call(FunctionCall(digest(fields, repr(value)), component.name, _nothing))
        raise NotImplementedError  # a made-up output stands for what it returns

    return run
