"""Whole runs of the shipped configuration, for tests."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

from optimas_jax.loop.config import RunConfig, parse_config

ROOT = Path(__file__).parents[1]
get_config = runpy.run_path(str(ROOT / "configs" / "hotpotqa.py"))["get_config"]


def run_config(**changes: Any) -> RunConfig:
    """The embedded variant of ``configs/hotpotqa.py``, with changes."""
    return dataclasses.replace(parse_config(get_config("embedded").to_dict()), **changes)


_SIDE = {"mean": 0.0, "ci95": [0.0, 0.0], "scores": []}
RESULTS: dict[str, Any] = {  # the fields that every ``results.json`` has
    "benchmark": "hotpotqa",
    "variant": "embedded",
    "split": "test",
    "n": 0,
    "metric": "f1",
    "chance": 0.0,
    "baseline": _SIDE,
    "optimized": _SIDE,
    "gain": {"mean": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0},
    "confirmed": None,
    "by_kind": {},
    "outcomes": {},
    "alignment": {},
    "accepted": [],
    "ledger": {},
    "paid_calls": 0,
    "wall_seconds": 0.0,
    "peak_rss_mb": 0,
}


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every repetition: all but the bill, the clock and memory."""
    free = ("ledger", "paid_calls", "wall_seconds", "peak_rss_mb", "spent", "pareto")
    points = [
        {key: value for key, value in point.items() if key not in ("seconds", "dominated")}
        for point in results.get("pareto", [])
    ]
    return {**{key: value for key, value in results.items() if key not in free}, "pareto": points}
