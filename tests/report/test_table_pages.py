"""Pages of tables: what they link to, and that texts stay texts."""

import re

import pytest
from table_pages import PAGES

LINKS = {
    "sweep": ["optimize.gate.kind=strict,seed=0/report.html"],
    "compare": ["cells/ours-0/run/report.html"],
    "show": ["a/report.html"],
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_links_to_the_pages_of_runs_that_there_are(name, tmp_path):
    page = PAGES[name](tmp_path)
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r'href="([^"#]+)"', text) if not link.startswith("data:")]
    assert links and all((page.parent / re.sub("%3D", "=", re.sub("%2C", ",", link))).is_file() for link in links)
    assert "<script>alert" not in text and text.count("<script>") == 1
    assert not re.search(r'(src|href)="(https?:)?//', text)


def test_a_sweep_and_a_comparison_show_their_numbers_and_errors(tmp_path):
    sweep = PAGES["sweep"](tmp_path / "sweep").read_text(encoding="utf-8")
    assert "kind=strict" in sweep and "+0.300" in sweep and "seed 1 failed" in sweep
    compare = PAGES["compare"](tmp_path / "compare").read_text(encoding="utf-8")
    assert "before optimisation" in compare and "textgrad" in compare and "gone" in compare and "<svg" in compare
