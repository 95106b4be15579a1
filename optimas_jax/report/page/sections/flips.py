"""Examples whose score changed, open to the calls of both runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.report.page import text
from optimas_jax.report.page.sections.calls import CallPair, call_pairs
from optimas_jax.report.run_files import RunFiles

MOST = 200  # examples that are shown
_CHARACTERS = 900_000  # of the texts of all calls together
_CALLS, _FEWEST_CALLS = 2_400, 12  # calls of all examples together, and of one example
_LIMITS = (4_000, 2_000, 1_000, 500, 250, 120, 60)  # characters of one text; the first limit that fits is used


@dataclasses.dataclass(frozen=True)
class Flip:
    """An example whose score changed.

    Attributes:
      anchor: id of its element.
      name: of the example.
      kind: of the example; "" for none.
      way: ``worse`` or ``better``.
      asked: its inputs in short, gold: what was expected.
      before, after: scores; outputs_before, outputs_after: what the runs returned.
      feedback: of the metric on the run after.
      groups: calls of both runs; successive calls that are the same form one group.
      earlier, later: numbers of calls that are left out.
      repeat: a sentence that names the repeat that is shown, where there are several.
    """

    anchor: str
    name: str
    kind: str
    way: str
    asked: str
    gold: str
    before: float
    after: float
    outputs_before: str
    outputs_after: str
    feedback: str
    groups: Sequence[Sequence[CallPair]]
    earlier: int
    later: int
    repeat: str


@dataclasses.dataclass(frozen=True)
class Flips:
    """The examples of an evaluation whose score changed.

    Attributes:
      shown: those that became worse first, the largest changes first.
      better, worse, same: numbers of examples.
      kinds: kinds of the examples that are shown.
    """

    shown: Sequence[Flip]
    better: int
    worse: int
    same: int
    kinds: Sequence[str]

    @property
    def left_out(self) -> int:
        return self.better + self.worse - len(self.shown)


def flips(run: RunFiles) -> Flips:
    """The examples whose score changed, at most ``MOST``: if possible as many that became worse as better."""
    changed = sorted((row for row in run.examples if change_of(row)), key=change_of)
    worse = [row for row in changed if change_of(row) < 0]
    better = [row for row in reversed(changed) if change_of(row) > 0]
    few = min(len(better), max(MOST // 2, MOST - len(worse)))
    rows = [*worse[: MOST - few], *better[:few]]
    most = _limit(rows)
    calls = max(_FEWEST_CALLS, _CALLS // max(1, len(rows)))
    shown = _with_own_anchors([_flip(row, most, calls) for row in rows])
    kinds = list(dict.fromkeys(flip.kind for flip in shown if flip.kind))
    return Flips(shown, len(better), len(worse), len(run.examples) - len(changed), kinds)


def change_of(row: Mapping[str, Any]) -> float:
    """Score after minus score before."""
    return row["after"]["score"] - row["before"]["score"]


def example_anchor(name: str) -> str:
    """The id of an example on the page."""
    return text.slug("example", name)


def _limit(rows: Sequence[Mapping[str, Any]]) -> int:
    """The limit of characters of each text that keeps all texts together within ``_CHARACTERS``."""
    lengths = [
        len(text.plain(value))
        for row in rows
        for side in ("before", "after")
        for call in row[side]["runs"][0].get("calls") or ()
        for fields in (call.get("inputs") or {}, call.get("outputs") or {})
        for value in fields.values()
    ]
    fits = (most for most in _LIMITS if sum(min(length, most) for length in lengths) <= _CHARACTERS)
    return next(fits, _LIMITS[-1])


def _with_own_anchors(flips: Sequence[Flip]) -> list[Flip]:
    """Gives examples of the same name, which a user's table may have, different anchors."""
    seen: set[str] = set()
    shown = []
    for index, flip in enumerate(flips):
        shown.append(dataclasses.replace(flip, anchor=f"{flip.anchor}-{index}") if flip.anchor in seen else flip)
        seen.add(flip.anchor)
    return shown


def _flip(row: Mapping[str, Any], most: int, most_calls: int) -> Flip:
    repeat = _telling_repeat(row)
    before, after = (row[side]["runs"][min(repeat, len(row[side]["runs"]) - 1)] for side in ("before", "after"))
    repeats = len(row["after"]["runs"])
    calls = call_pairs(before, after, row, most, most_calls)
    repeat_note = f"Repeat {repeat + 1} of {repeats} is shown; scores are means over all." if repeats > 1 else ""
    return Flip(
        anchor=example_anchor(row["id"]),
        name=text.name(row["id"]),
        kind=text.name(row["kind"]),
        way="worse" if change_of(row) < 0 else "better",
        asked=in_short(row["inputs"], 400),
        gold=in_short(row["gold"], 300),
        before=row["before"]["score"],
        after=row["after"]["score"],
        outputs_before=_returned(before),
        outputs_after=_returned(after),
        feedback=text.clip(str(after.get("feedback") or ""), most),
        groups=[list(group) for _, group in itertools.groupby(calls.pairs, _group)],
        earlier=calls.earlier,
        later=calls.later,
        repeat=repeat_note,
    )


def _group(pair: CallPair) -> bool:
    return pair.word == "same"


def _telling_repeat(row: Mapping[str, Any]) -> int:
    """Index of the first repeat whose change has the sign of the example's change."""
    pairs = zip(row["before"]["runs"], row["after"]["runs"], strict=False)
    changes = [_number(after.get("score")) - _number(before.get("score")) for before, after in pairs]
    return next((index for index, change in enumerate(changes) if change * change_of(row) > 0), 0)


def _number(value: Any) -> float:
    return float(value) if text.is_number(value) else 0.0


def _returned(run: Mapping[str, Any]) -> str:
    outcome = str(run.get("outcome") or "ok")
    returned = in_short(run.get("outputs") or {}, 300)
    return returned if outcome == "ok" else f"({outcome}) {returned}".strip()


def in_short(fields: Mapping[str, Any], most: int) -> str:
    """Fields in one line: the value of a single field, otherwise names and values."""
    values = {str(name): " ".join(text.plain(value)[: 2 * most].split()) for name, value in fields.items()}
    if len(values) == 1:
        return text.clip(next(iter(values.values())), most)
    return text.clip("; ".join(f"{name}: {value[: most // 2]}" for name, value in values.items()), most)
