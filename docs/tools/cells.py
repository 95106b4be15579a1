"""Writes the tables of docs/results.md that come from docs/cells/NAME.jsonl, the cells of a comparison or the points of
a sweep, each between two markers:

<!-- cells: NAME -->
<!-- end of cells -->

python docs/tools/cells.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from optimas_jax.compare.record import read_cells
from optimas_jax.compare.summary import summarize
from optimas_jax.compare.tables import markdown
from optimas_jax.core.folder.files import read_rows
from optimas_jax.sweep.record import read_results
from optimas_jax.sweep.summary import summarize as summarize_sweep
from optimas_jax.sweep.tables import CAPTION, markdown_table

DOCS = Path(__file__).parents[1]
_MARKED = re.compile(r"(<!-- cells: (\S+) -->\n).*?(<!-- end of cells -->)", re.DOTALL)


def with_tables(page: str, folder: Path) -> str:
    """The page with the tables of the cells in a folder, whatever stood between the markers."""

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        return f"{start}\n{_table(folder / f'{name}.jsonl')}\n{end}"

    return _MARKED.sub(table, page)


def _table(path: Path) -> str:
    if "sweep" in read_rows(path)[0]:
        points, results, _ = read_results(path)
        return f"{CAPTION}\n\n{markdown_table(summarize_sweep(points, results))}\n"
    cells, about = read_cells(path)
    return markdown(summarize(cells, about, about["budget"]))


def names(page: str) -> list[str]:
    """Names of the files of cells that the page shows."""
    return [name for _, name, _ in _MARKED.findall(page)]


def main() -> int:
    results = DOCS / "results.md"
    results.write_text(with_tables(results.read_text(encoding="utf-8"), DOCS / "cells"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
