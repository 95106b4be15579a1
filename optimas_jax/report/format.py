"""Formats of numbers in tables."""

from __future__ import annotations

from collections.abc import Sequence


def format_interval(bounds: Sequence[float] | None) -> str:
    """``[low, high]`` with three digits; words where there is no interval."""
    return "too few to say" if bounds is None else f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"
