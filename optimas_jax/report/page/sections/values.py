"""Values of components as text, and their changes: instructions compared word by word, demonstrations."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from optimas_jax.report.page import text

_WORDS = 3_000  # words of a text that is compared word by word; longer texts are compared line by line
_LINES = 3_000
_MOST = 20_000  # characters of a text that are shown
_SETTINGS = 60  # names of a value that are shown
_DEMOS = 12  # demonstrations that are shown
_FIELD, _FIELDS = 1_500, 20  # of a demonstration: characters of a field, and number of fields
_TOKEN = re.compile(r"\s+|\w+|[^\w\s]")
ValueData = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a comparison: the ``same`` in both texts, or only in the ``old`` or the ``new`` one."""

    kind: Literal["same", "old", "new"]
    text: str


@dataclasses.dataclass(frozen=True)
class DemoCard:
    """A demonstration: ``new``, ``kept`` or ``removed``."""

    state: str
    inputs: Sequence[tuple[str, str]]
    outputs: Sequence[tuple[str, str]]
    origin: str


@dataclasses.dataclass(frozen=True)
class ValueChange:
    """How a new value differs from the old one.

    Attributes:
      summary: in a few words.
      text: the instruction, compared; empty where there is none.
      changed: whether the instruction changed.
      demos: demonstrations of a prompt.
      more_demos: number of demonstrations that are not shown.
      settings: name, old text and new text of everything else.
    """

    summary: str
    text: Sequence[Piece] = ()
    changed: bool = False
    demos: Sequence[DemoCard] = ()
    more_demos: int = 0
    settings: Sequence[tuple[str, str, str]] = ()


def value_change(old: ValueData | None, new: ValueData) -> ValueChange:
    """How a value differs from an earlier one of the same component.

    Args:
      old: None where it is not known.
    """
    if new.get("type") == "prompt":
        return _prompt_change(old if old and old.get("type") == "prompt" else None, new)
    before, after = _settings(old), _settings(new)
    names = dict.fromkeys([*after, *before])
    rows = [(text.name(name), before.get(name, ""), after.get(name, "")) for name in list(names)[:_SETTINGS]]
    differing = [row for row in rows if row[1] != row[2]] if old else rows
    words = ", ".join(
        f"{name} {old_text} → {new_text}" if old else f"{name} {new_text}" for name, old_text, new_text in differing[:3]
    )
    return ValueChange(text.clip(words or "the same", 200), settings=rows)


def _prompt_change(old: ValueData | None, new: ValueData) -> ValueChange:
    before, after = str((old or {}).get("instruction", "")), str(new.get("instruction", ""))
    known = [_demo_key(demo) for demo in (old or {}).get("demos", ())]
    kept = [_demo_key(demo) for demo in new.get("demos", ())]
    cards = [_card(demo, "kept" if _demo_key(demo) in known else "new") for demo in new.get("demos", ())]
    cards += [_card(demo, "removed") for demo in (old or {}).get("demos", ()) if _demo_key(demo) not in kept]
    changed = old is not None and before != after
    pieces = list(compared(before, after)) if changed else [Piece("same", text.clip(after, _MOST))]
    parts = ["another instruction"] if changed else []
    for state, word in (("new", "new"), ("removed", "removed")):
        if amount := sum(card.state == state for card in cards):
            parts.append(f"{text.counted(amount, 'demonstration')} {word}")
    return ValueChange(", ".join(parts) or "the same", pieces, changed, cards[:_DEMOS], len(cards[_DEMOS:]))


def _demo_key(demo: Mapping[str, Any]) -> str:
    return text.plain([demo.get("inputs"), demo.get("outputs")])


def _card(demo: Mapping[str, Any], state: str) -> DemoCard:
    inputs, outputs = (
        [(text.name(name), text.clip(text.plain(value), _FIELD)) for name, value in list(demo[part].items())[:_FIELDS]]
        for part in ("inputs", "outputs")
    )
    origin = demo.get("recorded") or demo.get("example_id") or ""
    return DemoCard(state, inputs, outputs, text.name(origin))


def _settings(value: ValueData | None) -> dict[str, str]:
    """A value as names and texts; its texts are not compared word by word."""
    match (value or {}).get("type"):
        case "hyperparameters":
            return {
                str(name): text.clip(text.plain(setting), 200) for name, setting in (value or {})["settings"].items()
            }
        case "choice":
            return {"choice": text.clip(str((value or {})["name"]), 200)}
        case "adapter":
            return {"weights": f"adapter {(value or {})['digest']}" if (value or {})["digest"] else "base model"}
        case "per_instance":
            return _per_instance(value or {})
        case "prompt":
            return {"prompt": text.clip(str((value or {}).get("instruction", "")), 200)}
        case _:
            return {}


def _per_instance(value: ValueData) -> dict[str, str]:
    samples = value.get("samples", 1)
    outputs = f"{text.counted(samples, 'output')} of each" if samples != 1 else "one output of each"
    values = {f"value {n + 1}": text.clip(in_words(inner), 600) for n, inner in enumerate(value.get("values", ()))}
    chosen = (
        "the output with the highest local reward"
        if value.get("mode") == "argmax"
        else "an output at random, by exp(local reward)"
    )
    return {"chosen for every input": f"{chosen}, {outputs}", "local reward": str(value.get("reward", "")), **values}


def in_words(value: ValueData) -> str:
    """A value as one text."""
    if value.get("type") == "prompt":
        demos = f" ({text.counted(len(value.get('demos', ())), 'demonstration')})" if value.get("demos") else ""
        return f"{value.get('instruction', '')}{demos}"
    return ", ".join(f"{name} {words}" for name, words in _settings(value).items())


def compared(old: str, new: str) -> Iterator[Piece]:
    """Two texts merged, with the parts of only one marked: by words, long texts by lines, very long texts as wholes."""
    sides = [_TOKEN.findall(side) for side in (old, new)]
    if max(map(len, sides)) > _WORDS:
        sides = [side.splitlines(keepends=True) for side in (old, new)]
    if max(map(len, sides)) > _LINES:
        sides = [[text.clip(side, _MOST)] for side in (old, new)]
    matcher = difflib.SequenceMatcher(None, *sides, autojunk=False)
    pieces: list[Piece] = []
    for tag, i, j, k, n in matcher.get_opcodes():
        before, after = "".join(sides[0][i:j]), "".join(sides[1][k:n])
        if tag == "equal":
            pieces.append(Piece("same", after))
        else:
            pieces += [Piece("old", before)] * bool(before) + [Piece("new", after)] * bool(after)
    for piece in _readable(pieces):
        yield Piece(piece.kind, text.clip(piece.text, _MOST))


def _readable(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Merges changes with fewer than three words between them, so that old and new read as wholes."""
    changes: dict[str, str] = {"old": "", "new": ""}
    for index, piece in enumerate(pieces):
        inside = 0 < index < len(pieces) - 1
        if piece.kind == "same" and not (inside and len(piece.text.split()) < 3 and "\n" not in piece.text):
            yield from _flushed(changes)
            changes = {"old": "", "new": ""}
            yield piece
        elif piece.kind == "same":
            changes = {name: held + piece.text for name, held in changes.items()}
        else:
            changes[piece.kind] += piece.text
    yield from _flushed(changes)


def _flushed(changes: Mapping[str, str]) -> Iterator[Piece]:
    old, new = changes["old"], changes["new"]
    shared = len(
        list(itertools.takewhile(lambda pair: pair[0] == pair[1] and pair[0].isspace(), zip(old, new, strict=False)))
    )
    if shared:
        yield Piece("same", old[:shared])
    if old[shared:]:
        yield Piece("old", old[shared:])
    if new[shared:]:
        yield Piece("new", new[shared:])
