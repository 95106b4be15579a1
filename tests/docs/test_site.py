"""The site of the documents, by MkDocs."""

import importlib.util
import re
import subprocess
import sys

import pytest
from runs import ROOT

import optimas_jax as oj


def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("MkDocs is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(https?:[^\"]+)", page.read_text("utf-8")
        )
        assert not loaded, page
    python = (tmp_path / "site" / "python.html").read_text("utf-8")
    assert all(f'id="optimas_jax.{name}"' in python for name in oj.__all__)
