"""CITATION.cff and llms.txt beside what they are about. ``tests/long/test_wheel.py`` reads the wheel's metadata."""

import re

import documents
from runs import ROOT


def test_the_citation_has_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    [version] = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    assert f'version="{version}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert len(re.findall(r"family-names: ", citation)) == 13 and "2507.03041" in citation


def test_llms_txt_has_every_page():
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    left_out = ("docs/index.md", "docs/changelog.md", "docs/recipes/own-", "README.md")
    missing = [page for page in documents.pages() if f"({page})" not in text and not page.startswith(left_out)]
    assert not missing and text.startswith("# optimas_jax\n\n> ")


def test_the_navigation_has_every_page():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f" {page}\n" not in site and not page.startswith("skill/")] == []
