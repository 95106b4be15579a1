"""``report.html``: the tables of a run as one self-contained page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from optimas_jax.core.folder.files import write_text
from optimas_jax.report.pareto import pareto_svg, shows_pareto
from optimas_jax.report.tables import tables


def write_html(path: Path, results: Mapping[str, Any]) -> None:
    """The same tables as one self-contained page. A file that holds the same stays as it is."""
    console = Console(record=True, width=140, file=io.StringIO(), force_jupyter=False)  # a notebook would show it, too
    for table in reversed(tables(results)):
        console.print(table)
    page = console.export_html(inline_styles=True)
    if shows_pareto(results):
        head, end, rest = page.rpartition("</body>")
        page = f"{head}{pareto_svg(results['pareto'])}{end}{rest}"
    write_text(path, page)
