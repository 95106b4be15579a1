"""Rules on answers: a sort that crept in, where the gold answer is of another one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from optimas_jax.report.look.answer_sorts import SORTS, Asked, Sort, is_usual
from optimas_jax.report.look.changes import Demos, kept_prompts
from optimas_jax.report.look.examples import Row, above_zero, change, mean_of
from optimas_jax.report.look.finding import Finding, Tested, counted, quoted
from optimas_jax.report.look.sorts import normal, text_of
from optimas_jax.report.run_files import RunFiles

_FEWEST = 3  # more examples with such an answer than before


def answers_of_another_sort(run: RunFiles) -> list[Tested]:
    """Answers that are of some sort more often than before, where the gold answer is not."""
    demos = kept_prompts(run)
    tests = []
    for field in _fields(run.examples):
        asked = [_asked(row, field, demos) for row in run.examples]
        tests += [_test(run.examples, asked, sort, demos) for sort in SORTS]
        for usual in _usual(run.examples, field):
            same = [dataclasses.replace(one, usual=usual) for one in asked]
            tests.append(_test(run.examples, same, Sort(f"one and the same text, {quoted(usual)}", is_usual), demos))
    return tests


def _test(rows: Sequence[Row], asked: Sequence[Asked], sort: Sort, demos: Demos) -> Tested:
    """Whether a sort of answers has become more frequent among examples whose gold answer is of another one."""
    eligible = [index for index, one in enumerate(asked) if not sort.expected(one)]
    shares = [
        np.array([mean_of(rows[index], side, partial(_holds, sort, asked[index])) for index in eligible])
        for side in ("before", "after")
    ]
    rise = shares[1] - shares[0] if eligible else np.zeros(0)
    new = [index for index, more in zip(eligible, rise, strict=True) if more > 0]
    least = max(_FEWEST, 0.03 * len(rows))
    return Tested(
        *above_zero(rise),
        (lambda: _finding(rows, asked, sort, new, shares, demos)) if rise.sum() >= least else None,
        f"answers {asked[0].field}",
        frozenset(new),
    )


def _finding(
    rows: Sequence[Row],
    asked: Sequence[Asked],
    sort: Sort,
    new: Sequence[int],
    shares: Sequence[np.ndarray],
    demos: Demos,
) -> Finding:
    gained = change([rows[index] for index in new])
    shown = min(new, key=lambda index: (gained[new.index(index)], index))
    texts = [text_of(one["outputs"].get(asked[0].field)) for one in rows[shown]["after"]["runs"]]
    text = next((text for text in texts if sort.holds(text, asked[shown])), texts[0])
    counts = [_amount(share.sum()) for share in shares]
    judged = "whose gold answer is not" if asked[shown].gold else ""
    sentence = (
        f"{counts[1]} of {len(shares[1])} examples {judged} {'are' if judged else ''} answered with {sort.words}, "
        f"{counts[0]} before ({_question(rows[shown])}: {quoted(text)}); of those that are new "
        f"{(gained < 0).sum()} got worse, {(gained > 0).sum()} better{_by_demos(sort, asked[shown], demos)}."
    )
    return Finding("answer_type", " ".join(sentence.split()), "flips", 2 if gained.sum() <= 0 else 4)


def _by_demos(sort: Sort, asked: Asked, demos: Demos) -> str:
    """That demonstrations that were kept are of the sort, too."""
    answers = [text for _, _, texts in demos.shown for text in texts]
    same = [text for text in answers if sort.holds(text, dataclasses.replace(asked, demos=frozenset()))]
    if not answers or 2 * len(same) < len(answers):
        return ""
    return f"; so are {len(same)} of {counted(len(answers), 'answer')} of the demonstrations that were kept"


def _holds(sort: Sort, asked: Asked, run: Mapping[str, Any]) -> float:
    return float(asked.field in run["outputs"] and sort.holds(text_of(run["outputs"][asked.field]), asked))


def _amount(count: float) -> str:
    return f"{count:,.0f}" if abs(count - round(count)) < 1e-9 else f"{count:,.1f}"


def _question(row: Row) -> str:
    texts = [text_of(value) for value in row["inputs"].values()]
    return quoted(min((text for text in texts if text.strip()), key=len, default=row["id"]), 80)


def _fields(rows: Sequence[Row]) -> list[str]:
    """Fields of the outputs that are texts, or hold some."""
    names: dict[str, None] = {}
    for row in rows:
        for side in ("before", "after"):
            for run in row[side]["runs"]:
                names |= dict.fromkeys(run["outputs"])
    return list(names)[:8]


def _asked(row: Row, field: str, demos: Demos) -> Asked:
    gold = row["gold"]
    named = {name for name in gold if any(name in run["outputs"] for run in row["after"]["runs"])}
    values = [gold[field]] if field in gold else [value for name, value in gold.items() if name not in named]
    texts = [text for value in values for text in _leaves(value)]
    labels = [f"{name.replace('_', ' ').casefold()}:" for name in (*row["inputs"], field, "answer", "question")]
    inputs = [text_of(value) for value in row["inputs"].values()]
    return Asked(field, texts, inputs, demos.answers, demos.shingles, labels)


def _leaves(value: Any) -> list[str]:
    """Texts of a gold answer: each of several that are right."""
    if isinstance(value, list):
        return [text for one in value for text in _leaves(one)]
    text = text_of(value)
    return [text] if text.strip() else []


def _usual(rows: Sequence[Row], field: str) -> list[str]:
    """The two most frequent answers, before and after together."""
    counts = Counter(
        normal(text_of(run["outputs"].get(field)))
        for row in rows
        for side in ("before", "after")
        for run in row[side]["runs"]
    )
    return [text for text, count in counts.most_common(2) if text and count > 2]
