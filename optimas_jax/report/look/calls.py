"""Rules on what components did: failures, answers that were cut, outputs that say nothing, more or fewer calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from optimas_jax.report.look import sorts
from optimas_jax.report.look.examples import Row, Run, above_zero, change, mean_of, rise
from optimas_jax.report.look.finding import Finding, Tested, counted, plain, quoted
from optimas_jax.report.look.sorts import normal, text_of
from optimas_jax.report.run_files import RunFiles

_FEWEST = 3  # more runs than before
_MORE = 1.5  # times as many calls
_CONSTANT = 0.8  # share of one output among all that is as good as constant
SORTS: Mapping[str, Callable[[str], bool]] = {
    "nothing, or a placeholder": sorts.is_nothing,
    "a refusal": sorts.is_refusal,
    "an error message": sorts.is_error,
    "text that repeats itself": sorts.is_loop,
}


def runs_failed(run: RunFiles) -> list[Tested]:
    """More runs fail than before."""
    rows = run.examples
    more = rise(rows, _failed) if rows else np.zeros(0)

    def finding() -> Finding:
        counts = [sum(_failed(one) for row in rows for one in row[side]["runs"]) for side in ("before", "after")]
        runs = [one for row in rows for one in row["after"]["runs"] if _failed(one)]
        outcomes = Counter(one["outcome"] for one in runs)
        named = ", ".join(f"{plain(name)} {count}" for name, count in outcomes.most_common(4))
        at = Counter(call["component"] for one in runs for call in one.get("calls", ()) if call["outcome"] != "ok")
        where = f", most at {plain(at.most_common(1)[0][0])}" if at else ""
        total = sum(len(row["after"]["runs"]) for row in rows)
        sentence = f"{counts[1]:.0f} of {counted(total, 'run')} failed ({named}{where}), {counts[0]:.0f} before."
        return Finding("failures", sentence, "failures", 2)

    return [Tested(*above_zero(more), finding if more.sum() >= _FEWEST else None, "failures")]


def calls_failed(run: RunFiles) -> list[Tested]:
    """More calls of a component fail than before, or have answers that the limit of tokens cut, though runs go on."""
    tests = []
    for name in _components(run.examples):
        for words, is_so in (("failed", _call_failed), ("were cut at their limit of tokens", _call_cut)):
            more = rise(run.examples, partial(_any_call, name, is_so))
            sides = [_count_calls(run.examples, name, is_so, side) for side in ("before", "after")]
            tests.append(
                Tested(
                    *above_zero(more),
                    partial(_calls_finding, name, words, sides) if more.sum() >= _FEWEST else None,
                    "failures" if is_so is _call_failed else f"cut {name}",
                    frozenset(np.flatnonzero(more > 0).tolist()) if is_so is _call_cut else frozenset(),
                )
            )
    return tests


def _calls_finding(name: str, words: str, sides: Sequence[tuple[int, int]]) -> Finding:
    (before, _), (after, calls) = sides
    sentence = f"{after} of {counted(calls, 'call')} of {plain(name)} {words}, {before} before."
    return Finding("failures", sentence, "failures", 3)


def answers_unread(run: RunFiles) -> list[Tested]:
    """More answers than before cannot be read, or are cut, by the counts of the results."""
    tests = []
    fields = {"unread": "cannot be read"} | ({} if run.examples else {"cut": "were cut at their limit of tokens"})
    for field, words in fields.items():
        for name, row in ((run.results or {}).get(field) or {}).items():
            before, after = row["baseline"], row["optimized"]
            p_value, least = above_zero(np.array([1.0] * after + [-1.0] * before))
            sides = ((before, row["answers"] // 2), (after, row["answers"] // 2))
            finding = partial(_unread_finding, name, words, sides)
            tests.append(Tested(p_value, least, finding if after - before >= _FEWEST else None, f"{field} {name}"))
    return tests


def _unread_finding(name: str, words: str, sides: Sequence[tuple[int, int]]) -> Finding:
    (before, _), (after, answers) = sides
    sentence = f"{after} of {counted(answers, 'answer')} of {plain(name)} {words}, {before} before."
    return Finding("failures", sentence, "failures", 3)


def calls_grew(run: RunFiles) -> list[Tested]:
    """A component is called much more often in a run than before: a loop that does not end."""
    tests = []
    for name in _components(run.examples):
        more = rise(run.examples, partial(_calls_of, name))
        before, after = (
            np.mean([mean_of(row, side, partial(_calls_of, name)) for row in run.examples])
            for side in ("before", "after")
        )
        sentence = (
            f"{plain(name)} is called {after:.1f} times in a run, {before:.1f} times before: each run pays for it."
        )
        finding = partial(Finding, "calls_grew", sentence, "bill", 4) if before and after >= _MORE * before else None
        tests.append(Tested(*above_zero(more), finding, f"calls {name}"))
    return tests


def no_longer_called(run: RunFiles) -> list[Finding]:
    """A component that most runs called is called by none, although they end well."""
    found = []
    for name in _components(run.examples):
        before = [mean_of(row, "before", partial(_calls_of, name)) for row in run.examples]
        after = [one for row in run.examples for one in row["after"]["runs"] if not _failed(one)]
        called = sum(count > 0 for count in before)
        if len(after) >= _FEWEST and 2 * called > len(before) and not any(_calls_of(name, one) for one in after):
            total = counted(len(before), "example")
            sentence = f"{plain(name)} is no longer called: {called} of {total} called it before."
            found.append(Finding("not_called", sentence, "flips", 2))
    return found


def outputs_say_nothing(run: RunFiles) -> list[Tested]:
    """A component inside the program gives nothing, a refusal, an error or a loop more often than before."""
    rows = run.examples
    tests = []
    for name, field in _inner_fields(rows):
        for words, holds in SORTS.items():
            more = rise(rows, partial(_any_output, name, field, holds))
            new = np.flatnonzero(more > 0)
            finding = partial(_output_finding, rows, name, field, words, holds, new) if more.sum() >= _FEWEST else None
            tests.append(Tested(*above_zero(more), finding, f"outputs {name}", frozenset(new.tolist())))
    return tests


def _output_finding(
    rows: Sequence[Row], name: str, field: str, words: str, holds: Callable[[str], bool], new: np.ndarray
) -> Finding:
    measure = partial(_any_output, name, field, holds)
    before, after = (sum(mean_of(row, side, measure) for row in rows) for side in ("before", "after"))
    worse = int((change([rows[index] for index in new]) < 0).sum())
    sentence = (
        f"In {after:,.0f} of {counted(len(rows), 'example')} the {plain(field)} of {plain(name)} is {words}, "
        f"{before:,.0f} before; of those that are new {worse} got worse."
    )
    return Finding("output", sentence, "flips", 3)


def outputs_constant(run: RunFiles) -> list[Tested]:
    """A component inside the program gives one and the same output, whatever it gets."""
    rows = run.examples
    tests = []
    for name, field in _inner_fields(rows):
        usual = Counter(text for row in rows for side in ("before", "after") for text in _texts(row, side, name, field))
        for text, _ in usual.most_common(2):
            more = rise(rows, partial(_any_output, name, field, partial(_equals, text)))
            before, after = (
                np.mean([mean_of(row, side, partial(_any_output, name, field, partial(_equals, text))) for row in rows])
                for side in ("before", "after")
            )
            sentence = (
                f"{plain(name)} gives one and the same {plain(field)}, {quoted(text)}, in {after:.0%} of "
                f"{counted(len(rows), 'example')}, {before:.0%} before."
            )
            constant = (after >= _CONSTANT and 2 * before <= after) or (after == 1 and before <= _CONSTANT)
            finding = partial(Finding, "constant", sentence, "flips", 2) if constant and len(rows) > _FEWEST else None
            tests.append(Tested(*above_zero(more), finding, f"outputs {name}", frozenset(np.flatnonzero(more > 0))))
    return tests


def _equals(text: str, other: str) -> bool:
    return normal(other) == text


def _components(rows: Sequence[Row]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        for side in ("before", "after"):
            for run in row[side]["runs"]:
                names |= dict.fromkeys(call["component"] for call in run.get("calls", ()))
    return list(names)


def _inner_fields(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Components and fields of their outputs that are not the program's own outputs."""
    found: Counter[tuple[str, str]] = Counter()
    own: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for side in ("before", "after"):
            for run in row[side]["runs"]:
                for call in run.get("calls", ()):
                    for field, value in call["outputs"].items():
                        found[call["component"], field] += 1
                        own[call["component"], field] += value in run["outputs"].values()
    return [one for one, count in found.items() if 2 * own[one] <= count]


def _texts(row: Row, side: str, name: str, field: str) -> list[str]:
    """What a component gave on an example, each text once."""
    calls = [call for run in row[side]["runs"] for call in run.get("calls", ()) if call["component"] == name]
    return list(dict.fromkeys(normal(text_of(call["outputs"][field])) for call in calls if field in call["outputs"]))


def _failed(run: Run) -> float:
    return float(run.get("outcome", "ok") != "ok")


def _call_failed(call: Mapping[str, Any]) -> bool:
    return call["outcome"] != "ok"


def _call_cut(call: Mapping[str, Any]) -> bool:
    return call["outcome"] == "ok" and bool(call.get("detail"))


def _any_call(name: str, is_so: Callable[[Mapping[str, Any]], bool], run: Run) -> float:
    return float(any(call["component"] == name and is_so(call) for call in run.get("calls", ())))


def _any_output(name: str, field: str, holds: Callable[[str], bool], run: Run) -> float:
    texts = [
        text_of(call["outputs"][field])
        for call in run.get("calls", ())
        if call["component"] == name and call["outcome"] == "ok" and field in call["outputs"]
    ]
    return float(any(map(holds, texts)))


def _calls_of(name: str, run: Run) -> float:
    return float(sum(call["component"] == name for call in run.get("calls", ())))


def _count_calls(
    rows: Sequence[Row], name: str, is_so: Callable[[Mapping[str, Any]], bool], side: str
) -> tuple[int, int]:
    calls = [call for row in rows for run in row[side]["runs"] for call in run.get("calls", ())]
    own = [call for call in calls if call["component"] == name]
    return sum(map(is_so, own)), len(own)
