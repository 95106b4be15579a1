"""Evaluate: configurations side by side on the same examples and seeds."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from rich.markup import escape

from optimas_jax.core.stats import compare, mean_interval
from optimas_jax.core.system import Job, Metric, run_many
from optimas_jax.core.types import Example, Outcome, Trace, derive_seed
from optimas_jax.core.values import Configuration, value_from_json
from optimas_jax.loop.context import Run
from optimas_jax.rewards.text import text_group


def failures(traces: Sequence[Trace]) -> str:
    """How many of these runs failed, and how and where most of them did; "" where all gave an answer."""
    failed = [trace for trace in traces if trace.outcome is not Outcome.OK]
    if not failed:
        return ""
    steps = [(name, step) for trace in failed for name, step in trace.steps.items() if step.outcome is not Outcome.OK]
    words = f"{len(failed)} of {len(traces)} runs of the system failed"
    if not steps:
        return words
    (name, outcome), _ = collections.Counter((name, step.outcome) for name, step in steps).most_common(1)[0]
    detail = next(step.detail for key, step in steps if (key, step.outcome) == (name, outcome))
    return f"{words}, most at {name}: {outcome}" + (f" ({detail[:300]})" if detail else "")


def report_failures(run: Run, traces: Sequence[Trace]) -> None:
    """A line on runs that failed; a warning where none gave an answer, since nothing can be learned from them."""
    words = escape(failures(traces))
    if words:
        every = all(trace.outcome is not Outcome.OK for trace in traces)
        run.progress.line(f"[yellow]warning[/yellow]: {words}" if every else f"  {words}")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one configuration.

    Attributes:
      traces: per repeat, in example order.
    """

    traces: tuple[tuple[Trace, ...], ...]

    @property
    def scores(self) -> list[float]:
        """Mean over repeats of each example, in example order."""
        return [statistics.fmean(trace.score for trace in traces) for traces in zip(*self.traces, strict=True)]

    @property
    def repeat_means(self) -> list[float]:
        return [statistics.fmean(trace.score for trace in traces) for traces in self.traces]

    @property
    def outcomes(self) -> dict[str, int]:
        """How runs ended, all repeats together; failures are part of the scores."""
        return dict(collections.Counter(str(trace.outcome) for traces in self.traces for trace in traces))

    def to_json(self) -> dict[str, Any]:
        mean, ci95 = mean_interval(self.scores)
        data: dict[str, Any] = {"mean": mean, "ci95": ci95, "scores": self.scores}
        if len(self.traces) > 1:
            data["repeats"] = self.repeat_means
            data["spread"] = statistics.stdev(self.repeat_means)
        return data


def evaluate(
    run: Run, configurations: Sequence[Configuration], examples: Sequence[Example], repeats: int
) -> list[Evaluation]:
    """Runs configurations on all examples; repeat r has the same seeds for every configuration."""
    seeds = [run.config.seed if r == 0 else derive_seed(run.config.seed, "repeat", r) for r in range(repeats)]
    jobs = [Job(value, example, seed) for value in configurations for seed in seeds for example in examples]
    with run.progress.bar("evaluation runs", len(jobs)) as advance:
        traces = iter(run_many(run.system, jobs, concurrency=run.config.concurrency, on_done=advance))
    return [Evaluation(tuple(tuple(itertools.islice(traces, len(examples))) for _ in seeds)) for _ in configurations]


def other_metrics(
    benchmark: ModuleType, examples: Sequence[Example], baseline: Evaluation, optimized: Evaluation
) -> dict[str, dict[str, Any]]:
    """The same runs by the benchmark's other metrics; a run without outputs scores 0. Metrics of a whole set have
    means only."""
    table: dict[str, dict[str, Any]] = {}
    for name, metric in getattr(benchmark, "OTHER_METRICS", {}).items():
        old, new = (_rescored(metric, examples, evaluation) for evaluation in (baseline, optimized))
        table[name] = {"baseline": old.to_json(), "optimized": new.to_json(), "gain": gain(new, old)}
    for name, metric in getattr(benchmark, "SET_METRICS", {}).items():
        old, new = (_of_set(metric, examples, evaluation) for evaluation in (baseline, optimized))
        table[name] = {"baseline": {"mean": old}, "optimized": {"mean": new}, "gain": {"mean": new - old}}
    return table


def _rescored(metric: Metric, examples: Sequence[Example], evaluation: Evaluation) -> Evaluation:
    def score(trace: Trace, example: Example) -> Trace:
        return dataclasses.replace(trace, score=metric(trace.outputs, example.gold) if trace.outputs else 0.0)

    return Evaluation(tuple(tuple(map(score, traces, examples)) for traces in evaluation.traces))


def _of_set(metric: Callable[..., float], examples: Sequence[Example], evaluation: Evaluation) -> float:
    golds = [example.gold for example in examples]
    return statistics.fmean(metric([trace.outputs for trace in traces], golds) for traces in evaluation.traces)


def gain(optimized: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    """Paired difference of two configurations."""
    return _difference(optimized.scores, baseline.scores)


def _difference(new: Sequence[float], old: Sequence[float]) -> dict[str, Any]:
    comparison = compare(new, old)
    return {"mean": comparison.mean, "ci95": comparison.ci95, "p_positive": comparison.p_positive}


def after_each(default: Configuration, accepted: Sequence[Mapping[str, Any]]) -> list[Configuration]:
    """The default configuration, and what it became with every accepted change."""
    changes = ((change["component"], value_from_json(change["value"])) for change in accepted)
    return list(itertools.accumulate(changes, lambda old, change: old.replace(*change), initial=default))


def contributions(
    run: Run, reward: str, accepted: Sequence[Mapping[str, Any]], evaluations: Sequence[Evaluation]
) -> list[dict[str, Any]]:
    """What each accepted change brought on the evaluated examples, given those accepted before it: the paired gain of
    the score, and of the component's local reward.

    Args:
      reward: name of the local reward; empty without one.
      evaluations: of ``after_each``.
    """
    return [
        {"gain": gain(after, before), "local_gain": _local_gain(run, reward, change["component"], before, after)}
        for change, (before, after) in zip(accepted, itertools.pairwise(evaluations), strict=True)
    ]


def _local_gain(run: Run, reward: str, name: str, before: Evaluation, after: Evaluation) -> dict[str, Any] | None:
    """Of a component whose value alone differs, so that it read the same inputs; None if it was never reached, or
    without a local reward."""
    steps = [
        (old.steps[name], new.steps[name])
        for old, new in zip(before.traces[0], after.traces[0], strict=True)
        if name in old.steps and name in new.steps
    ]
    if not steps or not reward:
        return None
    groups = [text_group(run.system, name, old.inputs, [old.outputs, new.outputs]) for old, new in steps]
    old, new = zip(*run.engine.scorer.scores(reward, groups), strict=True)
    return _difference(new, old)


def by_kind(examples: Sequence[Example], evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """Mean scores per kind of example, where the benchmark has kinds."""
    table: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(example.kind for example in examples if example.kind):
        places = [index for index, example in enumerate(examples) if example.kind == kind]
        means = {name: statistics.fmean(e.scores[index] for index in places) for name, e in evaluations.items()}
        table[kind] = {"n": len(places), **means}
    return table
