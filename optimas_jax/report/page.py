"""``report.html``: the tables of a run as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from optimas_jax.report.tables import tables


def write_html(path: Path, results: Mapping[str, Any]) -> None:
    """The same tables as one self-contained page."""
    with path.with_suffix(".partial").open("w", encoding="utf-8") as sink:
        console = Console(record=True, width=140, file=sink, force_jupyter=False)  # which would show it, too
        for table in reversed(tables(results)):
            console.print(table)
        html = console.export_html(inline_styles=True)
    path.with_suffix(".partial").write_text(html, encoding="utf-8")
    path.with_suffix(".partial").replace(path)
