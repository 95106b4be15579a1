"""Rules on outputs of components inside the program: nothing, a refusal, the same for all inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np

from optimas_jax.report.look.examples import Call, Calls, Row, above_zero, calls_of, change, share_of
from optimas_jax.report.look.finding import Claim, Finding, plain, quoted
from optimas_jax.report.look.texts import sorts
from optimas_jax.report.look.texts.sorts import normal, text_of
from optimas_jax.report.page.text import counted
from optimas_jax.report.run_files import RunFiles

_FEWEST = 3  # examples, more than before
_CONSTANT = 0.8  # share of one output among all outputs from which on the component is as good as constant
SORTS: Mapping[str, Callable[[str], bool]] = {
    "nothing, or a placeholder": sorts.is_nothing,
    "a refusal": sorts.is_refusal,
    "an error message": sorts.is_error,
    "text that repeats itself": sorts.is_loop,
}


def outputs_say_nothing(run: RunFiles) -> list[Claim]:
    """A component gives nothing, a refusal, an error or a loop more often than before."""
    tests = []
    for (name, field), sides in _inner_outputs(run.examples).items():
        for words, holds in SORTS.items():
            is_so = partial(_text_is, field, cache(holds))  # most texts are the same before and after
            before, after = (share_of(sides[side], is_so) for side in ("before", "after"))
            new = np.flatnonzero(after > before)
            finding = partial(_output_finding, run.examples, name, field, words, before, after)
            enough = (after - before).sum() >= _FEWEST
            about = f"outputs {name}", frozenset(new.tolist())
            tests.append(Claim(*above_zero(after - before), finding if enough else None, *about))
    return tests


def _output_finding(
    rows: Sequence[Row], name: str, field: str, words: str, before: np.ndarray, after: np.ndarray
) -> Finding:
    new = [rows[index] for index in np.flatnonzero(after > before).tolist()]
    sentence = (
        f"In {after.sum():,.0f} of {counted(len(rows), 'example')} {plain(name)} gives {words} as {plain(field)}, "
        f"{before.sum():,.0f} before. Of those that are new, {(change(new) < 0).sum()} got worse."
    )
    return Finding("output", sentence, "flips", 3)


def outputs_constant(run: RunFiles) -> list[Claim]:
    """A component gives one and the same output for all inputs."""
    tests = []
    for (name, field), sides in _inner_outputs(run.examples).items():
        as_compared = cache(normal)
        for usual in _usual(field, sides, as_compared):
            is_so = partial(_text_is, field, partial(_equals, as_compared, usual))
            before, after = (share_of(sides[side], is_so) for side in ("before", "after"))
            was, now = float(before.mean()), float(after.mean())
            sentence = (
                f"{plain(name)} gives one and the same {plain(field)}, {quoted(usual)}, in {after.sum():,.0f} of "
                f"{counted(len(after), 'example')}, {before.sum():,.0f} before."
            )
            constant = (now >= _CONSTANT and 2 * was <= now) or (now == 1 and was <= _CONSTANT)
            rank = 2 if change(run.examples).sum() <= 0 else 4
            finding = partial(Finding, "constant", sentence, "flips", rank) if constant else None
            about = f"outputs {name}", frozenset(np.flatnonzero(after > before).tolist())
            tests.append(Claim(*above_zero(after - before), finding, *about))
    return tests


def _usual(field: str, sides: Mapping[str, Calls], as_compared: Callable[[str], str]) -> list[str]:
    """The two most frequent outputs, before and after together; an output counts once for each example and side."""
    counts: Counter[str] = Counter()
    for calls in sides.values():
        for runs in calls:
            counts.update(
                {as_compared(text_of(call["outputs"].get(field))) for run_calls in runs for call in run_calls}
            )
    return [text for text, count in counts.most_common(2) if text and count > _FEWEST]


def _inner_outputs(rows: Sequence[Row]) -> dict[tuple[str, str], Mapping[str, Calls]]:
    """Calls by component and field of its outputs, for fields that are not the program's own outputs."""
    inner = {}
    program_outputs = [
        list(run["outputs"].values()) for side in ("before", "after") for row in rows for run in row[side]["runs"]
    ]
    for name, sides in calls_of(rows).items():
        runs = [run_calls for side in ("before", "after") for runs in sides[side] for run_calls in runs]
        fields = dict.fromkeys(field for run_calls in runs for call in run_calls for field in call["outputs"])
        for field in fields:
            pairs = zip(runs, program_outputs, strict=True)
            calls = [(call, outputs) for run_calls, outputs in pairs for call in run_calls]
            same = sum(call["outputs"].get(field) in outputs for call, outputs in calls)
            if 2 * same <= len(calls):
                inner[name, field] = sides
    return inner


def _text_is(field: str, holds: Callable[[str], bool], call: Call) -> bool:
    return call["outcome"] == "ok" and field in call["outputs"] and holds(text_of(call["outputs"][field]))


def _equals(as_compared: Callable[[str], str], text: str, other: str) -> bool:
    return as_compared(other) == text
