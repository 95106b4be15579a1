"""Components and the graph they form. A system is a pure function of (configuration, example, seed)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from optimas_jax.core import graph
from optimas_jax.core.component import Component, ComponentBug, ComponentFailure, ProgramFailure, RunContext
from optimas_jax.core.cost import Cost, Counted, side_by_side, total
from optimas_jax.core.graph import GraphError
from optimas_jax.core.objective import Objective
from optimas_jax.core.program import Recorder
from optimas_jax.core.running.arrivals import beside_programs
from optimas_jax.core.running.watch import Kind, Watch
from optimas_jax.core.scoring import Score, is_finite_score, metric_arguments, name_of, read_score, row_of, shortened
from optimas_jax.core.selection import Scorer, candidates, choose
from optimas_jax.core.text.frames import first_of, where
from optimas_jax.core.types import Call, CallKey, Example, Outcome, StopRun, Trace, derive_seed, freeze, thaw
from optimas_jax.core.values import Configuration, PerInstance, Value, check_value

Program = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]
Metric = Callable[..., Any]  # of ``core.scoring.ARGUMENTS``; a judge is ``async``


@dataclasses.dataclass
class Meter:
    """Counts executions of components, and runs (from the start or from given outputs) with at least one execution."""

    runs: int = 0
    executions: int = 0

    def reset(self) -> None:
        self.runs = self.executions = 0


@dataclasses.dataclass(frozen=True)
class System:
    """A graph of components, or a program that calls them, with a metric.

    Attributes:
      components: in any order; runs of a graph follow ``order``.
      input_fields: fields that an example provides.
      output_fields: fields that the metric reads; may be empty for a program, which then returns any fields.
      metric: a number, a number and a text, or a ``Score``, of what its arguments name (``core.scoring``); higher is
        better. A metric that asks a model or runs a program is a judge: ``async (outputs, gold, context) -> score``.
      completer: answers the components' completion requests.
      failure_score: score of a run without outputs.
      scorer: scores outputs for ``PerInstance`` values; None if no value needs it.
      meter: counts executions, or None.
      watch: watches the runs, or None.
      objective: what the cost of a run is worth; None for nothing.
      declared, code: digests of what a program is made of, by name: its prompts and settings, its functions.
      program: ``async (fields of the example) -> outputs``; calls components by ``core.program.current_scope``. None
        for a graph, which the components' fields define.
      alone: lock that a program's run holds if calls do not tell which run they belong to; None for runs side by side.
      called_after, read_by: by component, those that a program was seen to call after it, and to pass its outputs to
        (``loop.steps.observe``); None if not known, which counts as all components.

    Raises:
      GraphError: two components of one name, a field that nothing writes or two components write, a circle.

    Example:
      ```python
      from optimas_jax.llm.component import llm_component

      model = oj.LanguageModel("openai:gpt-4o-mini")
      answerer = llm_component(
          name="answerer",
          description="Answers a question.",
          inputs=("question",),
          output="answer",
          instruction="Answer with a name.",
          language_model=model,
      )

      def exact(outputs, gold):
          return float(outputs["answer"] == gold["answer"])

      system = oj.System((answerer,), ("question",), ("answer",), exact)
      ```
    """

    components: tuple[Component, ...]
    input_fields: tuple[str, ...]
    output_fields: tuple[str, ...]
    metric: Metric
    completer: Any = None
    failure_score: float = 0.0
    scorer: Scorer | None = None
    meter: Meter | None = None
    program: Program | None = None
    alone: asyncio.Lock | None = None
    called_after: Mapping[str, frozenset[str]] | None = None
    read_by: Mapping[str, frozenset[str]] | None = None
    watch: Watch | None = None
    objective: Objective | None = None
    declared: Mapping[str, str] = dataclasses.field(default_factory=dict)
    code: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.program is not None:
            names = [component.name for component in self.components]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise GraphError(f"two components of the program have the name {', '.join(map(repr, twice))}")
        elif problems := list(graph.problems(self.components, self.input_fields, self.output_fields)):
            raise GraphError("the system's graph does not hold together:\n  " + "\n  ".join(problems))
        _ = self.order  # raises on a cycle
        metric_arguments(self.metric)  # raises on unknown arguments
        if not is_finite_score(self.failure_score):
            raise GraphError(f"failure_score is {self.failure_score}, expected a finite number")

    @cached_property
    def by_name(self) -> Mapping[str, Component]:
        return {component.name: component for component in self.components}

    @cached_property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """Component -> the components of a graph that it reads from, in the order of definition."""
        if self.program is not None:
            return {component.name: () for component in self.components}
        return graph.parents(self.components)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Topological order; components that are not ordered by the graph keep the order of definition."""
        return graph.order(self.parents)

    @cached_property
    def tunable(self) -> tuple[str, ...]:
        """Names of the components with a space, in order."""
        return tuple(name for name in self.order if self.by_name[name].space is not None)

    def descendants(self, name: str) -> frozenset[str]:
        """Components that read outputs of ``name``, directly or through other components; in a program, as far as was
        observed."""
        if self.program is not None:
            return frozenset(self.order) if self.read_by is None else self.read_by.get(name, frozenset())
        descendants: set[str] = set()
        for other in self.order:
            if any(parent == name or parent in descendants for parent in self.parents[other]):
                descendants.add(other)
        return frozenset(descendants)

    @property
    def calls_once(self) -> bool:
        """Whether a run calls every component once at most."""
        return self.program is None

    def scores_at_once(self, name: str) -> bool:
        """Whether the global reward of a component's outputs needs no further call: nothing comes after the component,
        and the metric is not a judge."""
        later = self.descendants(name)
        if self.program is not None:
            later = {name} if self.called_after is None else self.called_after.get(name, {name})
        return not later and not inspect.iscoroutinefunction(self.metric)

    def default_configuration(self) -> Configuration:
        defaults = {name: self.by_name[name].default for name in self.tunable}
        return Configuration({name: value for name, value in defaults.items() if value is not None})

    def check(self, configuration: Configuration) -> None:
        """Raises ``ValueError`` naming every component whose value is missing, unknown or not allowed."""
        problems = [f"no component {name!r}" for name in configuration if name not in self.tunable]
        for name in self.tunable:
            try:
                space = self.by_name[name].space
                assert space is not None  # what makes a component tunable
                check_value(space, configuration.get(name))
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("configuration does not fit the system:\n  " + "\n  ".join(problems))

    def using(self, completer: Any) -> System:
        """The same system with its requests going to ``completer``."""
        return dataclasses.replace(self, completer=completer)

    def kept(self, trace: Trace, *changed: str) -> dict[CallKey, Call]:
        """The argument ``given`` of ``run`` for running ``trace`` again, with its seed, after the values of the
        ``changed`` components were changed: the calls of all other components, which keep their outputs where their
        inputs stay the same."""
        return {call.key: call for call in trace.calls if call.component not in changed}

    def followed(self, trace: Trace, answers: Mapping[int, Call | Mapping[str, Any]], seed: int) -> dict[CallKey, Call]:
        """The argument ``given`` of ``run`` for following other outputs of some calls of ``trace`` to their end.

        Calls before the first of these are kept. Later calls are kept where their inputs stay the same, if the run has
        the seed of ``trace``; with another seed they are drawn anew.

        Args:
          answers: by index of the call in ``trace.calls``: its other outputs, or a call to put in its place, which may
            have failed.
          seed: of the run.
        """
        first, given = min(answers), {}
        for index, call in enumerate(trace.calls):
            if index in answers and (index == first or seed == trace.seed):
                given[call.key] = _answered(call, answers[index])
            elif index < first or seed == trace.seed:
                given[call.key] = call
        return given

    async def run(
        self, configuration: Configuration, example: Example, seed: int, given: Mapping[CallKey, Call] | None = None
    ) -> Trace:
        """Runs the system on one example; independent branches run concurrently.

        Args:
          configuration: value per tunable component.
          example: provides the input fields; its gold fields go to the metric only.
          seed: names all randomness of the run. Each component draws from its own derived seed, so that a change of
            one value does not change the random numbers of another component.
          given: calls with known outputs (``kept``, ``followed``), which are not executed.

        Raises:
          GraphError: if the example lacks an input field.
          ComponentBug: if a component or the metric raises another exception than ``ComponentFailure``.
          TooManyFailures: exceptions ended this run and too many before it (``core.running.watch``).
        """
        missing = [field for field in self.input_fields if field not in example.inputs]
        if missing:
            raise GraphError(
                f"example {example.id!r} lacks input field {', '.join(missing)}; it has {[*example.inputs]}"
            )

        counted, detail = False, ""

        async def execute(name: str, inputs: Mapping[str, Any], repeat: int) -> Call:
            nonlocal counted
            if self.meter is not None and not counted:
                self.meter.runs += 1
            counted = True
            call = Call(name, inputs, {}, repeat=repeat)
            return await self.run_component(call, configuration.get(name), example, seed)

        inputs = {field: example.inputs[field] for field in self.input_fields}
        components = {name: self.by_name[name] for name in self.order}
        recorder = Recorder(execute, given or {}, components, freeze(inputs), configuration)
        if self.program is None:
            fields = await self._run_graph(recorder, inputs)
            seconds = self._seconds(recorder.calls)
            outcome = next((call.outcome for call in recorder.calls if call.outcome is not Outcome.OK), Outcome.OK)
        else:
            async with self.alone or contextlib.nullcontext():
                fields, outcome, detail = await self._run_program(recorder, inputs, example.id, self.program)
                seconds = recorder.seconds
        if outcome is Outcome.OK and any(field not in fields for field in self.output_fields):
            outcome = Outcome.CRASHED
        if outcome is not Outcome.OK:
            trace = Trace(example.id, seed, recorder.calls, freeze({}), outcome, self.failure_score, detail)
        else:
            names = self.output_fields or tuple(fields)  # a program may return what it likes
            outputs = freeze({field: fields[field] for field in names})
            trace = await self._scored(Trace(example.id, seed, recorder.calls, outputs, outcome, 0.0), example)
        trace = self._with_cost(trace, seconds)
        if self.watch is not None and not given:  # runs that follow other outputs of a call do not count
            self.watch.ended(trace, configuration)
        return trace

    def _with_cost(self, trace: Trace, seconds: float) -> Trace:
        cost = dataclasses.replace(total(call.cost for call in trace.calls), seconds=seconds)
        penalty = 0.0 if self.objective is None else self.objective.penalty(cost)
        return dataclasses.replace(trace, cost=cost, penalty=penalty)

    def _seconds(self, calls: Sequence[Call]) -> float:
        """Seconds of the longest chain of a graph's calls: each begins when its parents have ended."""
        ends: dict[str, float] = {}
        for call in calls:
            begin = max((ends.get(parent, 0.0) for parent in self.parents[call.component]), default=0.0)
            ends[call.component] = begin + call.cost.seconds
        return max(ends.values(), default=0.0)

    async def _run_graph(self, recorder: Recorder, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Calls every component when its parents have ended; returns all fields."""
        fields = dict(inputs)

        async def call(position: int, name: str, parents: Sequence[asyncio.Task[None]]) -> None:
            """Waits for the component's parents, calls it, and adds its fields."""
            for parent in parents:
                await parent
            component = self.by_name[name]
            if all(field in fields for field in component.inputs):  # else an ancestor failed
                inputs = freeze({field: fields[field] for field in component.inputs})
                fields.update((await recorder.call(name, inputs, (position,))).outputs)

        tasks: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            for position, name in enumerate(self.order):
                tasks[name] = group.create_task(call(position, name, [tasks[parent] for parent in self.parents[name]]))
        return fields

    async def _run_program(
        self, recorder: Recorder, inputs: Mapping[str, Any], example_id: str, program: Program
    ) -> tuple[Mapping[str, Any], Outcome, str]:
        """Runs the program on an example; returns its fields, its outcome, and the reason if it failed itself. A
        component's failure that the program does not catch gives the outcome.

        Raises:
          ComponentBug: it raises anything else.
        """

        async def run() -> Mapping[str, Any]:
            try:
                return await program(thaw(inputs))
            except (ComponentFailure, StopRun):
                raise
            except Exception as group:
                error = first_of(group)
                if isinstance(error, ComponentFailure | StopRun):
                    raise error from error.__cause__
                raise ComponentBug(
                    f"the program raised {type(error).__name__} on example {example_id!r}: {error}{where(error)}"
                ) from error

        try:
            with self._waiting("program", ""):
                return await recorder.run(run), Outcome.OK, ""
        except ProgramFailure as failure:
            return {}, failure.outcome, failure.detail
        except ComponentFailure as failure:
            return {}, failure.outcome, ""

    def _waiting(self, kind: Kind, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.watch is None else self.watch.waiting(kind, name)

    async def run_component(
        self, call: Call, value: Value | None, example: Example, seed: int, temperature: float | None = None
    ) -> Call:
        """Runs one component on the inputs of a call; with the same seed it draws the same numbers as in ``run``.

        Args:
          seed: of the run.
          temperature: in place of the component's own, or None.
        """
        parts = (call.repeat,) if call.repeat else ()
        drawn = derive_seed(seed, example.id, call.component, *parts)
        return await self._execute(call, value, example.id, drawn, temperature)

    async def _execute(
        self, call: Call, value: Value | None, example_id: str, seed: int, temperature: float | None = None
    ) -> Call:
        if isinstance(value, PerInstance):
            return await self._select(call, value, example_id, seed, temperature)
        if self.meter is not None:
            self.meter.executions += 1
        component = self.by_name[call.component]
        costs: list[Cost] = []
        context = RunContext(Counted(self.completer, costs), seed, component.name, temperature, costs=costs)
        try:
            with self._waiting("request" if component.ends else "component", component.name):
                outputs = await component.run(thaw(call.inputs), value, context)
        except ComponentFailure as failure:
            thought = _thoughts(context)
            return dataclasses.replace(
                call,
                outputs=freeze({}),
                outcome=failure.outcome,
                detail=failure.detail,
                reasoning=thought,
                cost=total(costs),
            )
        except StopRun as error:
            error.add_note(f"while component {component.name!r} ran on example {example_id!r}")
            raise
        except Exception as error:
            raise ComponentBug(
                f"component {component.name!r} raised {type(error).__name__} on example {example_id!r}: {error}"
                f"{where(error)}"
            ) from error
        if not isinstance(outputs, Mapping):  # without a ``return`` it is None
            raise ComponentBug(
                f"component {component.name!r} returned {type(outputs).__name__} on example {example_id!r}, expected a "
                f"mapping with the fields {sorted(component.outputs)}"
            )
        if self.program is None and set(outputs) != set(component.outputs):
            raise ComponentBug(
                f"component {component.name!r} returned fields {sorted(outputs)} on example {example_id!r}, "
                f"declared are {sorted(component.outputs)}"
            )
        detail, thought = "; ".join(dict.fromkeys(context.cuts)), _thoughts(context)
        ended = {"outcome": Outcome.OK, "detail": detail, "reasoning": thought, "cost": total(costs)}
        return dataclasses.replace(call, outputs=freeze(outputs), **ended)

    async def _select(
        self, call: Call, value: PerInstance, example_id: str, seed: int, temperature: float | None
    ) -> Call:
        """Runs every candidate and selects one that succeeded, or the first one if all failed. The cost covers all
        candidates."""
        name = call.component
        if self.scorer is None:
            raise StopRun(
                f"component {name!r} chooses its output by the local reward {value.reward!r}, and this system has no "
                "scorer that computes it: set System.scorer"
            )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._execute(call, candidate, example_id, sample_seed, hotter))
                for candidate, sample_seed, hotter in candidates(value, seed, temperature)
            ]
        cost = side_by_side(task.result().cost for task in tasks)
        results = [dataclasses.replace(task.result(), cost=cost) for task in tasks]
        succeeded = [result for result in results if result.outcome is Outcome.OK]
        if not succeeded:
            return results[0]
        outputs = [result.outputs for result in succeeded]
        if all(fields == outputs[0] for fields in outputs):
            return succeeded[0]
        scores = await self.scorer.scores(name, example_id, call.inputs, outputs, value.reward)
        return succeeded[choose(scores, value.mode, seed)]

    async def score(self, outputs: Mapping[str, Any], example: Example, seed: int, trace: Trace | None = None) -> Score:
        """The metric's score of outputs.

        Raises:
          MetricError: it returned no finite score.
          Exception: what the metric raises.
        """
        known: dict[str, Callable[[], Any]] = {
            "outputs": lambda: thaw(outputs),
            "gold": lambda: thaw(example.gold),
            "example": lambda: thaw(row_of(example)),
            "trace": lambda: trace,
            "context": lambda: RunContext(self.completer, derive_seed(seed, example.id, "metric"), "metric"),
        }
        with self._waiting("metric", name_of(self.metric)), beside_programs():
            returned = self.metric(*(known[name]() for name in metric_arguments(self.metric)))
            if inspect.isawaitable(returned):
                returned = await returned
        return read_score(returned, name_of(self.metric), outputs, example)

    async def _scored(self, trace: Trace, example: Example) -> Trace:
        """The trace of a run with outputs, and its score."""
        try:
            score = await self.score(trace.outputs, example, trace.seed, trace)
        except ComponentFailure as failure:  # a judge's model or tool gave no usable answer
            return dataclasses.replace(
                trace, outputs=freeze({}), outcome=failure.outcome, score=self.failure_score, feedback=failure.detail
            )
        except StopRun:
            raise
        except Exception as error:
            raise ComponentBug(
                f"the metric {name_of(self.metric)!r} raised {type(error).__name__} on example {example.id!r}: {error}"
                f"{where(error)}; outputs {shortened(trace.outputs)}, gold {shortened(example.gold)}"
            ) from error
        return dataclasses.replace(trace, score=score.value, feedback=score.feedback, parts=score.parts)


def _thoughts(context: RunContext) -> str:
    return "\n\n".join(context.notes)


def _answered(call: Call, answer: Call | Mapping[str, Any]) -> Call:
    """A call with another answer: outputs, or a call that may have failed in its own way."""
    if isinstance(answer, Call):
        fields = {name: getattr(answer, name) for name in ("outputs", "outcome", "detail", "reasoning", "cost")}
        return dataclasses.replace(call, **fields)
    if not answer and call.outcome is not Outcome.OK:
        return call
    return dataclasses.replace(call, outputs=answer, outcome=Outcome.OK if answer else Outcome.PARSE_ERROR)
