"""Rows of measurements (one per case, unit and peer), as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from scipy.stats import binom

from optimas_jax.report.console import ConsoleProgress


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      suite, case, unit: name of the measurement; ``ours`` and ``peer`` are medians in ``unit``, more is better.
      peer_name: None without a peer; then ``peer`` and ``ratio`` are None as well.
      ratio: ours / peer, the median of the ratios of all repeats; ``interval`` holds it with at least 95 % (None below
        six repeats).
      spread: (most - least) / median over the repeats, by side.
      roofline_fraction: least time for the work at the measured rates / our median time. None for whole runs.
      peak_mb: peak resident memory by side.
      agreement: largest difference of scores or losses between the sides, or share of equal tokens; None without a
        peer.
      notes: settings that each side chose (batch size, layout).
    """

    suite: str
    case: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str | None
    ratio: float | None
    spread: dict[str, float]
    roofline_fraction: float | None
    peak_mb: dict[str, float]
    agreement: float | None
    notes: dict[str, str]
    interval: tuple[float, float] | None = None


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Interval of the median of any distribution, at least 95 %, between two of the values; None for fewer than six."""
    rank = int(binom.ppf(0.025, len(values), 0.5)) if values else 0
    return (sorted(values)[rank - 1], sorted(values)[-rank]) if rank else None


def spread(seconds: Sequence[float]) -> float:
    """(most - least) / median."""
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table; after each median its spread."""
    columns = Table("case", "unit", box=SIMPLE)
    for name in ("ours", "peer", "ratio", "roofline", "peak MB"):
        columns.add_column(name, justify="right", no_wrap=True)
    suite = None
    for row in rows:
        if row.suite != suite:
            suite = row.suite
            columns.add_section()
            columns.add_row(suite, style="bold")
        peer = "" if row.peer is None else f"{row.peer_name} {_median(row.peer, row.spread['peer'])}"
        columns.add_row(
            row.case,
            row.unit,
            _median(row.ours, row.spread["ours"]),
            peer,
            _ratio(row),
            "" if row.roofline_fraction is None else f"{row.roofline_fraction:.0%}",
            " / ".join(f"{value:,.0f}" for value in row.peak_mb.values()),
        )
    return columns


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return f"{row.ratio:.2f}x" + (f" [{row.interval[0]:.2f}, {row.interval[1]:.2f}]" if row.interval else "")


def _median(value: float, spread_: float) -> str:
    return f"{value:.4g} ({spread_:.0%})"


def show(rows: Sequence[Row], progress: ConsoleProgress) -> None:
    """Prints the table and the settings that each side chose."""
    progress.table(table(rows))
    progress.line("Medians, (most - least) / median in brackets; peak memory of ours / of the peer.")
    notes = {
        f"  {row.case}: {row.peer_name if side == 'peer' else 'ours'}: {note}"
        for row in rows
        for side, note in row.notes.items()
        if note
    }
    for note in sorted(notes):
        progress.line(note)


def save(rows: Sequence[Row], path: Path) -> None:
    """Writes a JSON list with one object per row."""
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
