"""Components and the graph they form. A system is a pure function of (configuration, example, seed)."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

from optimas_jax.core import graph
from optimas_jax.core.graph import GraphError
from optimas_jax.core.selection import Scorer, candidates, choose
from optimas_jax.core.types import Example, Outcome, Step, StopRun, Trace, derive_seed, freeze
from optimas_jax.core.values import Configuration, PerInstance, Space, Value, check_value

T = TypeVar("T")


class ComponentFailure(Exception):
    """Raised by a component whose model or tool did not deliver: becomes an outcome, not a crash."""

    def __init__(self, outcome: Outcome, detail: str = ""):
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail = outcome, detail


class ComponentBug(RuntimeError):
    """A component, or the metric, raised something unforeseen: stops the run at once."""


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What a component knows besides its inputs and value.

    Attributes:
      completer: answers completion requests (``llm.base.Completer``); opaque to ``core``.
      seed: this component's own seed in this run.
      component: its name, which it passes on as the role of its requests.
      temperature: sampling temperature asked for instead of the component's own, or None.
    """

    completer: Any
    seed: int
    component: str
    temperature: float | None = None


@dataclasses.dataclass
class Meter:
    """What a system did: executions of components, and runs that had any, from the start or from given outputs."""

    runs: int = 0
    executions: int = 0

    def reset(self) -> None:
        self.runs = self.executions = 0


RunFunction = Callable[[Mapping[str, Any], Value | None, RunContext], Awaitable[Mapping[str, Any]]]
Metric = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
Judge = Callable[[Mapping[str, Any], Mapping[str, Any], RunContext], Awaitable[float]]


@dataclasses.dataclass(frozen=True)
class Component:
    """A named node.

    Attributes:
      name: unique in the system.
      description: one sentence on what it is for; proposers and local reward functions read it.
      inputs: names of the fields it reads: system inputs or other components' outputs.
      outputs: names of the fields it makes.
      run: ``async (inputs, value, context) -> outputs``; raises ``ComponentFailure`` for a malformed answer.
      space: what may be tuned, or None.
      default: its value before optimisation; None if and only if there is no space.
    """

    name: str
    description: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: RunFunction
    space: Space | None = None
    default: Value | None = None

    def __post_init__(self) -> None:
        if self.space is None and self.default is not None:
            raise GraphError(f"component {self.name!r} has a default value but no space to check it against")
        if self.space is not None:
            try:
                self.space.check(self.default)
            except ValueError as error:
                raise GraphError(f"default value of component {self.name!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class System:
    """A graph of components with a metric.

    Attributes:
      components: in any order; runs follow ``order``.
      input_fields: fields that an example provides.
      output_fields: fields that the metric reads.
      metric: ``(outputs, gold) -> score``, higher is better. One that has to ask a model or run a program is a judge:
        ``async (outputs, gold, context) -> score``, whose requests are completions like any other.
      completer: what components' completion requests go to.
      failure_score: score of a run without outputs.
      scorer: scores outputs for ``PerInstance`` values; a system without one cannot run them.
      meter: counts what is run, or None.
    """

    components: tuple[Component, ...]
    input_fields: tuple[str, ...]
    output_fields: tuple[str, ...]
    metric: Metric | Judge
    completer: Any = None
    failure_score: float = 0.0
    scorer: Scorer | None = None
    meter: Meter | None = None

    def __post_init__(self) -> None:
        problems = list(graph.problems(self.components, self.input_fields, self.output_fields))
        if problems:
            raise GraphError("the system's graph does not hold together:\n  " + "\n  ".join(problems))
        _ = self.order  # raises on a cycle

    @cached_property
    def by_name(self) -> Mapping[str, Component]:
        return {component.name: component for component in self.components}

    @cached_property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """Component -> the components it reads from, in the order of definition."""
        return graph.parents(self.components)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Topological order; components that could swap keep the order of definition."""
        return graph.order(self.parents)

    @cached_property
    def tunable(self) -> tuple[str, ...]:
        """Names of the components with a space, in order."""
        return tuple(name for name in self.order if self.by_name[name].space is not None)

    def descendants(self, name: str) -> frozenset[str]:
        """Components that read, directly or not, what ``name`` makes."""
        found: set[str] = set()
        for other in self.order:
            if any(parent == name or parent in found for parent in self.parents[other]):
                found.add(other)
        return frozenset(found)

    def scores_at_once(self, name: str) -> bool:
        """Whether the global reward of a component's outputs is known without another call: nothing is behind it, and
        the metric is no judge."""
        return not self.descendants(name) and not inspect.iscoroutinefunction(self.metric)

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

    def kept(
        self, trace: Trace, changed: str, outputs: Mapping[str, Any] | None = None
    ) -> dict[str, Mapping[str, Any]]:
        """The ``given`` that re-runs a trace after a change at one component.

        Args:
          trace: a run before the change.
          changed: the component whose value changes, or whose output is replaced.
          outputs: the replacing output; None to run the component again.

        Returns:
          outputs of everything that does not depend on the change.
        """
        rerun = self.descendants(changed) | {changed}
        given = {name: step.outputs for name, step in trace.steps.items() if name not in rerun and step.outputs}
        if outputs is not None:
            given[changed] = outputs
        return given

    async def run(
        self,
        configuration: Configuration,
        example: Example,
        seed: int,
        given: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Trace:
        """Runs the system on one example; independent branches run concurrently.

        Args:
          configuration: value per tunable component.
          example: provides the input fields; its gold fields go to the metric only.
          seed: names all randomness of the run. Each component draws from its own derived seed, so that a change of
            one value does not change the random numbers of another component.
          given: outputs already known, by component; those components are not executed.

        Raises:
          GraphError: if the example lacks an input field.
          ComponentBug: if a component or the metric raises anything but ``ComponentFailure``.
        """
        given = given or {}
        if self.meter is not None and any(name not in given for name in self.order):
            self.meter.runs += 1
        missing = [field for field in self.input_fields if field not in example.inputs]
        if missing:
            raise GraphError(
                f"example {example.id!r} lacks input field {', '.join(missing)}; it has {[*example.inputs]}"
            )
        steps: dict[str, Step] = {}
        fields: dict[str, Any] = {field: example.inputs[field] for field in self.input_fields}

        async def execute(name: str, after: Sequence[asyncio.Task[None]]) -> None:
            for parent in after:
                await parent
            component = self.by_name[name]
            if any(field not in fields for field in component.inputs):
                return  # a component before this one failed
            inputs = freeze({field: fields[field] for field in component.inputs})
            if name in given:
                step = Step(inputs, freeze(given[name]))
            else:
                own_seed = derive_seed(seed, example.id, name)
                step = await self._execute(component, inputs, configuration.get(name), example.id, own_seed)
            steps[name] = step
            fields.update(step.outputs)

        tasks: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            for name in self.order:
                tasks[name] = group.create_task(execute(name, [tasks[parent] for parent in self.parents[name]]))
        return await self._finish(example, seed, {name: steps[name] for name in self.order if name in steps}, fields)

    async def run_component(
        self,
        name: str,
        inputs: Mapping[str, Any],
        value: Value | None,
        example: Example,
        seed: int,
        temperature: float | None = None,
    ) -> Step:
        """Runs one component on given inputs; with the same seed it draws the same numbers as within ``run``.

        Args:
          temperature: asked for instead of the component's own (candidate outputs are sampled hotter).
        """
        own_seed = derive_seed(seed, example.id, name)
        return await self._execute(self.by_name[name], freeze(inputs), value, example.id, own_seed, temperature)

    async def _execute(
        self,
        component: Component,
        inputs: Mapping[str, Any],
        value: Value | None,
        example_id: str,
        seed: int,
        temperature: float | None = None,
    ) -> Step:
        if isinstance(value, PerInstance):
            return await self._select(component, inputs, value, example_id, seed, temperature)
        if self.meter is not None:
            self.meter.executions += 1
        context = RunContext(self.completer, seed, component.name, temperature)
        try:
            outputs = await component.run(inputs, value, context)
        except ComponentFailure as failure:
            return Step(inputs, freeze({}), failure.outcome, failure.detail)
        except StopRun as error:
            error.add_note(f"while component {component.name!r} ran on example {example_id!r}")
            raise
        except Exception as error:
            raise ComponentBug(
                f"component {component.name!r} raised {type(error).__name__} on example {example_id!r}: {error}"
            ) from error
        if set(outputs) != set(component.outputs):
            raise ComponentBug(
                f"component {component.name!r} returned fields {sorted(outputs)} on example {example_id!r}, "
                f"declared are {sorted(component.outputs)}"
            )
        return Step(inputs, freeze(outputs))

    async def _select(
        self,
        component: Component,
        inputs: Mapping[str, Any],
        value: PerInstance,
        example_id: str,
        seed: int,
        temperature: float | None,
    ) -> Step:
        """Runs every candidate and keeps one. One that failed is kept only where all did."""
        if self.scorer is None:
            raise StopRun(
                f"component {component.name!r} chooses its output by the local reward {value.reward!r}, and this "
                "system has nothing that computes it: give it one (System.scorer)"
            )
        async with asyncio.TaskGroup() as group:
            tries = [
                group.create_task(self._execute(component, inputs, one, example_id, own_seed, asked))
                for one, own_seed, asked in candidates(value, seed, temperature)
            ]
        steps = [step for step in (one.result() for one in tries) if step.outcome is Outcome.OK]
        if not steps:
            return tries[0].result()
        outputs = [step.outputs for step in steps]
        if all(made == outputs[0] for made in outputs):
            return steps[0]
        scores = await self.scorer.scores(component.name, inputs, outputs, value.reward)
        return steps[choose(scores, value.mode, seed)]

    async def score(self, outputs: Mapping[str, Any], example: Example, seed: int) -> float:
        """What the metric says of outputs; raises what it raises."""
        if not inspect.iscoroutinefunction(self.metric):
            return float(cast(Metric, self.metric)(outputs, example.gold))
        context = RunContext(self.completer, derive_seed(seed, example.id, "metric"), "metric")
        return float(await self.metric(outputs, example.gold, context))

    async def _finish(self, example: Example, seed: int, steps: Mapping[str, Step], fields: Mapping[str, Any]) -> Trace:
        failed = [step.outcome for step in steps.values() if step.outcome is not Outcome.OK]
        if failed or any(field not in fields for field in self.output_fields):
            outcome = failed[0] if failed else Outcome.CRASHED
            return Trace(example.id, seed, freeze(steps), freeze({}), outcome, self.failure_score)
        outputs = freeze({field: fields[field] for field in self.output_fields})
        try:
            score = await self.score(outputs, example, seed)
        except ComponentFailure as failure:  # a judge's model or tool did not deliver
            return Trace(example.id, seed, freeze(steps), freeze({}), failure.outcome, self.failure_score)
        except StopRun:
            raise
        except Exception as error:
            raise ComponentBug(
                f"the metric raised {type(error).__name__} on example {example.id!r}: {error}; outputs "
                f"{dict(outputs)!r}, gold {dict(example.gold)!r}"
            ) from error
        return Trace(example.id, seed, freeze(steps), outputs, Outcome.OK, score)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to do: arguments of ``System.run``."""

    configuration: Configuration
    example: Example
    seed: int
    given: Mapping[str, Mapping[str, Any]] | None = None


def run_many(
    system: System, jobs: Sequence[Job], *, concurrency: int, on_done: Callable[[], None] | None = None
) -> list[Trace]:
    """Runs all jobs and returns their traces in the order of the jobs; see ``gather``."""
    calls = [functools.partial(system.run, job.configuration, job.example, job.seed, job.given) for job in jobs]
    return gather(calls, concurrency=concurrency, on_done=on_done)


def gather(
    calls: Sequence[Callable[[], Awaitable[T]]], *, concurrency: int, on_done: Callable[[], None] | None = None
) -> list[T]:
    """Awaits all calls, at most ``concurrency`` at once; results are in the order of the calls.

    The first error cancels the rest and is raised. ``on_done`` is called once per finished call, for progress bars.
    """

    async def run_all() -> list[T]:
        slots = asyncio.Semaphore(concurrency)

        async def run_one(call: Callable[[], Awaitable[T]]) -> T:
            async with slots:
                result = await call()
            if on_done is not None:
                on_done()
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_one(call)) for call in calls]
        return [task.result() for task in tasks]

    try:
        return asyncio.run(run_all())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from error.__cause__
