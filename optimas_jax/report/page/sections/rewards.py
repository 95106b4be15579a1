"""Local rewards against the metric: over time, at the gate, at the end; labels and their worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from optimas_jax.core.folder.events import Groups
from optimas_jax.core.folder.search_events import Adaptation, Gate, Pick, Race
from optimas_jax.report.page import svg, text
from optimas_jax.report.run_files import RunFiles

FEWEST_PAIRS = 20  # below which an accuracy is not shown as a number
_FEWEST_GATES = 6
_MOST = 400  # marks of a picture
_ROWS, _LINES = 40, 200  # components of a picture, and of a table


@dataclasses.dataclass(frozen=True)
class Met:
    """A comparison of local rewards with fresh labels: iteration, component, number of pairs, share of pairs that were
    ordered rightly, and whether the local reward was trained after it."""

    iteration: int
    component: str
    pairs: int
    accuracy: float | None
    trained: bool


@dataclasses.dataclass(frozen=True)
class Aligned:
    """A row of the table of alignment; words replace numbers of too few pairs."""

    component: str
    accuracy: str
    interval: str
    pairs: int
    inputs: int
    controls: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Used:
    """Labelled runs of a component's races, and how many runs without local rewards would be as informative."""

    component: str
    labelled: int
    effective: Any
    words: str


@dataclasses.dataclass(frozen=True)
class Rewards:
    """What the section shows.

    Attributes:
      score: what ranked proposals: ``local``, or its replacement.
      timeline: picture over iterations; empty without labels.
      said: a sentence on the agreement with fresh labels.
      scatters: pictures of promised against measured gain, with a sentence for each.
      controls: names of the columns behind ``aligned``.
      groups: component, groups, informative groups, why collecting stopped.
    """

    score: str
    timeline: Markup
    said: str
    scatters: Sequence[tuple[Markup, str]]
    aligned: Sequence[Aligned]
    controls: Sequence[str]
    used: Sequence[Used]
    groups: Sequence[Groups]


def rewards(run: RunFiles) -> Rewards:
    """The section of a run, finished or not."""
    met = _met(run)
    gates = [event for event in run.events if isinstance(event, Gate) and text.is_interval(event.ci95)]
    results = {**(run.optimized or {}), **(run.results or {})}
    aligned, controls = _aligned(results.get("alignment") or {})
    scatters = [
        _scatter(gates, "expected_gain", "gain that the race expected, on training inputs", diagonal=True),
        _scatter(gates, "local_gain", "gain of the local reward alone, in its own units"),
    ]
    return Rewards(
        score=str(results.get("score") or (run.config.get("optimize") or {}).get("score") or "local"),
        timeline=_timeline(met),
        said=_agreement(met),
        scatters=[scatter for scatter in scatters if scatter is not None],
        aligned=aligned[:_LINES],
        controls=controls,
        used=_used(run, results)[:_LINES],
        groups=[event for event in run.events if isinstance(event, Groups)][:_LINES],
    )


def _met(run: RunFiles) -> list[Met]:
    """Adaptations with the component of their iteration; their events do not name it."""
    pick, met = None, []
    for event in run.events:
        if isinstance(event, Pick):
            pick = event
        elif isinstance(event, Adaptation) and pick is not None:
            met.append(
                Met(pick.iteration + 1, pick.component, event.fresh_pairs, event.pair_accuracy_before, event.trained)
            )
    return met[-_MOST:]


def _agreement(met: Sequence[Met]) -> str:
    known = [comparison for comparison in met if comparison.accuracy is not None and comparison.pairs]
    pairs = sum(comparison.pairs for comparison in known)
    if not pairs:
        return "No fresh pair of outputs with different global rewards was met: nothing can be said."
    right = round(sum(comparison.pairs * (comparison.accuracy or 0) for comparison in known))
    if pairs < FEWEST_PAIRS:
        return f"{text.counted(pairs, 'fresh pair')} in all, {right} ordered rightly: {text.TOO_FEW}."
    share = text.percent(right / pairs)
    return f"Of {pairs:,} fresh pairs {right:,} were ordered rightly, {share}; chance is 50 %."


def _timeline(met: Sequence[Met]) -> Markup:
    """A row for each component, a column for each iteration; areas are numbers of pairs."""
    if not met:
        return Markup("")
    names = list(dict.fromkeys(comparison.component for comparison in met))[:_ROWS]
    last = max(comparison.iteration for comparison in met)
    left, step, row = 190.0, max(30.0, min(90.0, 660.0 / last)), 54.0
    width, height = left + last * step + 10, 26 + len(names) * row + 30
    rows = {name: 26 + index * row + row / 2 - 9 for index, name in enumerate(names)}
    drawn = []
    for name, y in rows.items():
        short = name if len(name) <= 26 else f"{name[:24]}…"
        drawn.append(
            svg.element("text", svg.element("title", text.clip(name, 200)), short, x=0, y=y + 4, class_="strong")
        )
        drawn.append(svg.element("line", class_="grid", x1=left, x2=width - 10, y1=y, y2=y))
    every = max(1, -(-last // 24))
    for number in range(1, last + 1, every):
        drawn.append(svg.element("text", str(number), x=left + (number - 0.5) * step, y=14, text_anchor="middle"))
    drawn.append(svg.element("text", "iteration", x=0, y=14, class_="name"))
    largest = max(comparison.pairs for comparison in met) or 1
    for comparison in met:
        if comparison.component in rows:
            drawn.append(
                _meeting(comparison, left + (comparison.iteration - 0.5) * step, rows[comparison.component], largest)
            )
    words = "; ".join(_words(comparison) for comparison in met[:60])
    return svg.picture(
        "Agreement of local rewards with the metric over the search", words, width, height, *drawn, class_="chart"
    )


def _words(met: Met) -> str:
    agreed = "no pairs" if met.accuracy is None or not met.pairs else f"{met.accuracy:.2f} of {met.pairs} pairs"
    return f"iteration {met.iteration}, {text.name(met.component)}: {agreed}" + ", then trained further" * met.trained


def _meeting(met: Met, x: float, y: float, largest: int) -> Markup:
    if met.accuracy is None or not met.pairs:
        return svg.element("circle", svg.element("title", _words(met)), cx=x, cy=y, r=2.5, class_="dot")
    side = "good" if met.accuracy > 0.6 else "bad" if met.accuracy < 0.5 else "even"
    radius = 4 + 7 * (met.pairs / largest) ** 0.5
    right = f"{round(met.accuracy * met.pairs)}/{met.pairs}"
    parts = [
        svg.element("title", _words(met)),
        svg.element("circle", cx=x, cy=y, r=radius, class_=f"dot {side}"),
        svg.element("text", right, x=x, y=y + radius + 17, text_anchor="middle"),
    ]
    if met.trained:
        parts.append(svg.element("circle", cx=x, cy=y, r=radius + 3, class_="ring"))
    return svg.element("g", *parts)


def _scatter(gates: Sequence[Gate], field: str, axis: str, *, diagonal: bool = False) -> tuple[Markup, str] | None:
    """Picture of promised against measured gains of the tested proposals, with a sentence; None without any.
    ``diagonal``: whether both gains have the same units, so that promises are kept on the diagonal."""
    known = [gate for gate in gates if text.is_number(getattr(gate, field)) and text.is_number(gate.val_gain)][-_MOST:]
    if not known:
        return None
    width, height, left, bottom = 430.0, 320.0, 58.0, 268.0
    x = svg.scale_over([getattr(gate, field) for gate in known], left, width - 14, zero=True, margin=0.08)
    y = svg.scale_over(
        [bound for gate in known for bound in (gate.val_gain, *gate.ci95)], bottom, 28, zero=True, margin=0.05
    )
    drawn = [
        *svg.y_axis(y, left, width - 14, "measured gain"),
        *svg.x_axis(x, bottom, axis, 5),
        svg.element("line", class_="axis dashed", x1=x(0), x2=x(0), y1=28, y2=bottom),
        svg.element("line", class_="axis dashed", x1=left, x2=width - 14, y1=y(0), y2=y(0)),
    ]
    low, high = max(x.low, y.low), min(x.high, y.high)
    if diagonal and low < high:
        drawn.append(svg.element("line", class_="grid", x1=x(low), x2=x(high), y1=y(low), y2=y(high)))
    for gate in known:
        x_at, y_at, promised = x(getattr(gate, field)), y(gate.val_gain), getattr(gate, field)
        side = "good" if gate.accepted else "even"
        what = f"{text.name(gate.component)}, {text.name(gate.kind)}"
        gains = f"promised {text.signed(promised)}, measured {text.signed(gate.val_gain)}"
        title = svg.element("title", f"{what}: {gains}")
        low, high = gate.ci95
        drawn.append(svg.element("line", class_=f"bar thin {side}", x1=x_at, x2=x_at, y1=y(low), y2=y(high)))
        drawn.append(svg.element("circle", title, cx=x_at, cy=y_at, r=5, class_=f"dot {side}"))
    sentence = _promises(known, field)
    return svg.picture(f"Measured gain against the {axis}", sentence, width, height, *drawn, class_="scatter"), sentence


def _promises(gates: Sequence[Gate], field: str) -> str:
    signed = [gate for gate in gates if getattr(gate, field) and gate.val_gain]
    right = sum((getattr(gate, field) > 0) == (gate.val_gain > 0) for gate in signed)
    sentence = f"In {right} of {text.counted(len(signed), 'test')} the measured gain has the sign that was promised"
    return f"{sentence}: {text.TOO_FEW}." if len(signed) < _FEWEST_GATES else f"{sentence}."


def _aligned(alignment: Mapping[str, Mapping[str, Any]]) -> tuple[list[Aligned], list[str]]:
    names = {"shorter": "shorter", "loglik": "likelier", "majority": "majority"}
    controls = [name for name in names if any(name in (row.get("controls") or {}) for row in alignment.values())]
    ceiling = any(row.get("ceiling") is not None for row in alignment.values())
    rows = []
    for name, row in alignment.items():
        few = row["n_pairs"] < FEWEST_PAIRS
        cells = [text.number((row.get("controls") or {}).get(control)) for control in controls]
        cells += [text.number(row.get("ceiling"))] * ceiling
        accuracy = text.number(row["pair_accuracy"])
        bounds = text.TOO_FEW if few else text.interval(row["ci95"])
        rows.append(Aligned(name, accuracy, bounds, row["n_pairs"], row["n_inputs"], cells))
    return rows, [names[control] for control in controls] + ["ceiling"] * ceiling


def _used(run: RunFiles, results: Mapping[str, Any]) -> list[Used]:
    score = str(results.get("score") or "local")
    known = {name: dict(row) for name, row in (results.get("label_use") or {}).items()}
    if not known:  # a search that is not over
        for event in run.events:
            if isinstance(event, Race):
                row = known.setdefault(
                    event.component, {"labelled_runs": 0, "effective_runs": 0.0, "local_reward": False}
                )
                row["labelled_runs"] += event.labelled_runs
                row["effective_runs"] += event.effective_runs
                row["local_reward"] |= event.local_reward
    source = "the local reward" if score == "local" else f"{score}, in the place of a local reward,"
    words = {True: f"{source} had the weight that labels support, maybe 0", False: "ranked by labels alone"}
    return [
        Used(name, row["labelled_runs"], row["effective_runs"], words[bool(row["local_reward"])])
        for name, row in known.items()
    ]
