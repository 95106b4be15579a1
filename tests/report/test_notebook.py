"""Notebooks: one table for a run, and the example, executed in a kernel on a scripted model."""

import re

import nbformat
import pytest
from api_servers import ApiServers
from nbclient import NotebookClient
from runs import ROOT
from served import serving_app

from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.notebook import NotebookProgress, default_progress

EXAMPLE = ROOT / "examples" / "rag.ipynb"
SETTINGS = {
    "reward.model": "random:0",
    "optimize.iterations": 2,
    "optimize.instructions": 0,
    "offline.groups": 2,
    "offline.calls": 12,
}
AGAIN = 'again = oj.optimize(rag, metric, "questions.csv", model=MODEL, workdir=WORKDIR, config=SETTINGS)'
SAME = "print(again.results['gain'] == result.results['gain'], list(again.cost['paid_calls'])[-1])"
CHANGED = """
def metric(example, made):
    return float(made["answer"] == example["answer"])
try:
    oj.optimize(rag, metric, "questions.csv", model=MODEL, workdir=WORKDIR, config=SETTINGS)
except Exception as error:
    print(error)
"""


def says(prompt, seed):
    """A model that finds the fact, and says other facts than colours alone only where a demonstration shows how."""
    asked = prompt[prompt.lower().rindex("question:") :]
    name = re.search(r"kettle (\w+)", asked)[1]
    facts = re.search(rf"Kettle {name}: (.+)", prompt)[1].split(", ")
    at = {"How": 0, "What": 1}.get(asked.split()[1], 2)
    return facts[at] if at == 2 or prompt.lower().count("question:") > 1 else f"It should be {facts[at]}"


def test_all_rows_are_one_display():
    shown = []
    progress = NotebookProgress(shown.append)
    progress.line("[bold]collect <1> of [odd")
    with progress.bar("candidates", 3) as advance:
        for _ in range(3):
            advance()
    last = shown[-1]
    assert last["text/plain"] == "[bold]collect <1> of [odd\ncandidates  3/3  0:00"
    assert "&lt;1&gt;" in last["text/html"] and last["text/html"].count("<tr>") == 2
    for index in range(100):
        progress.line(f"line {index}")
    assert shown[-1]["text/plain"].startswith("42 earlier rows\nline 40\n")


def test_outside_of_a_notebook_it_is_the_console():
    assert isinstance(default_progress(), ConsoleProgress)


@pytest.mark.long
def test_the_example_runs_resumes_and_refuses_another_metric_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(EXAMPLE, 4)
    at = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    servers = ApiServers(says)
    with serving_app(servers.app) as address:
        settings = {**SETTINGS, "server.base_url": f"{address}/v1"}
        notebook.cells[
            at
        ].source = f'MODEL, WORKDIR, SETTINGS = oj.LanguageModel("openai:scripted", style="text"), "run", {settings}'
        notebook.cells += [nbformat.v4.new_code_cell(source) for source in (AGAIN, SAME, CHANGED)]
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    optimised, printed, again, same, changed = code[-5], code[-4], *code[-3:]
    [table, result] = optimised.outputs
    assert table.output_type == "display_data" and "iteration 2/2" in table.data["text/html"]
    assert result.output_type == "execute_result" and "-> 1.000" in result.data["text/plain"]
    assert "{'answer': '2850 watts', 'source': '28'}" in printed.outputs[-1].data["text/plain"]
    [table] = again.outputs
    assert table.output_type == "display_data"
    assert same.outputs[0].text == "True 0\n"
    assert "changed. Choose another workdir=" in changed.outputs[-1].text
    assert not servers.problems


def test_the_declarations_of_the_example_are_short():
    cells = [cell.source for cell in nbformat.read(EXAMPLE, 4).cells if cell.cell_type == "code"]
    declaring = [line for source in cells for line in source.splitlines() if "oj." in line]
    assert len(declaring) <= 8
    [pipeline] = [source for source in cells if "async def rag" in source]
    assert len([line for line in pipeline[pipeline.index("search =") :].splitlines() if line.strip()]) <= 30


@pytest.mark.long
@pytest.mark.embedded
def test_the_example_runs_on_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(EXAMPLE, 4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    print(next(one.data["text/plain"] for one in outputs if one.output_type == "execute_result"))
    assert len(outputs) == 4 and not any(one.output_type == "error" for one in outputs)
