"""The calls of two runs of one example side by side, with the first difference marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optimas_jax.report.page import text

_CONTEXT = 3  # calls before the first difference that are shown
_FIELDS = 40  # fields of a call that are shown


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a text; ``marked`` where it differs from the other text."""

    text: str
    marked: bool


@dataclasses.dataclass(frozen=True)
class Side:
    """One run's side of a call.

    Attributes:
      inputs: name and text of each; an input that another call wrote, or that the example gives, has its source instead
        of its text.
      outputs: name and parts of each text.
      failure: outcome and detail where it is not ``ok``, or answers that were cut short.
    """

    inputs: Sequence[tuple[str, str]]
    outputs: Sequence[tuple[str, Sequence[Part]]]
    failure: str


@dataclasses.dataclass(frozen=True)
class CallPair:
    """A call in both runs, or in one.

    Attributes:
      component: its name, with the occurrence from the second on.
      word: how the two differ.
      before, after: None where the run has no such call; ``after`` also where both are the same.
    """

    component: str
    word: str
    before: Side | None
    after: Side | None


@dataclasses.dataclass(frozen=True)
class Calls:
    """The calls of two runs; ``earlier`` and ``later`` calls are left out, the earlier ones are the same in both."""

    pairs: Sequence[CallPair]
    earlier: int
    later: int


def call_pairs(
    before: Mapping[str, Any], after: Mapping[str, Any], example: Mapping[str, Any], most: int, calls: int
) -> Calls:
    """The calls of two runs of an example; calls of the same component and occurrence are a pair.

    Args:
      most: largest number of characters of a text that are shown.
      calls: largest number of calls that are shown; of more calls, from shortly before the first difference on.
    """
    old, new = ({_key(call): call for call in run.get("calls") or ()} for run in (before, after))
    keys = list(_merged(list(old), list(new)))
    words = [_word(old.get(key), new.get(key)) for key in keys]
    first = next((index for index, word in enumerate(words) if word != "same"), 0)
    start = max(0, min(first - _CONTEXT, len(keys) - calls)) if len(keys) > calls else 0
    sources = [_sources(example, run.get("calls") or ()) for run in (before, after)]
    pairs = []
    for index in range(start, min(start + calls, len(keys))):
        key, word = keys[index], words[index]
        old_call, new_call = old.get(key), new.get(key)
        outputs = (old_call or {}).get("outputs"), (new_call or {}).get("outputs")
        if index == first and word != "same":
            word = "first difference" if word == "differs" else f"first difference: {word}"
        pairs.append(
            CallPair(
                text.name(key[0]) + f" ({key[1] + 1})" * bool(key[1]),
                word,
                old_call and _side(old_call, sources[0], outputs[1] if new_call else None, most),
                None
                if word == "same"
                else new_call and _side(new_call, sources[1], outputs[0] if old_call else None, most),
            )
        )
    return Calls(pairs, start, len(keys) - start - len(pairs))


def _word(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """How the two sides of a call differ."""
    if before is None or after is None:
        return "only before" if after is None else "only after"
    return "same" if _content(before) == _content(after) else "differs"


def _key(call: Mapping[str, Any]) -> tuple[str, int]:
    return str(call["component"]), int(call.get("occurrence") or 0)


def _content(call: Mapping[str, Any]) -> tuple[Any, ...]:
    return call.get("inputs"), call.get("outputs"), call.get("outcome"), call.get("detail")


def _merged(old: Sequence[tuple[str, int]], new: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The keys of both runs, in an order that agrees with the order of each run as far as the two agree."""
    shared, yielded, position = set(old) & set(new), set[tuple[str, int]](), 0
    for key in old:
        if key in shared:
            while position < len(new) and new[position] != key and new[position] not in shared:
                yielded.add(new[position])
                yield new[position]
                position += 1
            position += position < len(new) and new[position] == key
        yielded.add(key)
        yield key
    yield from (key for key in new if key not in yielded)


def _sources(example: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Source of each value, by field and text: the example, or the call that wrote it."""
    names = {(str(name), text.plain(value)): "as given" for name, value in (example.get("inputs") or {}).items()}
    for call in calls:
        for name, value in (call.get("outputs") or {}).items():
            names.setdefault((str(name), text.plain(value)), f"of {call['component']}")
    return names


def _side(
    call: Mapping[str, Any], sources: Mapping[tuple[str, str], str], other: Mapping[str, Any] | None, most: int
) -> Side:
    inputs = []
    for name, value in list((call.get("inputs") or {}).items())[:_FIELDS]:
        shown = text.plain(value)
        source = sources.get((str(name), shown))
        is_own = source == f"of {call['component']}"
        inputs.append((text.name(name), text.clip(shown, most) if source is None or is_own else f"({source})"))
    outputs = []
    for name, value in list((call.get("outputs") or {}).items())[:_FIELDS]:
        shown = text.plain(value)
        other_text = text.plain(other[name]) if other and name in other else None
        outputs.append((text.name(name), marked(shown, other_text, most)))
    outcome, detail = str(call.get("outcome") or "ok"), str(call.get("detail") or "")
    failure = "" if outcome == "ok" and not detail else ": ".join(filter(None, (outcome, text.clip(detail, most))))
    return Side(inputs, outputs, failure)


def marked(shown: str, other: str | None, most: int) -> list[Part]:
    """A text in parts: the beginning and the end that it shares with the other text, and between them the difference,
    which is marked. Without another text nothing is marked."""
    if other is None or shown == other:
        return [Part(text.clip(shown, most), False)]
    start = _common(shown, other)
    end = min(_common(shown[::-1], other[::-1]), len(shown) - start, len(other) - start)
    while start and not shown[start - 1].isspace():  # whole words
        start -= 1
    while end and not shown[len(shown) - end].isspace():
        end -= 1
    head, middle, tail = shown[:start], shown[start : len(shown) - end], shown[len(shown) - end :]
    if start > most // 2:  # the reader is to see the difference
        head = f"… {head[-(most // 2) :]}"
    parts = [Part(head, False), Part(text.clip(middle, most), True), Part(text.clip(tail, most // 2), False)]
    return [part for part in parts if part.text]


def _common(first: str, second: str) -> int:
    """Number of characters at the beginning that two texts share."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # slices are compared faster than letters
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low
