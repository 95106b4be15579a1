"""Tables of docs/results.md are those of the committed cells."""

import json
import runpy
from types import SimpleNamespace

from planted_cells import cell
from runs import ROOT

tool = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "tools" / "cells.py")))
CELLS = ROOT / "docs" / "cells"
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_cells():
    assert tool.with_tables(RESULTS, CELLS) == RESULTS, "python docs/tools/cells.py writes them again"


def test_every_file_of_cells_is_shown():
    assert sorted(tool.names(RESULTS)) == sorted(path.stem for path in CELLS.glob("*.jsonl"))


def test_a_figure_of_the_cells_reaches_the_page(tmp_path):
    rows = [{"benchmark": "hotpotqa", "variant": "", "budget": 100}, *(row(seed, 0.25 * seed) for seed in (1, 2))]
    (tmp_path / "small.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = "before\n<!-- cells: small -->\nan old table\n<!-- end of cells -->\nafter\n"
    new = tool.with_tables(page, tmp_path)
    assert "| ours | 0.375 |" in new and "an old table" not in new
    assert new.startswith("before\n") and new.endswith("\nafter\n")
    assert tool.with_tables(new, tmp_path) == new


def row(seed, score):
    return {"optimizer": "ours", "seed": seed, **cell([score, score])}
