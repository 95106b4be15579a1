"""Evaluate: configurations side by side on the same examples and seeds."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.modules import title
from optimas_jax.core.folder import events
from optimas_jax.core.folder.files import FolderError
from optimas_jax.core.running.execution import Job
from optimas_jax.core.scoring import NonFiniteScore, is_finite_score, read_score
from optimas_jax.core.selection import OWN_REWARD
from optimas_jax.core.stats import compare, mean_interval
from optimas_jax.core.system import Metric
from optimas_jax.core.types import Example, Outcome, Trace, derive_seed, digest
from optimas_jax.core.usage import OutOfBudget
from optimas_jax.core.values import Configuration, value_from_json
from optimas_jax.loop.budget import block
from optimas_jax.loop.context import Host, Run
from optimas_jax.loop.folder.evaluations import Measured, example_rows
from optimas_jax.loop.journal import OPTIMIZED, load_best
from optimas_jax.loop.setup.start import NO_FRESH_ROWS
from optimas_jax.loop.stage_configs import EvaluateConfig
from optimas_jax.loop.steps.costs import objective_fields
from optimas_jax.rewards.text import text_group
from optimas_jax.search.confirm import Confirmation, confirm

_PARTS, _FEWEST_AT_ONCE = 8, 4  # parts of an evaluation within a budget, and fewest examples of a part
NO_SEARCH: Mapping[str, Any] = {
    "reward": "",
    "alignment": {},
    "label_use": {},
    "dropped": {},
    "accepted": [],
    "confirmed": None,
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one configuration.

    Attributes:
      traces: runs per repeat, in example order.
    """

    traces: tuple[tuple[Trace, ...], ...]

    @property
    def scores(self) -> list[float]:
        """Mean over repeats of each example, in example order."""
        return [statistics.fmean(trace.score for trace in traces) for traces in zip(*self.traces, strict=True)]

    @property
    def rewards(self) -> list[float]:
        """Mean reward (``Trace.reward``, by which runs are compared) over repeats of each example, in example order."""
        return [statistics.fmean(trace.reward for trace in traces) for traces in zip(*self.traces, strict=True)]

    @property
    def repeat_means(self) -> list[float]:
        return [statistics.fmean(trace.score for trace in traces) for traces in self.traces]

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of runs by outcome, over all repeats; failures are part of the scores."""
        return dict(collections.Counter(str(trace.outcome) for traces in self.traces for trace in traces))

    def to_json(self) -> dict[str, Any]:
        mean, ci95 = mean_interval(self.scores)
        data: dict[str, Any] = {"mean": mean, "ci95": ci95, "scores": self.scores}
        if len(self.traces) > 1:
            data["repeats"] = self.repeat_means
            data["spread"] = statistics.stdev(self.repeat_means)
        return data


def evaluate(
    host: Host, configurations: Sequence[Configuration], examples: Sequence[Example], repeats: int
) -> list[Evaluation]:
    """Runs configurations on all examples; repeat r has the same seeds for every configuration."""
    seeds = [host.seed if r == 0 else derive_seed(host.seed, "repeat", r) for r in range(repeats)]
    jobs = [Job(value, example, seed) for value in configurations for seed in seeds for example in examples]
    traces = iter(host.run("evaluation runs", jobs))
    return [Evaluation(tuple(tuple(itertools.islice(traces, len(examples))) for _ in seeds)) for _ in configurations]


def evaluate_within(
    host: Host, name: str, configurations: Sequence[Configuration], examples: Sequence[Example], repeats: int
) -> tuple[Sequence[Example], list[Evaluation]]:
    """``evaluate`` within ``config.budget``, part by part: on all examples if the budget allows it, otherwise on the
    first of them.

    Args:
      name: name of the blocks.

    Returns:
      The examples that were run, and their evaluations.

    Raises:
      OutOfBudget: if not even the first part fits.
    """
    if not host.ledger.budget.is_set:
        return examples, evaluate(host, configurations, examples, repeats)
    parts: list[list[Evaluation]] = []
    size, done = max(_FEWEST_AT_ONCE, len(examples) // _PARTS), 0
    while done < len(examples):
        part = examples[done : done + size]
        try:
            with block(
                host, f"{name} from {done} of {' '.join(configuration.digest for configuration in configurations)}"
            ):
                parts.append(evaluate(host, configurations, part, repeats))
        except OutOfBudget as reason:
            if not done:
                raise
            host.progress.line(f"warning: {name}: {done} of {len(examples)} examples ({reason})")
            break
        done += len(part)
    return examples[:done], [_joined(evaluations) for evaluations in zip(*parts, strict=True)]


def _joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of one configuration on all examples, from its evaluations on each part of them."""
    return Evaluation(
        tuple(tuple(itertools.chain(*parts)) for parts in zip(*(e.traces for e in evaluations), strict=True))
    )


def other_metrics(
    benchmark: Any, examples: Sequence[Example], baseline: Evaluation, optimized: Evaluation
) -> dict[str, dict[str, Any]]:
    """Scores of the same runs by the benchmark's other metrics; a run without outputs scores 0. Metrics of a whole set
    have means only.

    Raises:
      NonFiniteScore: if a metric returns no finite number.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, metric in getattr(benchmark, "OTHER_METRICS", {}).items():
        old, new = (_rescored(name, metric, examples, evaluation) for evaluation in (baseline, optimized))
        table[name] = {"baseline": old.to_json(), "optimized": new.to_json(), "gain": gain(new, old)}
    for name, metric in getattr(benchmark, "SET_METRICS", {}).items():
        old, new = (_of_set(name, metric, examples, evaluation) for evaluation in (baseline, optimized))
        table[name] = {"baseline": {"mean": old}, "optimized": {"mean": new}, "gain": {"mean": new - old}}
    return table


def _rescored(name: str, metric: Metric, examples: Sequence[Example], evaluation: Evaluation) -> Evaluation:
    def rescored(trace: Trace, example: Example) -> Trace:
        score = metric(trace.outputs, example.gold) if trace.outputs else 0.0
        return dataclasses.replace(trace, score=read_score(score, name, trace.outputs, example).value)

    return Evaluation(tuple(tuple(map(rescored, traces, examples)) for traces in evaluation.traces))


def _of_set(name: str, metric: Callable[..., float], examples: Sequence[Example], evaluation: Evaluation) -> float:
    golds = [example.gold for example in examples]
    scores = [metric([trace.outputs for trace in traces], golds) for traces in evaluation.traces]
    for score in scores:
        if not is_finite_score(score):
            raise NonFiniteScore(
                f"the metric {name!r} returned {score} on a set of {len(golds)} examples, expected a finite number"
            )
    return statistics.fmean(scores)


def _with_gain(evaluation: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    return {**evaluation.to_json(), "gain": gain(evaluation, baseline)}


def gain(optimized: Evaluation, baseline: Evaluation) -> dict[str, Any]:
    """Paired difference of two configurations."""
    return _difference(optimized.scores, baseline.scores)


def _difference(new: Sequence[float], old: Sequence[float]) -> dict[str, Any]:
    comparison = compare(new, old)
    return {"mean": comparison.mean, "ci95": comparison.ci95, "p_value": comparison.p_value}


def after_each(default: Configuration, accepted: Sequence[Mapping[str, Any]]) -> list[Configuration]:
    """The default configuration, and the configuration after each accepted change.

    Raises:
      FolderError: a change is of an unknown component.
    """
    unknown = sorted({change["component"] for change in accepted} - set(default))
    if unknown:
        raise FolderError(
            f"{OPTIMIZED} is damaged (it changes {unknown[0]!r}, and the components are {', '.join(default)}): delete "
            "it and run --stage=optimize again"
        )
    changes = ((change["component"], value_from_json(change["value"])) for change in accepted)
    return list(itertools.accumulate(changes, lambda old, change: old.replace(*change), initial=default))


def contributions(
    run: Run, search: Mapping[str, Any], split: str, evaluations: Sequence[Evaluation]
) -> list[dict[str, Any]]:
    """The accepted changes, each with its gain over the configuration before it on the evaluated examples: the paired
    gain of the score, and of the component's local reward.

    Args:
      search: data of the file ``OPTIMIZED``.
      split: key of the gains.
      evaluations: evaluations of the configurations of ``after_each``.
    """
    reward = search["reward"] if run.config.optimize.score in ("local", OWN_REWARD) else ""
    return [
        {
            **change,
            split: {
                "gain": gain(after, before),
                "local_gain": _local_gain(run, reward, change["component"], before, after),
            },
        }
        for change, (before, after) in zip(search["accepted"], itertools.pairwise(evaluations), strict=True)
    ]


def _local_gain(run: Run, reward: str, name: str, before: Evaluation, after: Evaluation) -> dict[str, Any] | None:
    """Gain of a component's local reward from the run before to the run after its value changed. No other value
    differs, so that its inputs are the same. None if it was never reached, or without a local reward."""
    steps = [
        (old.first(name), new.first(name))
        for old, new in zip(before.traces[0], after.traces[0], strict=True)
        if old.reaches(name) and new.reaches(name)
    ]
    if not steps or not reward:
        return None
    groups = [text_group(run.host.system, name, old.inputs, [old.outputs, new.outputs]) for old, new in steps]
    old, new = zip(*run.device.rewards.scorer.scores(reward, groups), strict=True)
    return _difference(new, old)


def unread(benchmark: Any, examples: Sequence[Example], sides: Mapping[str, Evaluation]) -> dict[str, dict[str, int]]:
    """Number of answers, and of unreadable ones by side, for every component whose answers the benchmark reads by rules
    (``READ``). Components without unreadable answers are left out."""
    table: dict[str, dict[str, int]] = {}
    for name, is_read in getattr(benchmark, "READ", {}).items():
        counts, answered = dict.fromkeys(sides, 0), 0
        for side, evaluation in sides.items():
            for traces in evaluation.traces:
                for trace, example in zip(traces, examples, strict=True):
                    outputs = [call.outputs for call in trace.calls_of(name) if call.outcome is Outcome.OK]
                    answered += len(outputs)
                    counts[side] += sum(not is_read(output, example) for output in outputs)
        if any(counts.values()):
            table[name] = {**counts, "answers": answered}
    return table


def cut_short(sides: Mapping[str, Evaluation]) -> dict[str, dict[str, int]]:
    """Number of answers, and by side of those cut at the token limit, for every component. Components without such
    answers are left out."""
    table: dict[str, dict[str, int]] = {}
    for side, evaluation in sides.items():
        calls = [call for traces in evaluation.traces for trace in traces for call in trace.calls]
        for call in calls:
            if call.outcome is Outcome.OK:
                row = table.setdefault(call.component, {**dict.fromkeys(sides, 0), "answers": 0})
                row[side] += bool(call.detail)
                row["answers"] += 1
    return {name: row for name, row in table.items() if any(row[side] for side in sides)}


def by_kind(examples: Sequence[Example], evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Any]]:
    """Mean scores per kind of example, where the benchmark has kinds."""
    table: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(example.kind for example in examples if example.kind):
        indices = [index for index, example in enumerate(examples) if example.kind == kind]
        means = {name: statistics.fmean(e.scores[index] for index in indices) for name, e in evaluations.items()}
        table[kind] = {"n": len(indices), **means}
    return table


def confirm_search(host: Host, steps: Sequence[Configuration], needed: bool = False) -> Confirmation | None:
    """Tests the accepted changes on ``confirm`` examples, which no gate has seen; None without examples.

    Args:
      steps: configurations of ``after_each``. Those between the first and the last are run only if the last is not
        confirmed.
      needed: whether a result without ``confirm`` examples counts as not confirmed: set where the first step is itself
        a saved result, which only a confirmed one may replace.
    """
    examples = host.splits.get("confirm", ())
    if not examples and not needed:
        return None
    if not examples:
        confirmation = Confirmation(0, None, NO_FRESH_ROWS)
        host.folder.emit(events.Confirmation(**confirmation.to_json()))
        host.progress.line(confirmation.verdict)
        return confirmation
    try:
        done, confirmation = _confirmation(host, steps, examples)
    except OutOfBudget as reason:
        done, confirmation = (), Confirmation(0, None, f"not confirmed: {reason}")
    host.folder.emit(events.Confirmation(**confirmation.to_json()))
    where = f"on {len(done)} examples that no gate has seen: " if done else ""
    host.progress.line(f"{where}{confirmation.verdict}")
    return confirmation


def _confirmation(
    host: Host, steps: Sequence[Configuration], examples: Sequence[Example]
) -> tuple[Sequence[Example], Confirmation]:
    """The examples that the budget allowed for, and the tests on them."""
    if len(steps) == 1:
        return (), confirm((), ())
    done, (default, *final) = evaluate_within(host, "confirmation", [steps[0], *steps[1:][-1:]], examples, 1)
    scores: list[Sequence[float] | None] = [
        *[None] * max(0, len(steps) - 2),
        *(evaluation.rewards for evaluation in final),
    ]
    confirmation = confirm(default.rewards, scores)
    if confirmation.changes is None and len(scores) > 1 and confirmation.tests and len(done) == len(examples):
        with contextlib.suppress(OutOfBudget), block(host, "confirmation, earlier states"):
            earlier = evaluate(host, steps[1:-1], examples, 1)
            confirmation = confirm(default.rewards, [*(evaluation.rewards for evaluation in earlier), scores[-1]])
    return done, confirmation


def _evaluate_states(
    host: Host, settings: EvaluateConfig, steps: Sequence[Configuration], kept: int
) -> tuple[Sequence[Example], Sequence[Configuration], int, list[Evaluation]]:
    """Evaluates the default configuration (the first of ``steps``), the kept one, and the others if the budget allows
    it.

    Args:
      kept: index of the kept configuration.

    Returns:
      The examples that were run; the steps that were evaluated, the index of the kept one, and their evaluations.
    """
    name = f"{settings.split} examples, {settings.repeats} run{'s' * (settings.repeats > 1)} each"
    ends = [steps[0], steps[kept]]
    examples, pair = evaluate_within(host, name, ends, host.splits[settings.split], settings.repeats)
    measured = {0: pair[0], kept: pair[1]}
    others = [index for index in range(len(steps)) if index not in measured]
    try:
        with block(host, f"{name}, states {' '.join(steps[index].digest for index in others)}"):
            more = evaluate(host, [steps[index] for index in others], examples, settings.repeats)
    except OutOfBudget as reason:
        host.progress.line(f"  other states are left out: {reason}")
        return examples, ends, 1, pair
    measured |= dict(zip(others, more, strict=True))
    return examples, steps, kept, [measured[index] for index in range(len(steps))]


def measure(run: Run) -> Measured:
    """Measures the configuration in ``best/`` and the default one."""
    settings, host = run.config.evaluate, run.host
    folder = Path(settings.folder) if settings.folder else host.folder.path / "best"
    configuration = load_best(folder)
    host.folder.take_parts(configuration, folder)
    host.system.check(configuration)
    search = (None if settings.folder else host.folder.read(OPTIMIZED)) or NO_SEARCH
    states = after_each(host.system.default_configuration(), search["accepted"])
    kept = max((i for i, state in enumerate(states) if state.to_json() == configuration.to_json()), default=None)
    steps = states
    if kept is None:  # the configuration was saved by another run
        steps, kept = [states[0], configuration], 1
    elif not settings.changes:
        steps, kept = [states[0], configuration, *states[kept + 1 :][-1:]], 1
    examples, steps, kept, evaluations = _evaluate_states(host, settings, steps, kept)
    baseline, optimized, accepted = evaluations[0], evaluations[kept], search["accepted"]
    sides = {"baseline": baseline, "optimized": optimized}
    if steps == states:
        accepted = contributions(run, search, settings.split, evaluations)
    benchmark = run.benchmark
    identity = {
        **dataclasses.asdict(settings),
        "n": len(examples),
        "configurations": [step.digest for step in steps],
        "optimized": configuration.digest,
        "confirmed": (search["confirmed"] or {}).get("verdict"),
        "scores": digest([evaluation.scores for evaluation in evaluations]),
    }
    results = {
        "benchmark": title(run.config.benchmark),
        "variant": run.config.variant,
        "seed": run.config.seed,
        "split": settings.split,
        "n": len(examples),
        "metric": benchmark.METRIC,
        "chance": run.data.chance.get(benchmark.METRIC, 0.0),
        "data": run.data.origin,
        "baseline": baseline.to_json(),
        "optimized": optimized.to_json(),
        "gain": gain(optimized, baseline),
        "confirmed": search["confirmed"],
        "unconfirmed": None if kept == len(steps) - 1 else _with_gain(evaluations[-1], baseline),
        "other_metrics": {
            name: {"chance": run.data.chance.get(name, 0.0), **row}
            for name, row in other_metrics(benchmark, examples, baseline, optimized).items()
        },
        "by_kind": by_kind(examples, sides),
        "outcomes": optimized.outcomes,
        "unread": unread(benchmark, examples, sides),
        "cut": cut_short(sides),
        "alignment": search["alignment"],
        "label_use": search["label_use"],
        "score": run.config.optimize.score,
        "dropped": search["dropped"],
        "accepted": accepted,
        **objective_fields(host, optimized.traces, baseline.traces, _difference(optimized.rewards, baseline.rewards)),
        "pareto": search.get("pareto", []),
        **({"blame": search["blame"]} if search.get("blame") else {}),
        "ledger": host.ledger.to_json(),
    }
    return Measured(results, identity, example_rows(examples, baseline.traces, optimized.traces))
