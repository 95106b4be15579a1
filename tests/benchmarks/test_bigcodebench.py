"""BigCodeBench: rows, the system, executions on the tape, and real tasks."""

# ruff: noqa: E501 (programs stand on one line)

import asyncio
import json
import runpy
import sys
from pathlib import Path

import pytest
from fakes import ScriptedCompleter

from optimas_jax.benchmarks import bigcodebench
from optimas_jax.benchmarks.bigcodebench import SystemConfig, build, cut_middle, imported, load, parse_row
from optimas_jax.benchmarks.data import DataConfig, DataError, Dataset
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import Demo, Prompt
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.sandbox import SandboxCompleter
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.config import parse_config
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.unittests import run_tests

ROOT = Path(__file__).parents[2]
DATA = next((p / "shared" / "data" for p in ROOT.parents if (p / "shared" / "data").is_dir()), None)
LIMITS = Limits(seconds=240, cpu_seconds=60, memory_mb=2048)
TESTS = (
    "import unittest\nclass TestCases(unittest.TestCase):\n"
    "    def test_one(self): self.assertEqual(task_func(1), 2)\n    def test_two(self): self.assertEqual(task_func(2), 3)\n"
)
SOLUTION = "def task_func(x):\n    return x + 1\n"


def row(name=0, **changes):
    return {
        "task_id": f"BigCodeBench/{name}",
        "instruct_prompt": f"Add one, way {name}. You should write self-contained code starting with:\n```\ndef task_func(x):\n```",
        "code_prompt": "def task_func(x):\n",
        "canonical_solution": "    return x + 1\n",
        "test": TESTS,
        "entry_point": "task_func",
        **changes,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return str(path)


# Rows


def test_rows_become_examples_that_show_no_test(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row(i) for i in range(6)])
    data = load(DataConfig(path=path, train=3, val=1, test=2)).check()
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [3, 1, 2]
    assert data.chance == {"pass@1": 0.0}
    assert data.origin == path
    example = data.splits["train"][0]
    assert set(example.inputs) == {"question"}
    assert example.gold == {"test": TESTS, "solution": SOLUTION, "stub": "def task_func(x):\n"}


def test_tasks_that_cannot_pass_here_are_left_out_and_counted(tmp_path):
    needs = [
        row(1, code_prompt="import numpy\ndef task_func(x):\n"),
        row(2, canonical_solution="    import nowhere_lib\n    return x\n"),
    ]
    path = write(tmp_path / "rows.jsonl", [*needs, *(row(i) for i in range(3, 6))])
    sizes = {"train": 1, "val": 1, "test": 1}
    installed = load(DataConfig("installed", path, **sizes))
    assert installed.origin == f"{path} without 1 tasks that import what is not installed: nowhere_lib, ..."
    stdlib = load(DataConfig("stdlib", path, **sizes))
    assert "without 2 tasks that need more than the standard library" in stdlib.origin
    assert load(DataConfig("all", path, train=2, val=1, test=2)).origin == path
    with pytest.raises(DataError, match=r"3 different examples, 4 asked for .* without 2 tasks"):
        load(DataConfig("stdlib", path, train=2, val=1, test=1))
    with pytest.raises(DataError, match=r"config\.data\.source is 'moon'; allowed: installed, stdlib, all, synthetic"):
        load(DataConfig("moon", path))


def test_long_questions_keep_their_ends(tmp_path):
    path = write(
        tmp_path / "rows.jsonl",
        [row(i, instruct_prompt=f"Add {i}. {'Please. ' * 50}\n```\nstub\n```") for i in range(3)],
    )
    data = load(DataConfig(path=path, train=1, val=1, test=1, max_chars=40))
    for examples in data.splits.values():
        question = examples[0].inputs["question"]
        assert len(question) == 40
        assert question.startswith("Add ") and question.endswith("stub\n```")


def test_made_up_tasks_can_be_solved():
    data = load(DataConfig("synthetic", train=3, val=1, test=2)).check()
    example = data.splits["test"][0]
    assert run_tests(example.gold["solution"], example.gold["test"], LIMITS).status == "passed"
    assert run_tests(f"{example.gold['stub']}    return x - 1\n", example.gold["test"], LIMITS).status == "failed"


def test_imports_are_found_wherever_they_stand():
    assert imported("import a.b, c\ndef f():\n    from d.e import g\n    from . import h\n") == ("a", "c", "d")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": None}, r"line 1: lacks test \(a row needs task_id, instruct_prompt"),
        ({"code_prompt": 3}, r"line 1: field code_prompt is 3, expected a text"),
        ({"entry_point": "main"}, r"line 1: field entry_point is 'main', expected 'task_func'"),
        ({"canonical_solution": "    return ("}, r"line 1: field canonical_solution is no Python"),
        ({"test": "def ("}, r"line 1: field test is no Python"),
        ({"test": "x = 1"}, r"line 1: field test has no class TestCases with a test"),
    ],
)
def test_a_row_of_the_wrong_shape_is_named(tmp_path, changes, message):
    path = write(tmp_path / "rows.jsonl", [row(**changes)])
    with pytest.raises(DataError, match=message):
        load(DataConfig(path=path))


# System

ANSWERS = {
    "code_generator": f"Sure:\n```python\n{SOLUTION}print(task_func(1))\n```",
    "unit_test_generator": f"```python\n{TESTS}\nunittest.main()\n```",
    "final_coder": f"```python\n{SOLUTION}```",
}


def run(answers, settings=None, completer=None, value=None):
    fake = ScriptedCompleter(lambda request: answers[request.role])
    system = build(Dataset({}), settings or SystemConfig(LanguageModel("m"), LIMITS))
    system = system.using(completer(fake) if completer else SandboxCompleter(fake))
    example, _ = parse_row(row(), "here")
    configuration = system.default_configuration()
    if value is not None:
        configuration = configuration.replace(*value)
    return asyncio.run(system.run(configuration, example, 0)), fake.requests


def test_code_and_tests_meet_in_the_executor_and_the_final_program_is_graded_by_hidden_tests():
    trace, requests = run(ANSWERS)
    assert [call.component for call in trace.calls] == [
        "code_generator",
        "unit_test_generator",
        "executor",
        "final_coder",
    ]
    assert trace.first("code_generator").outputs["initial_code"] == SOLUTION.rstrip()
    assert trace.first("executor").outputs["execution_report"] == "2 of 2 tests passed."
    assert (trace.outcome, trace.score, trace.outputs["code"]) == (Outcome.OK, 1.0, SOLUTION.rstrip())
    assert [request.role for request in requests] == ["code_generator", "unit_test_generator", "final_coder"]
    shown = str(requests[-1].messages)
    assert "2 of 2 tests passed." in shown
    assert "unittest.main()" not in shown


@pytest.mark.parametrize(
    "final", ["def task_func(x):\n    pass", "import os\nos._exit(0)\ndef task_func(x): return x + 1"]
)
def test_a_final_program_that_fails_a_hidden_test_scores_nothing(final):
    trace, _ = run({**ANSWERS, "final_coder": final})
    assert (trace.outcome, trace.score) == (Outcome.OK, 0.0)


def test_answers_without_a_program_go_on_until_the_last():
    trace, _ = run({**ANSWERS, "code_generator": "I would add one.", "unit_test_generator": "Test it!"})
    assert trace.first("code_generator").outputs["initial_code"] == "I would add one."
    assert trace.first("executor").outputs["execution_report"].startswith("0 of 0 tests passed.")
    assert trace.score == 1.0
    trace, _ = run({**ANSWERS, "final_coder": "I am done."})
    assert (trace.outcome, trace.score) == (Outcome.PARSE_ERROR, 0.0)


def test_a_bug_that_the_generated_tests_find_is_reported():
    trace, _ = run({**ANSWERS, "code_generator": "def task_func(x):\n    return 2"})
    report = trace.first("executor").outputs["execution_report"]
    assert report.startswith("1 of 2 tests passed.\ntest_two: ")
    assert "AssertionError: 2 != 3" in report


def test_executions_are_on_the_tape_and_in_the_ledger(tmp_path):
    tape, ledger = Tape(tmp_path / "tape.sqlite"), Ledger()
    first, _ = run(ANSWERS, completer=lambda fake: TapedCompleter(tape, ledger, SandboxCompleter(fake)))
    totals = ledger.to_json()["setup"]
    assert {role: row["paid_calls"] for role, row in totals.items()} == {
        "code_generator": 1, "unit_test_generator": 1, "executor": 1, "final_coder": 1, "metric": 1,
    }  # fmt: skip
    assert totals["executor"]["seconds"] > 0
    again, requests = run(ANSWERS, completer=lambda fake: TapedCompleter(tape, Ledger(), None))
    assert (again, requests) == (first, [])


def test_a_short_context_is_shown_the_ends_of_long_texts():
    assert cut_middle("abcdefghijklmnopqrst", 15) == "abcd\n[...]\nqrst"
    assert cut_middle("abc", 3) == cut_middle("abc", 0) == "abc"
    settings = SystemConfig(LanguageModel("m"), LIMITS, code_chars=20)
    long = "def task_func(x):\n" + "    x = x\n" * 50 + "    return x + 1"
    demo = Prompt("Solve:", (Demo({"question": "Q"}, {"initial_code": "C" * 500}),))
    trace, requests = run({**ANSWERS, "code_generator": long}, settings, value=("code_generator", demo))
    assert all(len(message.content) < 200 for request in requests[:1] for message in request.messages)
    assert "C" * 6 in str(requests[0].messages)
    assert "x = x" not in str(requests[-1].messages)
    assert trace.first("code_generator").outputs["initial_code"] == long  # the executor runs all of it
    assert trace.score == 1.0


def test_only_llm_components_have_weights():
    tuned = build(Dataset({}), SystemConfig(LanguageModel("m"), weights="code_generator"))
    assert tuned.default_configuration().to_json()["code_generator"] == {"type": "adapter", "digest": ""}
    with pytest.raises(ValueError, match="weights of executor: there is no such LLM component"):
        build(Dataset({}), SystemConfig(LanguageModel("m"), weights="executor"))


def test_missing_isolation_is_said_or_refused_before_anything_is_spent(monkeypatch, capsys):
    monkeypatch.setattr(bigcodebench, "check_walls", lambda isolation: f"no walls ({isolation})")
    build(Dataset({}), SystemConfig(LanguageModel("m")))
    assert capsys.readouterr().err == "warning: no walls (preferred)\n"


def test_requests_for_models_go_to_models():
    assert bigcodebench.METRIC == "pass@1"
    _, requests = run(ANSWERS)
    assert {request.kind for request in requests} == {"completion"}


@pytest.mark.parametrize("variant", ["local", "smoke", "paper"])
def test_every_variant_is_a_configuration(variant):
    get_config = runpy.run_path(str(ROOT / "configs" / "bigcodebench.py"))["get_config"]
    config = parse_config(json.loads(json.dumps(get_config(variant).to_dict())))
    assert (config.benchmark, config.variant) == ("bigcodebench", variant)
    assert isinstance(config.system, SystemConfig)
    with pytest.raises(ValueError, match=r"'nope'.*known: local, smoke, paper"):
        get_config("nope")


# Real rows: a sample of those that are quick; launch/check_solutions.py runs them all


@pytest.fixture(scope="module")
def rows():
    if DATA is None:
        pytest.skip("no shared/data beside the checkout")
    text = (DATA / "bigcodebench" / "dev.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_real_rows_are_read_with_the_imports_that_they_state(rows):
    for number, item in enumerate(rows):
        _, imports = parse_row(item, str(number))
        assert set(imports) == set(item["imports"])
        assert set(imports) <= sys.stdlib_module_names or not item["stdlib_only"]


@pytest.mark.parametrize("index", range(6, 148, 16))
def test_real_solutions_pass_and_their_absence_does_not(rows, index):
    item = [row for row in rows if row["stdlib_only"]][index]
    passed = run_tests(item["code_prompt"] + item["canonical_solution"], item["test"], LIMITS)
    assert passed.status == "passed", (item["task_id"], passed.failed)
    assert run_tests(item["code_prompt"] + "    pass\n", item["test"], LIMITS).status != "passed"
