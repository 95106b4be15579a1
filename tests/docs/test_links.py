"""Links of README.md and docs/, by the script that lists them."""

import runpy
from types import SimpleNamespace

import pytest
from runs import ROOT

tool = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "tools" / "links.py")))


@pytest.mark.parametrize("page", tool.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page):
    assert list(tool.broken(page)) == []


def test_links_of_all_forms_are_found_and_those_in_code_are_not(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# The gate, at 5 %\n\n[a](gone.md) ![b](figures/gone.svg#only-light) [c](#the-gate-at-5) [d](#gone)\n"
        '[e](page.md#gone "title") <img src="gone.png"> `[f](code.md)` ``[g](`code.md)`` [h](https://example.org/x)\n'
        "```text\n[i](code.md)\n# not-a-heading\n```\n[j](#not-a-heading) [k](mailto:a@example.org)\n"
    )
    gone = ["#gone", "#not-a-heading", "figures/gone.svg#only-light", "gone.md", "gone.png", "page.md#gone"]
    assert list(tool.broken(page)) == gone
    assert tool.external(page.read_text()) == ["https://example.org/x", "mailto:a@example.org"]
