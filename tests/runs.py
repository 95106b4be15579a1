"""Whole runs of the shipped configuration, for tests."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from typing import Any

from optimas_jax.loop.config import RunConfig, from_dict

ROOT = Path(__file__).parents[1]
get_config = runpy.run_path(str(ROOT / "configs" / "hotpotqa.py"))["get_config"]


def run_config(**changes: Any) -> RunConfig:
    """The embedded variant of ``configs/hotpotqa.py``, with changes."""
    return dataclasses.replace(from_dict(RunConfig, get_config("embedded").to_dict()), **changes)
