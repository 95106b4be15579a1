"""CITATION.cff beside the package. ``tests/long/test_wheel.py`` reads the wheel's metadata."""

import re

from runs import ROOT


def test_the_citation_has_the_version_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    [version] = re.findall(r"^version: (\S+)$", citation, re.MULTILINE)
    assert f'version="{version}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert len(re.findall(r"family-names: ", citation)) == 13 and "2507.03041" in citation
