"""Rules on what components did: failures, answers that were cut, more or fewer calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from optimas_jax.report.look.examples import (
    Call,
    Calls,
    Run,
    above_zero,
    call_failed,
    calls_in,
    calls_of,
    rise,
    share_of,
)
from optimas_jax.report.look.finding import Claim, Finding, plain
from optimas_jax.report.page.text import counted
from optimas_jax.report.run_files import RunFiles

_FEWEST = 3  # runs, more than before
_MANY = 0.1  # share of failed runs from which on they are many
_MORE = 1.5  # times as many calls


def runs_failed(run: RunFiles) -> list[Claim]:
    """More runs fail than before."""
    rows = run.examples
    more = rise(rows, _failed)

    def finding() -> Finding:
        """The finding, with the most frequent outcomes and the component that fails most often."""
        before, after = (
            sum(_failed(example_run) for row in rows for example_run in row[side]["runs"])
            for side in ("before", "after")
        )
        failed = [example_run for row in rows for example_run in row["after"]["runs"] if _failed(example_run)]
        outcomes = Counter(str(example_run["outcome"]) for example_run in failed)
        named = ", ".join(f"{plain(name)} {count}" for name, count in outcomes.most_common(4))
        failed_calls = (call for example_run in failed for call in calls_in(example_run) if call_failed(call))
        at = Counter(call["component"] for call in failed_calls)
        where = f", most at {plain(at.most_common(1)[0][0])}" if at else ""
        total = sum(len(row["after"]["runs"]) for row in rows)
        sentence = f"{after:.0f} of {counted(total, 'run')} failed ({named}{where}), {before:.0f} before."
        return Finding("failures", sentence, "failures", 2)

    return [Claim(*above_zero(more), finding if more.sum() >= _FEWEST else None, "failures")]


def calls_failed(run: RunFiles) -> list[Claim]:
    """More calls of a component fail than before, or have answers that the limit of tokens cut, though runs go on."""
    tests = []
    for name, sides in calls_of(run.examples).items():
        for words, is_so in (("failed", call_failed), ("were cut at their limit of tokens", _call_cut)):
            more = share_of(sides["after"], is_so) - share_of(sides["before"], is_so)
            finding = partial(_calls_finding, name, words, is_so, sides) if more.sum() >= _FEWEST else None
            about = "failures" if is_so is call_failed else f"cut {name}"
            tests.append(Claim(*above_zero(more), finding, about))
    return tests


def _calls_finding(name: str, words: str, is_so: Callable[[Call], bool], sides: Mapping[str, Calls]) -> Finding:
    calls = {
        side: [call for runs in examples for run_calls in runs for call in run_calls]
        for side, examples in sides.items()
    }
    before, after = (sum(map(is_so, calls[side])) for side in ("before", "after"))
    sentence = f"{after} of {counted(len(calls['after']), 'call')} of {plain(name)} {words}, {before} before."
    return Finding("failures", sentence, "failures", 3)


def outcomes_failed(run: RunFiles) -> list[Finding]:
    """Many runs failed by the counts of the results, most of which are not among the examples."""
    outcomes = (run.results or {}).get("outcomes") or {}
    failed = {name: count for name, count in outcomes.items() if name != "ok" and count}
    after = sum(_failed(example_run) for row in run.examples for example_run in row["after"]["runs"])
    before = sum(_failed(example_run) for row in run.examples for example_run in row["before"]["runs"])
    total, count = sum(outcomes.values()), sum(failed.values())
    if count < max(_FEWEST, _MANY * total) or 2 * max(after, before) > count:
        return []
    named = ", ".join(
        f"{plain(name)} {number}" for name, number in sorted(failed.items(), key=lambda item: -item[1])[:4]
    )
    sentence = f"{count} of {counted(total, 'run')} of the result failed ({named})."
    return [Finding("failures", sentence, "failures", 2)]


def answers_unread(run: RunFiles) -> list[Claim]:
    """More answers than before cannot be read by the benchmark's rules, or are cut, by the counts of the results."""
    tests = []
    fields = {"unread": "cannot be read", "cut": "were cut at their limit of tokens"}
    for field, words in fields.items():
        for name, row in ((run.results or {}).get(field) or {}).items():
            before, after = row["baseline"], row["optimized"]
            chance = above_zero(np.array([1.0] * after + [-1.0] * before))  # of as many answers on both sides
            finding = partial(_unread_finding, name, words, before, after, row["answers"] // 2)
            tests.append(Claim(*chance, finding if after - before >= _FEWEST else None, f"{field} {name}"))
    return tests


def _unread_finding(name: str, words: str, before: int, after: int, answers: int) -> Finding:
    sentence = f"{after} of {counted(answers, 'answer')} of {plain(name)} {words}, {before} before."
    return Finding("failures", sentence, "failures", 3)


def calls_grew(run: RunFiles) -> list[Claim]:
    """A component is called much more often in a run than before: a loop that does not end."""
    tests = []
    for name, sides in calls_of(run.examples).items():
        counts = {
            side: np.array([np.mean([len(run_calls) for run_calls in runs]) for runs in examples])
            for side, examples in sides.items()
        }
        before, after = (float(counts[side].mean()) for side in ("before", "after"))
        sentence = f"{plain(name)} is called {after:.1f} times in a run, {before:.1f} before: each run pays for it."
        finding = partial(Finding, "calls_grew", sentence, "bill", 4) if before and after >= _MORE * before else None
        tests.append(Claim(*above_zero(counts["after"] - counts["before"]), finding, f"calls {name}"))
    return tests


def no_longer_called(run: RunFiles) -> list[Finding]:
    """A component that most runs called is called by none, although they end well."""
    well = sum(not _failed(example_run) for row in run.examples for example_run in row["after"]["runs"])
    findings = []
    for name, sides in calls_of(run.examples).items():
        called_before, called_after = (sum(any(runs) for runs in sides[side]) for side in ("before", "after"))
        if well >= _FEWEST and 2 * called_before > len(run.examples) and not called_after:
            total = counted(len(run.examples), "example")
            sentence = f"{plain(name)} is no longer called: {called_before} of {total} called it before."
            findings.append(Finding("not_called", sentence, "flips", 2))
    return findings


def _failed(run: Run) -> float:
    return float((run.get("outcome") or "ok") != "ok")


def _call_cut(call: Call) -> bool:
    return call["outcome"] == "ok" and bool(call.get("detail"))
