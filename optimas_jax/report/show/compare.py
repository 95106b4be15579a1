"""Compares runs: scores, paired differences, examples that flip, prompts, bills."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.stats import compare as compare_scores
from optimas_jax.core.values import value_to_json
from optimas_jax.report.look.changes import kept_values
from optimas_jax.report.page.sections.changes import first_values
from optimas_jax.report.page.sections.head import changed_examples, gain_sentence, state_of, title_of
from optimas_jax.report.page.text import counted
from optimas_jax.report.run_files import RunFiles
from optimas_jax.report.show.read import Shown
from optimas_jax.report.show.settings import Setting, settings_that_differ

FEWEST = 6  # examples that an interval needs


@dataclasses.dataclass(frozen=True)
class Start:
    """A run against its own start.

    Attributes:
      letter, name: of the run.
      title: benchmark and variant.
      what: metric, number of examples and split.
      before, after: scores; None without results.
      better, worse: numbers of examples.
      sentence: on the gain, or why there is none.
    """

    letter: str
    name: str
    title: str
    what: str
    before: float | None
    after: float | None
    better: int
    worse: int
    sentence: str


@dataclasses.dataclass(frozen=True)
class Flip:
    """An example on which the final states of two runs differ in score.

    Attributes:
      row: id, kind, inputs and gold, with the final states of the first run as ``before`` and of the other as
        ``after``.
      difference: score of the other run minus score of the first run.
    """

    row: Mapping[str, Any]
    difference: float


@dataclasses.dataclass(frozen=True)
class Pair:
    """The final state of a run against the final state of the first run.

    Attributes:
      first, other: letters.
      shared: number of examples that both have.
      sentence: the paired difference with its interval, or why there is none.
      mean, interval: of the paired difference; None where there is none.
      better, worse, same: examples.
      flips: examples whose scores differ, the largest losses first, then the largest gains.
    """

    first: str
    other: str
    shared: int
    sentence: str
    mean: float | None = None
    interval: tuple[float, float] | None = None
    better: int = 0
    worse: int = 0
    same: int = 0
    flips: Sequence[Flip] = ()


@dataclasses.dataclass(frozen=True)
class Value:
    """A component whose final values differ.

    Attributes:
      component: its name.
      values: of each run as plain data; None where a run has no such component, or its value is not known.
    """

    component: str
    values: Sequence[Mapping[str, Any] | None]


@dataclasses.dataclass(frozen=True)
class Bill:
    """What a run has paid so far, and the seconds of its first execution; None where a figure is not known."""

    dollars: float | None
    tokens: int | None
    calls: int | None
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several runs beside each other.

    Attributes:
      runs: at least two.
      notes: sentences on what cannot be compared, and why.
      settings: all settings in which the runs differ.
      starts: each run against its own start.
      pairs: each run against the first.
      values: components whose final values differ.
      same_values: components whose final values are the same.
      bills: of each run.
    """

    runs: Sequence[Shown]
    notes: Sequence[str]
    settings: Sequence[Setting]
    starts: Sequence[Start]
    pairs: Sequence[Pair]
    values: Sequence[Value]
    same_values: Sequence[str]
    bills: Sequence[Bill]


def compare_runs(runs: Sequence[Shown]) -> Comparison:
    """Compares runs, the first with each of the others."""
    finals = [final_values(shown.run) for shown in runs]
    names = dict.fromkeys(name for values in finals for name in values)
    values = [Value(name, [final.get(name) for final in finals]) for name in names]
    differ = [value for value in values if any(data != value.values[0] for data in value.values)]
    return Comparison(
        runs,
        _notes(runs),
        settings_that_differ([shown.run.config for shown in runs]),
        [_start(shown) for shown in runs],
        [_pair(runs[0], other) for other in runs[1:]],
        differ,
        [value.component for value in values if value not in differ],
        [_bill(shown.run) for shown in runs],
    )


def final_values(run: RunFiles) -> dict[str, Mapping[str, Any]]:
    """The final values of a run by component, as plain data: the values that it changed, and for other components the
    values of its start as far as the folder has them."""
    kept = {name: value_to_json(value) for name, value in kept_values(run).items()}
    return {**first_values(run), **kept}


def _bill(run: RunFiles) -> Bill:
    record, results = run.record or {}, run.results or {}
    return Bill(
        record.get("usd"),
        record.get("tokens"),
        record.get("paid_calls", results.get("paid_calls")),
        record.get("seconds", results.get("wall_seconds")),
    )


def _notes(runs: Sequence[Shown]) -> list[str]:
    notes = []
    for what, read in (
        ("benchmarks", title_of),
        ("metrics", lambda run: (run.results or {}).get("metric")),
        ("splits", lambda run: (run.results or {}).get("split")),
    ):
        by_letter = {shown.letter: read(shown.run) for shown in runs if read(shown.run)}
        if len(set(by_letter.values())) > 1:
            notes.append(
                f"The {what} differ: {', '.join(f'{value} in {letter}' for letter, value in by_letter.items())}."
            )
    for name in ("repeats", "folder"):
        by_letter = {shown.letter: ((shown.run.results or {}).get("evaluation") or {}).get(name) for shown in runs}
        known = {letter: value for letter, value in by_letter.items() if value is not None}
        if len(set(map(str, known.values()))) > 1:
            listed = ", ".join(f"{value or 'its own'} in {letter}" for letter, value in known.items())
            notes.append(f"The evaluations differ in {name}: {listed}.")
    for shown in runs:
        if shown.run.results is None:
            state, why = state_of(shown.run, running=False)
            notes.append(f"{shown.letter} has no results ({state}): its settings and values so far are compared. {why}")
    return notes


def _start(shown: Shown) -> Start:
    results = shown.run.results
    if results is None:
        return Start(shown.letter, shown.name, title_of(shown.run), "", None, None, 0, 0, "There are no results yet.")
    better, worse, _ = changed_examples(results)
    what = f"{results['metric']} on {counted(results['n'], results['split'] + ' example')}"
    means = results["baseline"]["mean"], results["optimized"]["mean"]
    sentence = gain_sentence(results["gain"], results["n"])
    return Start(shown.letter, shown.name, title_of(shown.run), what, *means, better, worse, sentence)


def _pair(first: Shown, other: Shown) -> Pair:
    letters = first.letter, other.letter
    metrics = [(shown.run.results or {}).get("metric") for shown in (first, other)]
    for shown in (first, other):
        if shown.run.results is None:
            return Pair(*letters, 0, f"{shown.letter} has no results, so that nothing is compared.")
    if metrics[0] != metrics[1]:
        return Pair(*letters, 0, f"The metrics differ ({metrics[0]}, {metrics[1]}), so that no scores are compared.")
    rows, others = shared_rows(first.run, other.run)
    sizes = f"{len(first.run.examples)} and {len(other.run.examples)}"
    if not rows:
        return Pair(*letters, 0, f"{letters[0]} and {letters[1]} share none of their {sizes} examples{others}.")
    pairs = [(row["before"]["score"], row["after"]["score"]) for row in rows]
    differences = [after - before for before, after in pairs]
    flips = sorted((Flip(row, d) for row, d in zip(rows, differences, strict=True) if d), key=_order)
    compared = compare_scores([after for _, after in pairs], [before for before, _ in pairs])
    interval = compared.ci95 if len(rows) >= FEWEST else None
    on = counted(len(rows), "shared example") + (f" (of {sizes})" if sizes != f"{len(rows)} and {len(rows)}" else "")
    conclusion = gain_sentence({"mean": compared.mean, "ci95": interval}, len(rows))
    sentence = f"{letters[1]} minus {letters[0]} on {on}{others}: {conclusion}"
    return Pair(
        *letters,
        len(rows),
        sentence,
        compared.mean,
        interval,
        better=sum(difference > 0 for difference in differences),
        worse=sum(difference < 0 for difference in differences),
        same=sum(difference == 0 for difference in differences),
        flips=flips,
    )


def _order(flip: Flip) -> tuple[bool, float]:
    return flip.difference > 0, -abs(flip.difference)


def shared_rows(first: RunFiles, other: RunFiles) -> tuple[list[dict[str, Any]], str]:
    """Examples that two runs share, with the final state of the first as ``before`` and of the other as ``after``; and
    a clause on examples that have the same name but other content."""
    known = {row["id"]: row for row in other.examples}
    pairs = [(row, known[row["id"]]) for row in first.examples if row["id"] in known]
    same = [
        (row, other_row)
        for row, other_row in pairs
        if row["inputs"] == other_row["inputs"] and row["gold"] == other_row["gold"]
    ]
    rows = [{**row, "before": row["after"], "after": other_row["after"]} for row, other_row in same]
    others = len(pairs) - len(same)
    words = f"; {counted(others, 'example')} of the same name have other inputs or gold answers" if others else ""
    return rows, words
