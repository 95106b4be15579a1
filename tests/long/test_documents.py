"""The documents, followed: notebooks."""

import re

import nbformat
import pytest
from api_servers import ApiServers
from nbclient import NotebookClient
from runs import ROOT
from served import serving_app

pytestmark = pytest.mark.long
QUICK = {
    "reward.model": "random:0",
    "optimize.iterations": 4,
    "optimize.instructions": 1,
    "offline.groups": 2,
    "offline.calls": 12,
}


def says(prompt, seed):
    """A model for both notebooks: it answers briefly where a demonstration or the instruction says so."""
    if "capital of" in prompt:
        name = re.findall(r"capital of (.+?)\?", prompt)[-1]
        capital = CAPITALS.get(name, "Nowhere")
        return capital if prompt.count("capital of") > 1 or "alone" in prompt else f"It is {capital}, of course"
    ticket, rules = re.findall(r"Ticket: (.+)", prompt), re.findall(r"Rule: (.+)", prompt)
    if "What is the ticket about?" in prompt and ticket:
        kinds = {"money|refund|Return": "refund", "log in|password|account": "account"}
        kind = next((kind for words, kind in kinds.items() if re.search(words, ticket[-1])), "delivery")
        return f'{{"classify": "{kind}"}}'
    if rules:
        return rules[-1] if "word by word" in prompt or len(rules) > 1 else "We will see."
    return "Write a reply to the customer. Quote the rule word by word."


@pytest.fixture(scope="module")
def capitals():
    from optimas_jax.benchmarks.countries import load_countries

    CAPITALS.update({one.name: one.capital for one in load_countries()})


CAPITALS: dict[str, str] = {}


@pytest.mark.parametrize("name", ["quickstart", "own_pipeline"])
def test_a_notebook_runs_against_a_stub(name, capitals, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", 4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    servers = ApiServers(says)
    with serving_app(servers.app) as address:
        settings = {**QUICK, "server.base_url": f"{address}/v1"}
        line = f'MODEL, WORKDIR, SETTINGS = "openai:scripted", "run", {settings}'
        parameters.source = re.sub(r"^MODEL, WORKDIR.*$", line, parameters.source, flags=re.MULTILINE)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not servers.problems
    texts = [
        str(output.get("data", output.get("text"))) for cell in notebook.cells for output in cell.get("outputs", ())
    ]
    shown = "\n".join(texts)
    print(shown[-3000:])
    assert "gain +" in shown and ("'answer': 'Lima'" if name == "quickstart" else "'kind': 'delivery'") in shown
