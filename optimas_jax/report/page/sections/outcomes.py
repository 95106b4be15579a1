"""Scores by kind of example, failures by component, and components at fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optimas_jax.core.stats import compare
from optimas_jax.report.page import text
from optimas_jax.report.page.sections.flips import example_anchor
from optimas_jax.report.page.svg import interval_bar, span_of
from optimas_jax.report.run_files import RunFiles

_FEWEST = 6  # examples of a kind, for an interval
_MOST = 60  # kinds and failures that are shown
_PROGRAM = "the program itself"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of examples: mean scores, and their difference with its interval where there are enough of them."""

    name: str
    n: int
    before: float
    after: float
    gain: float
    bounds: Any
    bar: Markup


@dataclasses.dataclass(frozen=True)
class Measure:
    """Another measure of the same runs: its means, and their difference with its interval where it has one."""

    name: str
    before: Any
    after: Any
    gain: Any
    bounds: Any


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores in detail; false where there are none."""

    measures: Sequence[Measure]
    kinds: Sequence[Kind]

    def __bool__(self) -> bool:
        return bool(self.measures or self.kinds)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Calls of a component with the same failure, with an example."""

    component: str
    outcome: str
    before: int
    after: int
    example: str
    anchor: str
    detail: str


@dataclasses.dataclass(frozen=True)
class Failures:
    """Failures of a run's evaluation.

    Attributes:
      rows: the most frequent failures after optimisation first.
      runs: number of runs of each side.
      notes: sentences on answers that could not be read or were cut.
    """

    rows: Sequence[Failure]
    left_out: int
    runs: int
    notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Fault:
    """How often a component is likeliest at fault, its mean share of the blame, and a failing run of it."""

    component: str
    first: int
    share: float
    bar: float
    example: str


@dataclasses.dataclass(frozen=True)
class Blame:
    """Components at fault in failing validation runs; ``reason`` where nothing can be said."""

    rows: Sequence[Fault]
    passing: int
    failing: int
    reason: str


def scores(run: RunFiles) -> Scores:
    """Other measures of the evaluated runs, and scores by kind of example."""
    return Scores(measures(run.results or {}), kinds(run))


def measures(results: Mapping[str, Any]) -> list[Measure]:
    """Other metrics, the objective, and the unconfirmed state, as far as there are any."""
    rows = []
    for name, row in (results.get("other_metrics") or {}).items():
        chance = f", chance {text.number(row['chance'], 2)}" if row.get("chance") else ""
        means = row["baseline"]["mean"], row["optimized"]["mean"]
        rows.append(Measure(f"{text.name(name)}{chance}", *means, row["gain"]["mean"], row["gain"].get("ci95")))
    if objective := results.get("objective"):
        rows.append(Measure("objective: score minus weighted costs", None, None, *_gain(objective["gain"])))
    if unconfirmed := results.get("unconfirmed"):
        before = results["baseline"]["mean"]
        rows.append(Measure("all changes, not confirmed", before, unconfirmed["mean"], *_gain(unconfirmed["gain"])))
    return rows[:_MOST]


def _gain(gain: Mapping[str, Any]) -> tuple[Any, Any]:
    return gain["mean"], gain["ci95"]


def kinds(run: RunFiles) -> list[Kind]:
    """Scores by kind of example, the most frequent kinds first; none where examples have no kinds."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for row in run.examples:
        if row["kind"]:
            scores.setdefault(row["kind"], []).append((row["before"]["score"], row["after"]["score"]))
    ranked = sorted(scores.items(), key=lambda item: -len(item[1]))[:_MOST]
    rows = []
    for name, pairs in ranked:
        before, after = ([pair[side] for pair in pairs] for side in (0, 1))
        comparison = compare(after, before) if len(pairs) >= _FEWEST else None
        gain = (sum(after) - sum(before)) / len(pairs)
        rows.append(
            (name, pairs, sum(before) / len(pairs), sum(after) / len(pairs), gain, comparison and comparison.ci95)
        )
    span = span_of(bound for *_, gain, bounds in rows for bound in (gain, *(bounds or ())))
    return [
        Kind(
            name,
            len(pairs),
            old,
            new,
            gain,
            bounds,
            interval_bar(gain, bounds, span, words=f"{text.name(name)}: {text.signed(gain)}"),
        )
        for name, pairs, old, new, gain, bounds in rows
    ]


def failures(run: RunFiles) -> Failures:
    """Failures of the evaluated runs, by component and outcome."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    examples: dict[tuple[str, str], tuple[str, str]] = {}
    runs = 0
    for row in run.examples:
        runs += len(row["after"]["runs"])
        for side in ("before", "after"):
            for example_run in row[side]["runs"]:
                for component, outcome, detail in _failed(example_run):
                    key = (component, outcome)
                    counts.setdefault(key, {"before": 0, "after": 0})[side] += 1
                    if side == "after" or key not in examples:
                        examples.setdefault(key, (row["id"], detail))
    order = sorted(counts, key=lambda key: (-counts[key]["after"], -counts[key]["before"], key))
    rows = []
    for component, outcome in order[:_MOST]:
        name, detail = examples[component, outcome]
        amounts = counts[component, outcome]
        rows.append(
            Failure(
                component,
                outcome,
                amounts["before"],
                amounts["after"],
                name,
                example_anchor(name),
                text.clip(detail, 2_000),
            )
        )
    return Failures(rows, max(0, len(order) - _MOST), runs, _notes(run.results or {}))


def _failed(run: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Component, outcome and detail of each failed call of a run, or of the program itself."""
    calls = [call for call in run.get("calls") or () if str(call.get("outcome") or "ok") != "ok"]
    for call in calls:
        yield str(call["component"]), str(call["outcome"]), str(call.get("detail") or "")
    outcome = str(run.get("outcome") or "ok")
    if outcome != "ok" and not calls:
        yield _PROGRAM, outcome, str(run.get("feedback") or "")


def _notes(results: Mapping[str, Any]) -> list[str]:
    problems = {"unread": "could not be read", "cut": "were cut at max_tokens"}
    return [
        f"{text.name(name)}: of {text.counted(row['answers'] // 2, 'answer')} {row['baseline']} before and "
        f"{row['optimized']} after {problem}."
        for field, problem in problems.items()
        for name, row in (results.get(field) or {}).items()
    ]


def blame(run: RunFiles) -> Blame | None:
    """Components at fault, the likeliest first; None if blame was not computed, or no run failed."""
    result = (run.results or {}).get("blame") or (run.optimized or {}).get("blame")
    if not result or not result.get("failing"):
        return None
    first: dict[str, str] = {}
    for example in result.get("examples", ()):
        first.setdefault(example["component"], example["id"])
    parts = sorted((result.get("components") or {}).items(), key=lambda item: -item[1]["share"])
    largest = max((row["share"] for _, row in parts), default=0.0) or 1.0
    rows = [
        Fault(name, row["first"], row["share"], row["share"] / largest, first.get(name, ""))
        for name, row in parts[:_MOST]
    ]
    return Blame(rows, result.get("passing", 0), result.get("failing", 0), str(result.get("reason") or ""))
