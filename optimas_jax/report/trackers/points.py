"""What trackers log of an event: scalars and texts, the same for all trackers. ``docs/trackers.md`` lists their names.

A scalar of the search stands at its iteration, and again as ``tokens/NAME`` at the tokens used by then.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.folder import events
from optimas_jax.core.folder.events import Event, name_of
from optimas_jax.core.text.secrets import redact, without_keys
from optimas_jax.core.usage import Usage
from optimas_jax.core.values import Prompt, Value, value_to_json
from optimas_jax.report.page.text import interval, signed

ITERATION, TOKENS, EPOCH, UPDATE = "iteration", "tokens", "epoch", "update"  # axes
_OVER_TOKENS = (events.Curve, events.Gate, events.Race, events.Adaptation)
_LONGEST = 20_000  # letters of a text
_LONGEST_NAME = 60  # letters of a part of a name
_OF_GATES = ("val_gain", "p_value", "expected_gain", "labelled_gain", "local_gain", "n")
Scalars = dict[str, float]
Texts = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a search is.

    Attributes:
      iteration: from 0.
      tokens: used by collecting and the search, as of the last point of the curve.
    """

    iteration: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Point:
    """A scalar on its axis.

    Attributes:
      step: on ``axis``: ``iteration``, ``tokens``, ``epoch`` or ``update``.
    """

    name: str
    value: float
    axis: str
    step: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """What trackers log of one event.

    Attributes:
      event: its name.
      number: in the journal, from 0; -1 for an event of a command.
      position: when it happened.
      points: scalars.
      texts: by name.
    """

    event: str
    number: int
    position: Position
    points: tuple[Point, ...]
    texts: Mapping[str, str]


def entry(event: Event, position: Position, number: int = -1) -> Entry:
    """An event as trackers log it; ``position`` is the position after the event (``moved``)."""
    scalars, texts = scalars_and_texts(event)
    axis, step = _axis(event, position)
    points = [Point(name, value, axis, step) for name, value in scalars.items()]
    if isinstance(event, _OVER_TOKENS):
        points += [Point(f"tokens/{name}", value, TOKENS, position.tokens) for name, value in scalars.items()]
    return Entry(name_of(event), number, position, tuple(points), texts)


def moved(position: Position, event: Event) -> Position:
    """The position after an event."""
    iteration = getattr(event, "iteration", -1)
    spent = getattr(event, "spent", None)
    return Position(
        iteration if iteration >= 0 else position.iteration,
        max(position.tokens, spent.tokens) if isinstance(spent, Usage) else position.tokens,
    )


def scalars_and_texts(event: Event) -> tuple[Scalars, Texts]:
    """The scalars and texts of an event. Texts have no secret; numbers are finite."""
    scalars, texts = _of(event)
    # The journal has numbers that are not finite as texts.
    numbers = {name: float(value) for name, value in scalars.items() if isinstance(value, int | float)}
    kept = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return kept, {name: _cut(redact(text)) for name, text in texts.items() if text}


def settings_of(begin: events.Begin) -> dict[str, Any]:
    """All settings of a run by path, without secrets, also without secrets in addresses of servers."""
    return {name: _public(name, value) for name, value in _flat(begin.settings)}


def title_of(begin: events.Begin) -> str:
    """The name of a run: the name of its folder."""
    return redact(re.split(r"[/\\]", begin.folder.rstrip("/\\"))[-1])[:128] or "run"


def _of(event: Event) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    match event:
        case events.Begin():
            what = f"{event.benchmark}:{event.variant}, seed {event.seed}, stage {event.stage}"
            components = ", ".join(event.components)
            examples = ", ".join(f"{number} {split}" for split, number in event.examples.items())
            begin = f"{what}; tunes {components}; {examples}"
            return {}, {"text/begin": begin, "text/settings": _json(settings_of(event))}
        case events.End():
            total = sum(event.spent.values(), Usage())
            return _usage("spent", total), {"text/end": "finished" if event.finished else event.reason or "stopped"}
        case events.Groups():
            where = f"collect/{_part(event.component)}"
            return {f"{where}/groups": event.groups, f"{where}/informative": event.informative}, {}
        case events.Epoch():
            return {f"train/{_part(name)}": value for name, value in event.metrics.items()}, {}
        case events.Confirmation():
            return _confirmation(event), {"text/confirmation": event.verdict}
        case events.Alignment():
            scalars = {}
            for name, row in event.alignment.items():
                where = f"alignment/{_part(name)}"
                scalars |= {f"{where}/pair_accuracy": row.get("pair_accuracy"), f"{where}/n_pairs": row.get("n_pairs")}
            return scalars, {}
        case events.Blame():
            shares = {f"blame/{_part(name)}": number / max(event.failing, 1) for name, number in event.first.items()}
            return shares, {"text/blame": event.reason}
        case events.Refresh():
            return {f"refresh/{_part(name)}/groups": number for name, number in event.groups.items()}, {}
        case events.Evaluation():
            return _evaluation(event), {}
    return _of_search(event)


def _of_search(event: Any) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    match event:
        case events.Pick():
            return {}, {"text/pick": f"{event.component} ({event.rule})"}
        case events.Update():
            where = f"weights/{_part(event.component)}"
            return {f"{where}/{_part(name)}": value for name, value in event.metrics.items()}, {}
        case events.Validation():
            return {f"validation/{_part(event.component)}": event.score}, {}
        case events.Tuned():
            tuned = f"tuned/{_part(event.component)}"
            return {f"{tuned}/{name}": getattr(event, name) for name in ("score", "before", "kl")}, {}
        case events.Label():
            return {"label/labelled": event.labelled, "label/inputs": event.inputs}, {}
        case events.Dropped():
            return {}, {"text/rejected": f"{event.component}: {event.reason}: {event.text}"}
        case events.Proposed():
            return {"propose/usable": event.usable, "propose/dropped": sum(event.dropped.values())}, {}
        case events.Proposal():
            gains = {f"proposal/{name}": getattr(event, name) for name in ("expected_gain", "local_gain")}
            return gains, {f"text/proposal/{_part(event.component)}": f"{event.kind}\n\n{_value(event.value)}"}
        case events.Race():
            return {f"race/{name}": getattr(event, name) for name in ("labelled_runs", "effective_runs", "weight")}, {}
        case events.Gate():
            scalars = {f"gate/{name}": getattr(event, name) for name in _OF_GATES} | {"gate/accepted": event.accepted}
            return scalars, {"text/gate": _gate(event)}
        case events.Accept():
            return {}, {f"text/accepted/{_part(event.component)}": f"{event.kind}\n\n{_value(event.value)}"}
        case events.Verdict():
            return {}, {"text/verdict": f"{event.component}, {event.kind}: {event.verdict}. {event.reason}"}
        case events.Adaptation():
            before, pairs = event.pair_accuracy_before, event.fresh_pairs
            return {"reward/pair_accuracy": before, "reward/fresh_pairs": pairs, "reward/trained": event.trained}, {}
        case events.Curve():
            return {"search/val_score": event.val_score, **_usage("search", event.spent)}, {}
        case events.OutOfBudget():
            return {}, {"text/search_end": "the budget does not allow the next step"}
        case events.SearchEnd():
            scalars = {"search/accepted": event.accepted, "search/iterations": event.iterations}
            return scalars, {"text/search_end": event.reason}
    return {}, {}


def _axis(event: Any, position: Position) -> tuple[str, int]:
    match event:
        case events.Epoch():
            return EPOCH, event.epoch
        case events.Update() | events.Validation():
            return UPDATE, event.number
        case events.Tuned():
            return UPDATE, event.updates
    return ITERATION, position.iteration


def _usage(where: str, used: Usage) -> Scalars:
    return {f"{where}/{name}": getattr(used, name) for name in ("tokens", "calls", "usd", "seconds")}


def _confirmation(event: events.Confirmation) -> Mapping[str, Any]:
    if not event.tests:
        return {"confirm/n": event.n}
    last = event.tests[0]
    gain = _interval("confirm/gain", last.get("gain"), last.get("ci95"))
    return {"confirm/n": event.n, "confirm/p_value": last.get("p_value"), **gain}


def _evaluation(event: events.Evaluation) -> Mapping[str, Any]:
    gain, where = event.gain, _part(event.split)
    return {
        f"{where}/baseline": event.before,
        f"{where}/optimized": event.after,
        f"{where}/n": event.n,
        f"{where}/p_value": gain.get("p_value"),
        **_interval(f"{where}/gain", gain.get("mean"), gain.get("ci95")),
    }


def _interval(name: str, mean: float | None, bounds: Any) -> Mapping[str, Any]:
    low, high = bounds or (None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _gate(event: events.Gate) -> str:
    verdict = "accepted" if event.accepted else "refused"
    tested = f"{event.n} of {event.of}" if event.of else f"{event.n}"
    return (
        f"{verdict}: {event.component}, {event.kind}, gain {signed(event.val_gain)} {interval(event.ci95)} on {tested} "
        f"examples. {event.reason}"
    ).strip()


def _value(value: Value) -> str:
    """A value as text: the instruction of a prompt without demonstrations, otherwise JSON."""
    if isinstance(value, Prompt) and not value.demos:
        return value.instruction
    return _json(value_to_json(value))


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1, default=str)


def _part(name: str) -> str:
    """A part of a name that every tracker accepts; different names stay different."""
    name = redact(name)
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_NAME]
    if plain == name and name.strip("."):
        return name
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} letters)"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            leaves += _flat(value, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def _public(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return _cut(redact(without_keys(value) if name.endswith("base_url") else value))
