"""Writes the tables of docs/results.md that come from cells, docs/cells/NAME.jsonl, each between two markers:

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

DOCS = Path(__file__).parents[1]
_TABLE = re.compile(r"(<!-- cells: (\S+) -->\n).*?(<!-- end of cells -->)", re.DOTALL)


def with_tables(page: str, folder: Path) -> str:
    """The page with the tables of the cells in a folder, whatever stood between the markers."""

    def table(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        cells, about = read_cells(folder / f"{name}.jsonl")
        return f"{start}\n{markdown(summarize(cells, about, about['budget']))}\n{end}"

    return _TABLE.sub(table, page)


def names(page: str) -> list[str]:
    """Names of the files of cells that the page shows."""
    return [name for _, name, _ in _TABLE.findall(page)]


def main() -> int:
    results = DOCS / "results.md"
    results.write_text(with_tables(results.read_text(encoding="utf-8"), DOCS / "cells"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
