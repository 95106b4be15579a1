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


def test_a_table_of_a_sweep_is_made_from_its_points(tmp_path):
    scores = {"mean": 0.5, "scores": [0.5, 0.5]}
    figures = {"baseline": scores, "optimized": scores, "gain": {"mean": 0.0, "ci95": [0.0, 0.0]}, "ledger": {}}
    figures |= {"confirmed": None, "wall_seconds": 1.0, "peak_rss_mb": 1}
    points = [{"point": name, "seed": 0, "overrides": {"rounds": name}, **figures} for name in "ab"]
    rows = [{"sweep": "hotpotqa"}, *points]
    (tmp_path / "small.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tool.with_tables("<!-- cells: small -->\n<!-- end of cells -->\n", tmp_path)
    assert "| rounds=a | 1/1 | 0.500 |" in page and "| rounds=b |" in page


def row(seed, score):
    return {"optimizer": "ours", "seed": seed, **cell([score, score])}
