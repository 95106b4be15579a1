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


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every repetition: all but the bill, the clock and memory."""
    free = ("ledger", "paid_calls", "wall_seconds", "peak_rss_mb", "spent")
    return {key: value for key, value in results.items() if key not in free}
