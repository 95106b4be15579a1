"""README.md and docs/, followed by somebody new: every command and example that needs no key, device or hours is run as
it stands, the notebooks are executed, and the site is built."""

import ast
import asyncio
import functools
import importlib.util
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import types
import urllib.request

import documents
import nbformat
import pytest
from api_servers import ApiServers
from fakes import ScriptedCompleter
from nbclient import NotebookClient
from runs import ROOT
from served import serving_app

import optimas_jax as oj
from optimas_jax import api
from optimas_jax.benchmarks.countries import load_countries
from optimas_jax.loop.setup import build
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.saved import optimized

pytestmark = pytest.mark.long
CAPITALS = {one.name: one.capital for one in load_countries()}
QUICK = {
    "reward.model": "random:0",
    "optimize.iterations": 4,
    "optimize.instructions": 1,
    "offline.groups": 2,
    "offline.calls": 12,
}


WITHOUT_REWARDS = {"offline.groups": 0, "optimize.score": "off"}


def says(prompt, seed):
    """A model for all examples: it answers briefly where a demonstration or the instruction says so."""
    if "capital of" in prompt:
        capital = CAPITALS.get(re.findall(r"capital of (.+?)\?", prompt)[-1], "Nowhere")
        return capital if prompt.count("capital of") > 1 or "alone" in prompt else f"It is {capital}, of course"
    ticket, rules = re.findall(r"Ticket: (.+)", prompt), re.findall(r"Rule: (.+)", prompt)
    if "What is the ticket about?" in prompt and ticket:
        kinds = {"money|refund|Return": "refund", "log in|password|account": "account"}
        kind = next((kind for words, kind in kinds.items() if re.search(words, ticket[-1])), "delivery")
        return f'{{"classify": "{kind}"}}'
    if rules:
        return rules[-1] if "word by word" in prompt or len(rules) > 1 else "We will see."
    return "Write a reply to the customer. Quote the rule word by word."


@pytest.fixture
def address(monkeypatch):
    """The address of a server with OpenAI's API that answers all examples."""
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    servers = ApiServers(says)
    with serving_app(servers.app) as server:
        yield f"{server}/v1"
    assert not servers.problems


@pytest.mark.parametrize("name", ["quickstart", "own_pipeline"])
def test_a_notebook_runs_against_a_stub(name, address, tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", 4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    model = f'oj.LanguageModel("openai:scripted", style="text"), "run", { ({**QUICK, "server.base_url": address}) }'
    line = f"MODEL, WORKDIR, SETTINGS = {model}"
    parameters.source = re.sub(r"^MODEL, WORKDIR.*$", line, parameters.source, flags=re.MULTILINE)
    shown = executed(notebook, tmp_path)
    assert "gain +" in shown and ("'answer': 'Lima'" if name == "quickstart" else "'kind': 'delivery'") in shown


@pytest.mark.embedded
def test_the_quickstart_runs_on_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shown = executed(nbformat.read(ROOT / "docs" / "notebooks" / "quickstart.ipynb", 4), tmp_path)
    print(re.findall(r"Result\(.+?\)'?", shown))


def executed(notebook, folder):
    """What a notebook shows, executed in a folder."""
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not any(output.output_type == "error" for output in outputs)
    return "\n".join(str(output.get("data", output.get("text"))) for output in outputs)


# The README, in a fresh environment


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory):
    """The README's first command up to the run, in a copy of the repository; with the interpreter that it made."""
    folder = tmp_path_factory.mktemp("newcomer") / "optimas_jax"
    left_out = shutil.ignore_patterns(".git", ".venv", ".cache", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left_out)
    [install] = [
        one.text for one in documents.commands("README.md") if one.text.endswith("--config=configs/hotpotqa.py")
    ]
    shell(install.rpartition(" && ")[0], folder, 1200)
    return folder


def shell(command, folder, limit, **environment):
    """Runs a line as a reader does, without anything of this environment; returns what it printed."""
    kept = {
        name: os.environ[name] for name in os.environ if name.startswith(("HOME", "PIP_", "SSL_", "LANG", "OPTIMAS"))
    }
    bare = {**kept, "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin", **environment}
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=bare, capture_output=True, text=True, check=False, timeout=limit
    )
    print(f"{time.monotonic() - started:.0f} s: {command[-100:]}")
    assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout


def readme_program():
    [block] = [one for one in documents.blocks("README.md") if one.language == "python"]
    return block.text


def test_the_pipeline_of_the_readme_against_a_stub_within_ten_minutes(newcomer, address):
    model = f'model=oj.LanguageModel("openai:scripted", style="text"), config={{"server.base_url": "{address}"}}'
    source = readme_program().replace('workdir="runs/mine"', f'workdir="runs/stub", {model}')
    (newcomer / "stub.py").write_text(source, encoding="utf-8")
    printed = shell(". .venv/bin/activate && python stub.py", newcomer, 600, OPENAI_API_KEY="x")
    *_, result, best = printed.splitlines()
    print(result)
    assert result.startswith("Result(metric 0.000 -> ") and "confirmed; runs/stub" in result
    assert best == "{'answer': 'Lima'}"


@pytest.mark.embedded
def test_the_pipeline_of_the_readme_on_the_embedded_model_within_thirty_minutes(newcomer):
    (newcomer / "mine.py").write_text(readme_program(), encoding="utf-8")
    *_, result, best = shell(". .venv/bin/activate && python mine.py", newcomer, 1800).splitlines()
    print(result, best)
    assert result.startswith("Result(metric 0.")
    [use] = [one.text for one in documents.blocks("docs/quickstart.md") if 'oj.load("runs/mine")' in one.text]
    (newcomer / "use.py").write_text(use, encoding="utf-8")
    assert best in shell(". .venv/bin/activate && python use.py", newcomer, 600)


@pytest.mark.embedded
def test_the_first_command_of_the_readme(newcomer):
    shell(". .venv/bin/activate && python launch/run.py --config=configs/hotpotqa.py", newcomer, 3600)
    [results] = (newcomer / "runs").glob("hotpotqa-*/results.json")
    assert json.loads(results.read_text())["n"] == 100


# Commands, in a folder with the runs that they name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the documents' commands find what they name: the repository, ``runs/X`` and rows."""
    folder = tmp_path_factory.mktemp("documents")
    for path in ROOT.iterdir():
        if path.name not in ("runs", "build", ".git"):
            (folder / path.name).symlink_to(path)
    (folder / "bin").mkdir()
    (folder / "bin" / "optimas").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m optimas_jax "$@"\n')
    (folder / "bin" / "optimas").chmod(0o755)
    typed("optimas run hotpotqa:smoke --workdir=runs/X", folder)
    for name in ("OLD", "NEW"):
        shutil.copytree(folder / "runs" / "X", folder / "runs" / name)
    rows = [{"question": f"What is the capital of {name}?", "answer": CAPITALS[name]} for name in list(CAPITALS)[:2]]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "rows.csv").write_text("question\nWhat is the capital of Peru?\n")
    return folder


def typed(command, folder):
    path = f"{folder}/bin:{os.path.dirname(sys.executable)}:/usr/bin:/bin"
    return shell(f'export PATH="{path}"; {command}', folder, 1200, PYTHONPATH=str(ROOT))


HERE = {one.text: one for page in documents.pages() for one in documents.commands(page)}
HERE = [text for text, one in HERE.items() if not one.run_by and not one.needs and not one.is_form]


@pytest.mark.parametrize("command", [text for text in HERE if "serve" not in text])
def test_a_command_runs_as_it_stands(command, folder):
    printed = typed(command, folder)
    assert printed.strip() or "--stage" in command


@pytest.mark.parametrize("command", [text for text in HERE if "serve" in text])
def test_a_server_starts_as_its_command_stands(command, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *command.split()[1:], f"--port={port}"], cwd=folder, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert process.poll() is None
                time.sleep(0.2)
        else:
            raise AssertionError("it does not answer")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


# Examples of Python


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Names that the documents' examples use, in a folder with the run that they name, on a scripted model."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("workshop")
    patch.chdir(folder)
    patch.setenv("OPENAI_API_KEY", "x")
    scripted = ScriptedCompleter(
        lambda request: says("\n".join(str(one.content) for one in request.messages), request.seed)
    )
    patch.setattr(build, "make_completer", lambda *arguments: scripted)
    patch.setattr(optimized, "completer_of", lambda *arguments: scripted, raising=False)
    optimize, model = oj.optimize, oj.LanguageModel("random:0", style="text", max_tokens=16)

    @functools.wraps(optimize)
    def small(program, metric, rows, *, settings=WITHOUT_REWARDS, folder=None, **options):
        options |= {"progress": ConsoleProgress(quiet=True), "workdir": folder or f"runs/{time.monotonic_ns()}"}
        options["config"] = {**QUICK, **settings, **options.get("config", {})}
        return optimize(program, metric, rows, **{**options, "model": model, "budget": None})

    rows = [{"question": f"What is the capital of {name}?", "answer": CAPITALS[name]} for name in list(CAPITALS)[:60]]
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shutil.copy(folder / "questions.jsonl", folder / "rows.jsonl")
    (folder / "rag.json").write_text(json.dumps({"answer": "Answer with a name alone."}))
    (folder / "rag.py").write_text(RAG)
    sys.path.insert(0, str(folder))
    import rag

    small(rag.rag, rag.grade, rows, folder="runs/rag", settings={})
    for name in ("X", "NAME", "mine"):
        shutil.copytree("runs/rag", f"runs/{name}")
    for module in (oj, api):
        patch.setattr(module, "optimize", small)
    names = {"oj": oj, "rows": rows, "MODEL": None, "subprocess": subprocess, **vars(rag)}
    names |= {"program": rag.rag, "metric": rag.grade, "my_agent": my_agent}
    yield names
    sys.path.remove(str(folder))
    patch.undo()


RAG = """
import optimas_jax as oj

answer = oj.prompt("Answer the question.", max_tokens=12)


async def rag(question):
    return {"answer": await answer(question=question)}


def grade(example, outputs):
    return float(outputs["answer"] == example["answer"])


def search(question):
    return ["a passage"] * 5
"""


async def my_agent(client, question):
    messages = [{"role": "user", "content": question}]
    reply = await client.chat.completions.create(model="writer", messages=messages)
    return reply.choices[0].message.content


def followed(source, names):
    """Runs an example, with ``await`` where a notebook has it."""
    code = compile(source, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    made = types.FunctionType(code, names := {**names, "__name__": "example"})()
    if inspect.iscoroutine(made):
        asyncio.run(made)
    return names


BLOCKS = [
    pytest.param(block.text, id=f"{page}-{index}")
    for page in documents.pages()
    for index, block in enumerate(documents.blocks(page))
    if block.language == "python" and not block.run_by and not block.needs
]


@pytest.mark.parametrize("source", BLOCKS)
def test_an_example_of_the_documents_runs(source, workshop):
    followed(source, workshop)


@pytest.mark.parametrize("name", oj.__all__)
def test_the_example_of_a_docstring_runs(name, workshop):
    library = {"dspy": "dspy", "tracker": "wandb"}.get(name)
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: the tests of .ci/long with the real library have the same calls")
    text = inspect.getdoc(getattr(oj, name))
    for source in re.findall(r"```python\n(.*?)\n[ \t]*```", text, re.DOTALL):
        followed(textwrap.dedent(source), workshop)
