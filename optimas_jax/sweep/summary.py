"""From the results of points to figures: mean gains with intervals over seeds and questions, and costs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimas_jax.core.stats import interval
from optimas_jax.sweep.points import Point

_FIGURES = ("baseline", "optimized", "gain", "low", "high", "confirmed", "search_tokens", "seconds", "peak_mb", "error")
_SEARCH = ("collect", "train", "optimize")  # phases of the search


def summarize(points: Sequence[Point], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Figures of each setting, in the order of the points.

    Returns:
      Rows: ``setting``, its ``overrides`` without the seed, ``points`` and their ``names``, ``seeds`` that have a
      result, ``errors`` by seed; and with a result ``gain`` on the test split, its ``ci95`` over seeds and questions
      (of one seed over questions), ``gains`` by seed, ``baseline``, ``optimized``, ``confirmed`` (number of seeds),
      mean ``search_tokens`` and ``seconds``.
    """
    names = short_names([path for point in points for path in point.setting])
    settings: dict[str, list[Point]] = {}
    for point in points:
        setting = ", ".join(f"{names[path]}={value}" for path, value in point.setting.items()) or "as it is"
        settings.setdefault(setting, []).append(point)
    return [_row(setting, of_setting, results) for setting, of_setting in settings.items()]


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


def _row(setting: str, points: Sequence[Point], results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ended = {point.config.seed: results[point.name] for point in points if point.name in results}
    done = {seed: result for seed, result in ended.items() if "error" not in result}
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
    costs = [cost for phase in _SEARCH for cost in ledger.get(phase, {}).values()]
    return int(sum(cost["prompt_tokens"] + cost["completion_tokens"] for cost in costs))


def csv_text(points: Sequence[Point], results: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each point: its overrides, then ``_FIGURES``."""
    paths = list(dict.fromkeys(path for point in points for path in point.overrides))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["point", *paths, *_FIGURES], lineterminator="\n")
    writer.writeheader()
    for point in points:
        if point.name in results:
            writer.writerow({"point": point.name, **point.overrides, **figures_of(results[point.name])})
    return text.getvalue()
