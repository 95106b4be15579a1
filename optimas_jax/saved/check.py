"""Two saved configurations side by side on the same rows and seeds: which is better, what differs, what it costs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.tables import examples_of, read_table
from optimas_jax.core.progress import Progress
from optimas_jax.core.stats import Comparison, compare, mean_interval
from optimas_jax.core.types import Example, Trace
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Configuration
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.journal import RESOURCES, TAPE, changed_fields
from optimas_jax.saved.folder import Saved
from optimas_jax.saved.optimized import Optimized, assemble
from optimas_jax.saved.runs import CONCURRENCY, run_examples
from optimas_jax.saved.system import Built, build
from optimas_jax.search.regression import LEVEL, Decision, decide


@dataclasses.dataclass(frozen=True)
class Gate:
    """What a new configuration has to pass (``search.regression.decide``)."""

    level: float = LEVEL
    min_gain: float | None = None
    max_cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """One configuration on the rows.

    Attributes:
      name: for tables.
      configuration: value of each tuned component.
      traces: in the order of the examples.
      cost: of all runs, with an empty tape.
    """

    name: str
    configuration: Configuration
    traces: Sequence[Trace]
    cost: Usage

    @property
    def scores(self) -> list[float]:
        return [trace.score for trace in self.traces]

    @property
    def mean(self) -> tuple[float, tuple[float, float]]:
        """Mean score and its 95 % interval."""
        return mean_interval(self.scores)


@dataclasses.dataclass(frozen=True)
class Check:
    """A new configuration against an old one.

    Attributes:
      metric: its name.
      examples: that both ran on.
      settings: settings in which their runs differ.
      edited: what changed in the programs since those runs; both ran with the programs as they are now.
    """

    metric: str
    examples: Sequence[Example]
    new: Measured
    old: Measured
    decision: Decision
    gate: Gate
    settings: Sequence[str] = ()
    edited: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Move:
    """A best on another model, and on the model of its run.

    Attributes:
      rows: by model, the default configuration and the best one.
      check: the best one against the default one on the new model.
    """

    rows: Sequence[tuple[str, Measured, Measured]]
    check: Check

    @property
    def gains(self) -> list[tuple[str, Comparison]]:
        """Gain of the best over the default, by model."""
        return [(model, compare(best.scores, default.scores)) for model, default, best in self.rows]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What runs need: a folder for the tape, so that nothing is paid for twice, and a display of progress."""

    workdir: Path
    progress: Progress
    concurrency: int = CONCURRENCY

    def measure(self, name: str, optimized: Optimized, examples: Sequence[Example]) -> Measured:
        """Runs a program on all examples, and scores what it returns."""
        with contextlib.closing(Tape(self.workdir / TAPE)) as tape:
            traces, cost = run_examples(optimized, examples, tape, self.progress, name, concurrency=self.concurrency)
        return Measured(name, optimized.configuration, traces, cost)


def check_bests(
    new: Saved, old: Saved, data: Any, gate: Gate, bench: Bench, model: str | LanguageModel | None = None
) -> Check:
    """Compares two bests, each with the program of its run, under the metric and the seed of the new best's run.

    Args:
      data: rows (``benchmarks.tables.read_table``); None for the test examples of the new best's run.
      model: answers for both, in place of the models of their runs.

    Raises:
      ValueError: programs, metrics or rows do not fit each other, before anything is paid for.
    """
    after, before = build(new, model=model, metric=True), build(old, model=model, metric=True)
    if after.metric != before.metric:
        raise ValueError(
            f"{new.name} is scored by {after.metric!r}, {old.name} by {before.metric!r}: one metric is needed"
        )
    examples = examples_for((after, before), data)
    scored = dataclasses.replace(before.system, metric=after.system.metric)
    pair = assemble(new, after, model=model), assemble(old, dataclasses.replace(before, system=scored), model=model)
    newer, older = (
        bench.measure(saved.name, dataclasses.replace(optimized, seed=new.seed), examples)
        for saved, optimized in zip((new, old), pair, strict=True)
    )
    return dataclasses.replace(
        _decided(after.metric, examples, newer, older, gate),
        settings=changed_fields(old.settings, new.settings, RESOURCES),
        edited=[
            f"{saved.name}: {', '.join(built.edited)}" for saved, built in ((new, after), (old, before)) if built.edited
        ],
    )


def move(best: Saved, data: Any, gate: Gate, bench: Bench, model: str | LanguageModel) -> Move:
    """Runs default and best of a run on its own model and on another model.

    Args:
      data: as in ``check_bests``.
    """
    rows, examples, metric = [], [], ""
    for answers in (None, model):
        built = build(best, model=answers, metric=True)
        examples, metric = examples_for((built,), data), built.metric
        spec = best.language_model(answers).model
        default = built.system.default_configuration()
        measured = [
            bench.measure(f"{name}, {spec}", assemble(best, built, configuration, model=answers), examples)
            for name, configuration in (("default", default), ("best", best.configuration))
        ]
        rows.append((spec, *measured))
    _, before, after = rows[-1]
    checked = _decided(metric, examples, after, before, gate)
    edited = [f"{best.name}: {', '.join(built.edited)}"] if built.edited else []
    return Move(rows, dataclasses.replace(checked, edited=edited))


def examples_for(builds: Sequence[Built], data: Any) -> Sequence[Example]:
    """Rows as examples: columns that a program reads are inputs, other columns are gold; of rows with equal inputs the
    first is used. Without rows the test examples of the first program's benchmark.

    Raises:
      ValueError: a column is missing, or there are no rows at all.
    """
    first = builds[0]
    if data is not None:
        rows = read_table(data)
        inputs = dict.fromkeys(name for built in builds for name in built.inputs.columns(rows[0], built.name))
        return examples_of(rows, tuple(inputs))[0]
    if first.data is None:
        raise ValueError(f"{first.name} brings no examples of its own: name rows with --data")
    return first.data.splits["test"]


def _decided(metric: str, examples: Sequence[Example], new: Measured, old: Measured, gate: Gate) -> Check:
    decision = decide(new.scores, old.scores, (new.cost, old.cost), **dataclasses.asdict(gate))
    return Check(metric, examples, new, old, decision, gate)
