"""Components and the graph they form. A system is a pure function of (configuration, example, seed)."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from optimas_jax.core import graph
from optimas_jax.core.graph import GraphError
from optimas_jax.core.selection import Scorer, candidates, choose
from optimas_jax.core.types import Example, Outcome, Step, StopRun, Trace, derive_seed, freeze
from optimas_jax.core.values import Configuration, PerInstance, Space, Value, check_value

_LARGEST_SCORE = 1e100  # in size: sums of scores stay finite


class ComponentFailure(Exception):
    """Raised by a component whose model or tool gave no usable answer; becomes the outcome of the component's call."""

    def __init__(self, outcome: Outcome, detail: str = ""):
        super().__init__(f"{outcome}: {detail}")
        self.outcome, self.detail = outcome, detail


class ComponentBug(RuntimeError):
    """A component or the metric raised an exception other than ``ComponentFailure``: stops the run at once."""


class NonFiniteScore(ComponentBug):
    """A metric returned NaN, an infinity, or a number too large to be averaged."""


@dataclasses.dataclass(frozen=True)
class RunContext:
    """Arguments of a component's call besides inputs and value.

    Attributes:
      completer: answers completion requests (``llm.base.Completer``); opaque to ``core``.
      seed: seed of this component in this run.
      component: name of the component, the role of its requests.
      temperature: sampling temperature instead of the component's default, or None.
    """

    completer: Any
    seed: int
    component: str
    temperature: float | None = None


@dataclasses.dataclass
class Meter:
    """Counts executions of components, and runs (from the start or from given outputs) with at least one execution."""

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
      description: one sentence on its purpose; proposers and local reward functions read it.
      inputs: names of the fields it reads: system inputs or other components' outputs.
      outputs: names of the fields it writes.
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
      metric: ``(outputs, gold) -> score``, higher is better. A metric that asks a model or runs a program is a judge:
        ``async (outputs, gold, context) -> score``.
      completer: answers the components' completion requests.
      failure_score: score of a run without outputs.
      scorer: scores outputs for ``PerInstance`` values; None if no value needs it.
      meter: counts executions, or None.
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
        if not is_finite_score(self.failure_score):
            raise GraphError(f"failure_score is {self.failure_score}, expected a finite number")

    @cached_property
    def by_name(self) -> Mapping[str, Component]:
        return {component.name: component for component in self.components}

    @cached_property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """Component -> the components it reads from, in the order of definition."""
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
        """Components that read outputs of ``name``, directly or through other components."""
        descendants: set[str] = set()
        for other in self.order:
            if any(parent == name or parent in descendants for parent in self.parents[other]):
                descendants.add(other)
        return frozenset(descendants)

    def scores_at_once(self, name: str) -> bool:
        """Whether the global reward of a component's outputs needs no further call: the component has no descendants,
        and the metric is not a judge."""
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
        """The argument ``given`` of ``run`` for running ``trace`` again after a change at one component.

        Returns:
          Outputs of all components that do not depend on ``changed``, and ``outputs`` as its outputs (None: run it
          again).
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
          given: known outputs, by component; these components are not executed.

        Raises:
          GraphError: if the example lacks an input field.
          ComponentBug: if a component or the metric raises another exception than ``ComponentFailure``.
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

        async def execute(name: str, parents: Sequence[asyncio.Task[None]]) -> None:
            """Waits for the component's parents, runs it, and adds its step and fields."""
            for parent in parents:
                await parent
            component = self.by_name[name]
            if any(field not in fields for field in component.inputs):
                return  # an ancestor failed
            inputs = freeze({field: fields[field] for field in component.inputs})
            if name in given:
                step = Step(inputs, freeze(given[name]))
            else:
                step_seed = derive_seed(seed, example.id, name)
                step = await self._execute(component, inputs, configuration.get(name), example.id, step_seed)
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
        """Runs one component on given inputs; with the same seed it draws the same numbers as within ``run``."""
        step_seed = derive_seed(seed, example.id, name)
        return await self._execute(self.by_name[name], freeze(inputs), value, example.id, step_seed, temperature)

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
        if not isinstance(outputs, Mapping):  # without a ``return`` it is None
            raise ComponentBug(
                f"component {component.name!r} returned {type(outputs).__name__} on example {example_id!r}, expected a "
                f"mapping with the fields {sorted(component.outputs)}"
            )
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
        """Runs every candidate and selects one that succeeded; the first one if all failed."""
        if self.scorer is None:
            raise StopRun(
                f"component {component.name!r} chooses its output by the local reward {value.reward!r}, and this "
                "system has no scorer that computes it: set System.scorer"
            )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._execute(component, inputs, candidate, example_id, sample_seed, hotter))
                for candidate, sample_seed, hotter in candidates(value, seed, temperature)
            ]
        steps = [step for step in (task.result() for task in tasks) if step.outcome is Outcome.OK]
        if not steps:
            return tasks[0].result()
        outputs = [step.outputs for step in steps]
        if all(fields == outputs[0] for fields in outputs):
            return steps[0]
        scores = await self.scorer.scores(component.name, example_id, inputs, outputs, value.reward)
        return steps[choose(scores, value.mode, seed)]

    async def score(self, outputs: Mapping[str, Any], example: Example, seed: int) -> float:
        """The metric's score of outputs.

        Raises:
          NonFiniteScore: if it is NaN, infinite or above 1e100 in size.
          Exception: what the metric raises.
        """
        if inspect.iscoroutinefunction(self.metric):
            context = RunContext(self.completer, derive_seed(seed, example.id, "metric"), "metric")
            score = float(await self.metric(outputs, example.gold, context))
        else:
            score = float(cast(Metric, self.metric)(outputs, example.gold))
        return finite_score(score, getattr(self.metric, "__name__", repr(self.metric)), outputs, example)

    async def _finish(self, example: Example, seed: int, steps: Mapping[str, Step], fields: Mapping[str, Any]) -> Trace:
        failed = [step.outcome for step in steps.values() if step.outcome is not Outcome.OK]
        if failed or any(field not in fields for field in self.output_fields):
            outcome = failed[0] if failed else Outcome.CRASHED
            return Trace(example.id, seed, freeze(steps), freeze({}), outcome, self.failure_score)
        outputs = freeze({field: fields[field] for field in self.output_fields})
        try:
            score = await self.score(outputs, example, seed)
        except ComponentFailure as failure:  # a judge's model or tool gave no usable answer
            return Trace(example.id, seed, freeze(steps), freeze({}), failure.outcome, self.failure_score)
        except (StopRun, NonFiniteScore):
            raise
        except Exception as error:
            raise ComponentBug(
                f"the metric raised {type(error).__name__} on example {example.id!r}: {error}; outputs "
                f"{dict(outputs)!r}, gold {dict(example.gold)!r}"
            ) from error
        return Trace(example.id, seed, freeze(steps), outputs, Outcome.OK, score)


def finite_score(score: float, metric: str, outputs: Mapping[str, Any], example: Example) -> float:
    """The score itself.

    Raises:
      NonFiniteScore: if it is NaN, infinite or above 1e100 in size; names the metric, the example and what it compared.
    """
    if is_finite_score(score):
        return score
    raise NonFiniteScore(
        f"the metric {metric!r} returned {score} on example {example.id!r}, expected a finite number; outputs "
        f"{dict(outputs)!r}, gold {dict(example.gold)!r}"
    )


def is_finite_score(score: float) -> bool:
    """Whether scores can be averaged with it: neither NaN nor infinite, and at most 1e100 in size."""
    return abs(score) <= _LARGEST_SCORE
