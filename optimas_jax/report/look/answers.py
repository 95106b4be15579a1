"""Rules on answers: a sort of answers that became more frequent where the gold answer is of another sort."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from optimas_jax.report.look.changes import Demos, kept_prompts
from optimas_jax.report.look.examples import Row, above_zero, change
from optimas_jax.report.look.finding import Claim, Finding, quoted
from optimas_jax.report.look.texts.answer_sorts import SORTS, WITHOUT_GOLD, Asked, Sort, is_usual
from optimas_jax.report.look.texts.sorts import normal, text_of
from optimas_jax.report.page.text import counted
from optimas_jax.report.run_files import RunFiles

_FEWEST = 3  # examples with such an answer, more than before
_SHARE = 0.03  # of all examples, more than before
_REPEATED = 4  # times that each gold answer comes up on average where they are a closed set
_MORE = 1.3  # times as often as in the gold answers
_FIELDS = 8  # of the outputs, at most

Texts = Sequence[Sequence[str]]  # [examples][runs]; a missing answer is left out


@dataclasses.dataclass(frozen=True)
class Answers:
    """The answers in one field of the outputs.

    Attributes:
      rows: the examples.
      asked: what the answers of each example are held against.
      before, after: the answers.
      demos: answers in demonstrations that were kept.
    """

    rows: Sequence[Row]
    asked: Sequence[Asked]
    before: Texts
    after: Texts
    demos: Sequence[str]


def answers_of_another_sort(run: RunFiles) -> list[Claim]:
    """Answers that are more often of some sort than before, where the gold answer is of another."""
    kept = kept_prompts(run)
    tests = []
    for field, judged in _fields(run.examples).items():
        answers = _answers(run.examples, field, kept, judged=judged)
        gold = [normal(text) for asked in answers.asked for text in asked.gold]
        closed = frozenset(gold) if len(set(gold)) * _REPEATED <= len(gold) else frozenset()
        with_closed = [dataclasses.replace(asked, closed=closed) for asked in answers.asked]
        answers = dataclasses.replace(answers, asked=with_closed)
        tests += [_test(answers, sort, field) for sort in (SORTS if judged else WITHOUT_GOLD)]
        for usual in _usual(answers) if judged else ():
            with_usual = [dataclasses.replace(asked, usual=usual) for asked in answers.asked]
            sort = Sort("one and the same text", is_usual, other="is another one")
            claim = _test(dataclasses.replace(answers, asked=with_usual), sort, field)
            count = sum(normal(text) == usual for texts in answers.after for text in texts)
            is_more = count >= _MORE * gold.count(usual) * len(answers.after[0] or "-")  # than in the gold answers
            tests.append(claim if is_more else dataclasses.replace(claim, finding=None))
    return tests


def _test(answers: Answers, sort: Sort, field: str) -> Claim:
    """Claim that a sort of answers has become more frequent among examples whose gold answer is of another sort."""
    eligible = [index for index, asked in enumerate(answers.asked) if not sort.expected(asked)]
    before, after = (
        np.array([_share(sort, texts[index], answers.asked[index]) for index in eligible], np.float64)
        for texts in (answers.before, answers.after)
    )
    rise = after - before
    new = [index for index, more in zip(eligible, rise, strict=True) if more > 0]
    enough = rise.sum() >= max(_FEWEST, _SHARE * len(answers.rows))
    finding = partial(_finding, answers, sort, new, before, after) if enough else None
    return Claim(*above_zero(rise), finding, f"answers {field}", frozenset(new))


def _share(sort: Sort, texts: Sequence[str], asked: Asked) -> float:
    """Share of the answers of an example that are of a sort."""
    return sum(sort.found(text, asked) for text in texts) / len(texts) if texts else 0.0


def _finding(answers: Answers, sort: Sort, new: Sequence[int], before: np.ndarray, after: np.ndarray) -> Finding:
    gained = change([answers.rows[index] for index in new])
    shown = new[int(gained.argmin())]
    text = next(text for text in answers.after[shown] if sort.found(text, answers.asked[shown]))
    other = f"whose gold answer {sort.other} are" if answers.asked[shown].gold else "are"
    sentence = (
        f"{_amount(after.sum())} of {len(after)} examples {other} now answered with {sort.words}, "
        f"{_amount(before.sum())} before ({_question(answers.rows[shown])}: {quoted(text)}). Of those that are new, "
        f"{(gained < 0).sum()} got worse and {(gained > 0).sum()} better{_by_demos(answers, sort, shown)}."
    )
    return Finding("answer_type", sentence, "flips", 2 if gained.sum() <= 0 else 4)


def _by_demos(answers: Answers, sort: Sort, shown: int) -> str:
    """Clause about kept demonstrations whose answers are mostly of the same sort; "" otherwise."""
    bare = dataclasses.replace(answers.asked[shown], demos=frozenset())
    same = sum(sort.holds(text, bare) for text in answers.demos)
    if not answers.demos or 2 * same < len(answers.demos):
        return ""
    return f"; {same} of {counted(len(answers.demos), 'answer')} in the demonstrations that were kept are of this sort"


def _amount(count: float) -> str:
    return f"{count:,.0f}" if abs(count - round(count)) < 1e-9 else f"{count:,.1f}"


def _question(row: Row) -> str:
    texts = [text_of(value) for value in row["inputs"].values()]
    return quoted(min((text for text in texts if text.strip()), key=len, default=row["id"]), 80)


def _fields(rows: Sequence[Row]) -> dict[str, bool]:
    """Fields of the outputs, and whether a gold answer judges them: a gold answer of the same name or, where no field
    has such a name, any gold answer for the first field."""
    runs = [run for row in rows for side in ("before", "after") for run in row[side]["runs"]]
    names = list(dict.fromkeys(name for run in runs for name in run["outputs"]))[:_FIELDS]
    judged = {name for name in names if any(name in row["gold"] for row in rows)} or set(names[:1])
    return {name: name in judged for name in names}


def _answers(rows: Sequence[Row], field: str, kept: Demos, *, judged: bool) -> Answers:
    before, after = (
        [[text_of(run["outputs"][field]) for run in row[side]["runs"] if field in run["outputs"]] for row in rows]
        for side in ("before", "after")
    )
    demos = [text for _, _, outputs in kept.shown for text in outputs]
    return Answers(rows, [_asked(row, field, kept, judged=judged) for row in rows], before, after, demos)


def _asked(row: Row, field: str, kept: Demos, *, judged: bool) -> Asked:
    gold = row["gold"]
    values = [gold[field]] if field in gold else list(gold.values()) if judged else []
    texts = list(dict.fromkeys(text for value in values for text in _leaves(value)))
    labels = [f"{name.replace('_', ' ').casefold()}:" for name in (*row["inputs"], field, "answer", "question")]
    inputs = [text_of(value) for value in row["inputs"].values()]
    return Asked(field, texts, inputs, kept.answers, kept.shingles, labels)


def _leaves(value: Any) -> list[str]:
    """Texts of a gold answer, which may be a list of alternatives."""
    if isinstance(value, list):
        return [text for item in value for text in _leaves(item)]
    text = text_of(value)
    return [text] if text.strip() else []


def _usual(answers: Answers) -> list[str]:
    """The two most frequent answers, before and after together."""
    counts = Counter(normal(text) for texts in (*answers.before, *answers.after) for text in texts)
    return [text for text, count in counts.most_common(2) if text and count > _FEWEST]
