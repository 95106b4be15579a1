"""The cells of a comparison in one file, to publish and to read again: a line about all, then a line for each cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.compare.optimizers import CompareError
from optimas_jax.compare.plan import Cells
from optimas_jax.core.folder.files import read_rows

CELLS = "cells.jsonl"  # in the folder of a comparison


def write_cells(path: Path, cells: Cells, about: Mapping[str, Any]) -> None:
    """Writes the cells, and the errors of those that failed.

    Args:
      about: benchmark, variant and budget.
    """
    rows = [{"optimizer": name, "seed": seed, **cell} for name, seeds in cells.items() for seed, cell in seeds.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in (dict(about), *rows)), encoding="utf-8")


def read_cells(path: Path) -> tuple[Cells, dict[str, Any]]:
    """Reads the cells of a file, and ``about`` of ``write_cells``.

    Raises:
      CompareError: there is no such file, or its cells come from several commits.
    """
    if not path.is_file():
        raise CompareError(f"no {path}: a comparison writes it as {CELLS} into its folder")
    about, *rows = read_rows(path)
    cells: Cells = {}
    for row in rows:
        cells.setdefault(row.pop("optimizer"), {})[row.pop("seed")] = row
    commits = sorted({row["commit"] for row in rows if "error" not in row})
    if len(commits) > 1:
        raise CompareError(f"{path} has cells of several commits, {', '.join(commits)}: they are no comparison")
    return cells, about
