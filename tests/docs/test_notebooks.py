"""The notebooks as they are committed: without outputs and paths of a machine. ``tests/long/test_documents.py`` and
``tests/report/test_notebook.py`` execute them."""

import re

import nbformat
import pytest
from runs import ROOT

NOTEBOOKS = [*sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ROOT / "examples" / "rag.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_nothing_of_a_machine(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert not re.search(r"/(home|root|work|tmp|Users)/|[A-Z]:\\\\", path.read_text(encoding="utf-8"))
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", ())]
    for cell in code:
        if "await " not in cell.source:
            compile(cell.source, path.name, "exec")


def test_there_are_two_in_the_documents():
    assert [path.stem for path in NOTEBOOKS] == ["own_pipeline", "quickstart", "rag"]
