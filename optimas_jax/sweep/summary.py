"""From the results of points to figures: mean gains with intervals over seeds and questions, and costs."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimas_jax.core.stats import excludes_zero, interval
from optimas_jax.sweep.points import EndedPoint, Point

AnyPoint = Point | EndedPoint
Results = Mapping[str, Mapping[str, Any]]  # ``results.json`` or ``{"error": ...}`` by the name of a point
_FIGURES = ("baseline", "optimized", "gain", "low", "high", "confirmed", "search_tokens", "seconds", "peak_mb", "error")
_QUESTIONS = ("benchmark", "data", "evaluate")  # fields whose overrides choose the test questions
SEARCH = ("collect", "train", "optimize")  # phases of the search


def summarize(points: Sequence[AnyPoint], results: Results) -> list[dict[str, Any]]:
    """Figures of each setting, in the order of the points.

    Returns:
      Rows: ``setting``, the fields that differ as text; its ``overrides`` without the seed; ``points`` and their
      ``names``; ``seeds`` that have a result; ``errors`` by seed. With a result, too: ``gain`` on the test split and
      its ``ci95`` over seeds and questions (of one seed over questions), ``gains`` by seed, ``baseline``,
      ``optimized``, ``confirmed`` (number of seeds), mean ``search_tokens`` and ``seconds``. After the first setting,
      if both have the same test questions: ``difference`` of the score to it and ``difference_ci95``, on the seeds that
      both have (``compared``), and whether it is ``shown`` (``stats.excludes_zero``; None for one seed); otherwise
      ``apart``, why there is no difference.
    """
    names = short_names(differing([point.setting for point in points]))
    settings: dict[str, list[AnyPoint]] = {}
    for point in points:
        settings.setdefault(_exact(point.setting), []).append(point)
    first = next(iter(settings.values()), [])
    return [
        {
            **_row(_words(of_setting[0].setting, names), of_setting, results),
            **({} if of_setting is first else _against(first, of_setting, results)),
        }
        for of_setting in settings.values()
    ]


def differing(overrides: Sequence[Mapping[str, Any]]) -> list[str]:
    """Paths of the fields that are not overridden by the same value in all of ``overrides``."""
    paths = dict.fromkeys(path for setting in overrides for path in setting)
    return [
        path for path in paths if len({_exact(setting[path]) if path in setting else "" for setting in overrides}) > 1
    ]


def _exact(value: Any) -> str:
    """A text that differs where values do: 1 and "1" are two."""
    return json.dumps(value, sort_keys=True, default=str)


def _words(setting: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A setting as text: the fields that differ (``names`` by path), or all of its fields where it has none of
    these."""
    if not any(path in names for path in setting):
        names = short_names([*setting])
    values = {names[path]: value for path, value in setting.items() if path in names}
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "as it is"


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest end of each path that no other path has: ``optimize.gate.kind`` -> ``kind``."""
    parts = {path: path.split(".") for path in paths}
    short = {}
    for path, names in parts.items():
        ends = [".".join(names[-count:]) for count in range(1, len(names) + 1)]
        others = [other for other in parts if other != path]
        taken = {".".join(parts[other][-count:]) for other in others for count in range(1, len(parts[other]) + 1)}
        short[path] = next((end for end in ends if end not in taken), path)
    return short


def _row(setting: str, points: Sequence[AnyPoint], results: Results) -> dict[str, Any]:
    ended, done = _ended(points, results), _done(points, results)
    row: dict[str, Any] = {
        "setting": setting,
        "overrides": points[0].setting,
        "names": [point.name for point in points],
        "points": len(points),
        "seeds": [*done],
        "errors": {seed: result["error"] for seed, result in ended.items() if "error" in result},
    }
    if not done:
        return row
    gains = [np.subtract(result["optimized"]["scores"], result["baseline"]["scores"]) for result in done.values()]
    mean, ci95 = interval(gains)
    figures = [figures_of(result) for result in done.values()]
    means = {name: statistics.fmean(f[name] for f in figures) for name in ("baseline", "optimized", "seconds")}
    return {
        **row,
        "gain": mean,
        "ci95": ci95,
        "gains": [float(gain.mean()) for gain in gains],
        **means,
        "search_tokens": statistics.fmean(f["search_tokens"] for f in figures),
        "confirmed": sum(f["confirmed"] is True for f in figures),
    }


def _ended(points: Sequence[AnyPoint], results: Results) -> dict[int, Mapping[str, Any]]:
    """Results by seed."""
    return {point.seed: results[point.name] for point in points if point.name in results}


def _done(points: Sequence[AnyPoint], results: Results) -> dict[int, Mapping[str, Any]]:
    """Results by seed of the points that did not fail."""
    return {seed: result for seed, result in _ended(points, results).items() if "error" not in result}


def _against(first: Sequence[AnyPoint], points: Sequence[AnyPoint], results: Results) -> dict[str, Any]:
    """``difference``, ``difference_ci95``, ``shown`` and ``compared`` (number of seeds); or ``apart``, why there is
    none."""
    ours, theirs = _done(first, results), _done(points, results)
    seeds = [seed for seed in theirs if seed in ours]
    if not theirs:
        return {}
    if _questions(first[0]) != _questions(points[0]):
        return {"apart": "other questions than the first"}
    if not seeds:
        return {"apart": "no seed with a result of the first"}
    differences = [
        np.subtract(theirs[seed]["optimized"]["scores"], ours[seed]["optimized"]["scores"]) for seed in seeds
    ]
    mean, ci95 = interval(differences)
    shown = excludes_zero(differences) if len(seeds) > 1 else None
    return {"difference": mean, "difference_ci95": ci95, "shown": shown, "compared": len(seeds)}


def _questions(point: AnyPoint) -> dict[str, Any]:
    """The overrides that choose the test questions."""
    return {path: value for path, value in point.setting.items() if path.split(".")[0] in _QUESTIONS}


def figures_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one point (``_FIGURES``) from its ``results.json``."""
    if "error" in result:
        return {**dict.fromkeys(_FIGURES, ""), "error": result["error"]}
    low, high = result["gain"]["ci95"]
    verdict = (result.get("confirmed") or {}).get("verdict")
    return {
        "baseline": result["baseline"]["mean"],
        "optimized": result["optimized"]["mean"],
        "gain": result["gain"]["mean"],
        "low": low,
        "high": high,
        "confirmed": "" if verdict is None else verdict == "confirmed",
        "search_tokens": _search_tokens(result["ledger"]),
        "seconds": result["wall_seconds"],
        "peak_mb": result["peak_rss_mb"],
        "error": "",
    }


def _search_tokens(ledger: Mapping[str, Mapping[str, Mapping[str, float]]]) -> int:
    """Prompt and completion tokens of the search, answers from the tape included."""
    costs = [cost for phase in SEARCH for cost in ledger.get(phase, {}).values()]
    return int(sum(cost["prompt_tokens"] + cost["completion_tokens"] for cost in costs))


def csv_text(points: Sequence[Point], results: Results) -> str:
    """One row for each point: its overrides, then ``_FIGURES``."""
    paths = list(dict.fromkeys(path for point in points for path in point.overrides))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["point", *paths, *_FIGURES], lineterminator="\n")
    writer.writeheader()
    for point in points:
        if point.name in results:
            writer.writerow({"point": point.name, **point.overrides, **figures_of(results[point.name])})
    return text.getvalue()
