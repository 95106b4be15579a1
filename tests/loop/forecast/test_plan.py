"""The plan of a run: what the loop is expected to take, from rehearsals without a model, a key or a download."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedCompleter
from front_door import MANY, SETTINGS, search
from runs import ROOT, get_config
from scripted import answer, scripted_config

import optimas_jax as oj
from optimas_jax.benchmarks import hotpotqa
from optimas_jax.benchmarks.data import DataConfig, Dataset, deal
from optimas_jax.benchmarks.modules import Benchmark, SystemConfig
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, digest
from optimas_jax.core.usage import Usage
from optimas_jax.llm.accounts.ledger import Budget, OverBudget
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.loop.config import STAGES, EvaluateConfig, OfflineConfig, OptimizeConfig, RunConfig, parse_config
from optimas_jax.loop.forecast.plan import HIGH, _mean, plan_run
from optimas_jax.loop.forecast.rehearse import ImaginedModel, Rehearsal, rehearse
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_plan
from optimas_jax.report.tables import tables
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.search.gate import GateConfig

MODEL = LanguageModel("random:0", style="text", max_tokens=8)
QUIET = ConsoleProgress(quiet=True)


def load(settings: DataConfig) -> Dataset:
    return Dataset(deal([Example(f"e{i}", {"question": f"q{i}"}, {"answer": "a"}, "") for i in range(60)], settings))


def build(dataset: Dataset, settings: SystemConfig) -> System:
    call = {"language_model": settings.language_model, "instruction": "Say it."}
    draft = llm_component(name="draft", description="Drafts.", inputs=("question",), output="draft", **call)
    final = llm_component(name="final", description="Answers.", inputs=("draft",), output="answer", **call)
    metric = lambda outputs, gold: int(digest(outputs)[:2], 16) / 255  # noqa: E731
    return System((draft, final), ("question",), ("answer",), metric)


TWO = Benchmark("made up", load, build)


def config_of(**search_settings: Any) -> RunConfig:
    """A search without local rewards in which nothing is left to chance: the best proposal is always accepted."""
    settings = {"score": "off", "iterations": 1, "proposers": "opro", "instructions": 2, "gate": GateConfig("none")}
    return RunConfig(
        "two",
        "test",
        SystemConfig(MODEL),
        proposer=MODEL,
        reward=RewardConfig("random:0"),
        data=DataConfig(train=16, val=8, test=10, confirm=6),
        offline=OfflineConfig(groups=100, calls=24),
        collect=CollectConfig(samples=2, other_values=0),
        optimize=OptimizeConfig.improved(inputs=6, **{**settings, **search_settings}),
        evaluate=EvaluateConfig(changes=False),
    )


def different(request: CompletionRequest) -> str:
    """Another answer to every request, and usable instructions."""
    return f"Say {request.key[:12]}."


def spend(config: RunConfig, workdir: Path) -> dict[str, Any]:
    run_stages(config, workdir, "all", QUIET, ScriptedCompleter(different), benchmark=TWO)
    return json.loads((workdir / "results.json").read_text())["spent"]


@pytest.mark.parametrize("iterations", [0, 1])
@pytest.mark.parametrize("components", ["draft", "final"])
def test_calls_are_those_of_a_run_that_leaves_nothing_to_chance(tmp_path, iterations: int, components: str) -> None:
    config = config_of(iterations=iterations, components=components)
    data = load(config.data)
    model = ImaginedModel(HIGH, lambda request: 10, {}, {})
    rehearsed = rehearse(config, build(data, config.system), data, STAGES, HIGH, model).used
    spent = {step: row["spent"]["calls"] for step, row in spend(config, tmp_path).items()}
    assert spent == {step: sum(usage.calls for usage in roles.values()) for step, roles in rehearsed.items()}
    assert spent["optimize: validation"] == 16 and spent["evaluate"] == 20 + 10 * iterations * (
        1 + (components == "draft")
    )


def test_results_have_the_plan_beside_what_was_spent(tmp_path: Path) -> None:
    planned = plan_run(config_of(iterations=0), benchmark=TWO)
    planned.save(tmp_path)
    rows = spend(config_of(iterations=0), tmp_path)
    assert {step: row["predicted"] for step, row in rows.items()} == planned.to_json()["host"]["steps"]
    assert rows["evaluate"]["spent"]["calls"] == rows["evaluate"]["predicted"]["expected"]["calls"] == 20
    titles = [str(table.title) for table in tables(json.loads((tmp_path / "results.json").read_text()))]
    assert "Spent by the host loop (expected)" in titles
    again = spend(config_of(iterations=0), tmp_path)
    assert again == rows  # of a repetition
    before = (tmp_path / "plan.json").read_text()
    assert not plan_run(config_of(iterations=3), benchmark=TWO).save(tmp_path)  # of a variation, in the same folder
    assert (tmp_path / "plan.json").read_text() == before


def test_a_plan_of_other_settings_is_not_compared_with(tmp_path: Path) -> None:
    plan_run(dataclasses.replace(config_of(iterations=0), seed=5), benchmark=TWO).save(tmp_path)
    assert all(row["predicted"] is None for row in spend(config_of(iterations=0), tmp_path).values())


def test_ranges_hold_what_is_expected_and_add_up() -> None:
    host = plan_run(config_of(iterations=3), benchmark=TWO).host
    for costs in (*host.steps.values(), host.total):
        for name in ("calls", "tokens", "seconds"):
            low, expected, high = (getattr(getattr(costs, world), name) for world in ("low", "expected", "high"))
            assert 0 <= low <= expected <= high
    assert host.total.expected.calls == sum(sum(roles.values()) for roles in host.calls.values())


def test_a_plan_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    plan_run(config_of(iterations=0), benchmark=TWO, progress=ConsoleProgress())
    assert capsys.readouterr().out.splitlines() == ["rehearsing the run"]  # nothing is timed of random models


def test_expected_costs_are_the_means_of_rehearsals() -> None:
    rehearsals = [
        Rehearsal({"collect": {"a": Usage(calls=calls)}, **confirm}, cut=calls)
        for calls, confirm in ((9, {"confirm": {"b": Usage(calls=4, seconds=1.0)}}), (2, {}), (5, {}))
    ]
    mean = _mean(rehearsals)
    assert mean.used["collect"] == {"a": Usage(calls=6)}  # of 5.33, rounded up
    assert mean.used["confirm"] == {"b": Usage(calls=2, seconds=pytest.approx(1 / 3))}
    assert mean.cut == 5
    assert _mean(rehearsals[:1]) == rehearsals[0]


def test_many_iterations_follow_from_few() -> None:
    config = config_of(iterations=400, components="final")
    short, long = (plan_run(config_of(iterations=n, components="final"), benchmark=TWO).host for n in (4, 400))
    assert config.optimize.iterations == 400
    assert long.steps["optimize: label"].high.calls == 100 * short.steps["optimize: label"].high.calls
    assert long.steps["optimize: validation"] == short.steps["optimize: validation"]


def test_a_budget_caps_the_plan_and_is_refused_below_the_price() -> None:
    free = plan_run(config_of(iterations=8), benchmark=TWO).host
    capped = dataclasses.replace(config_of(iterations=8), budget=Budget(calls=free.total.expected.calls // 2))
    host = plan_run(capped, benchmark=TWO).host
    assert host.total.expected.calls <= host.total.high.calls <= capped.budget.calls
    limit = free.total.high.tokens // 2
    tokens = plan_run(dataclasses.replace(config_of(iterations=8), budget=Budget(tokens=limit)), benchmark=TWO).host
    assert tokens.total.expected.tokens <= tokens.total.high.tokens <= limit
    with pytest.raises(OverBudget, match=r"config\.budget allows 20 calls"):
        plan_run(dataclasses.replace(capped, budget=Budget(calls=20)), benchmark=TWO)


def test_what_is_not_known_is_named(monkeypatch, capsys) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = LanguageModel("openai:nobody-knows", max_tokens=100)
    config = dataclasses.replace(config_of(), system=SystemConfig(model), proposer=model)
    planned = plan_run(config, benchmark=TWO)
    assert planned.host.total.high.usd == 0
    said = "\n".join(planned.host.unknown)
    assert "no price of openai:nobody-knows is known" in said and "estimated from characters" in said
    report_plan(planned.to_json(), ConsoleProgress())
    assert "no price of openai:nobody-knows is known" in capsys.readouterr().out
    priced = dataclasses.replace(config, prices="openai:nobody-knows=1/2")
    assert plan_run(priced, benchmark=TWO).host.total.expected.usd > 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"optimize": {"components": "drat"}}, "config.optimize.components names 'drat'"),
        ({"proposer": {"model": "opnai:gpt"}}, "unknown provider 'opnai'"),
        ({"data": {"test": 0}}, "no examples to test"),
    ],
)
def test_what_a_run_refuses_its_plan_refuses(changes: dict[str, dict[str, Any]], words: str) -> None:
    config = config_of()
    for section, fields in changes.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
    with pytest.raises(ValueError, match=words):
        plan_run(config, benchmark=TWO)


def test_the_paper_s_run_is_planned_without_a_key_or_a_download(monkeypatch) -> None:
    def fetch(*arguments: Any) -> None:
        raise AssertionError("a plan downloads nothing")

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(hotpotqa, "hub_rows", fetch)
    config = parse_config(get_config("paper").to_dict())
    small = dataclasses.replace(config.optimize, iterations=2, inputs=6, components="answer_generator")
    few = dataclasses.replace(config.data, train=20, val=20, test=10)
    offline = dataclasses.replace(config.offline, inputs=4)
    planned = plan_run(dataclasses.replace(config, optimize=small, data=few, offline=offline))
    assert planned.host.total.expected.usd > 0
    assert any("rows of 'hotpotqa' are not read" in line for line in planned.host.unknown)


def test_local_rewards_and_weights_are_rehearsed_without_devices() -> None:
    base = scripted_config()
    weights = dataclasses.replace(
        base,
        system=dataclasses.replace(base.system, language_model=MODEL, weights="answer_generator"),
        proposer=MODEL,
        reward=dataclasses.replace(base.reward, heads="trained"),
    )
    host = plan_run(weights).host
    assert host.steps["optimize: propose"].high.calls > 0


def test_a_rehearsal_executes_no_program(monkeypatch) -> None:
    executed: list[Any] = []
    monkeypatch.setattr("optimas_jax.llm.sandbox.run_tests", lambda *arguments: executed.append(arguments))
    preset = runpy.run_path(str(ROOT / "configs" / "bigcodebench.py"))["get_config"]
    config = parse_config(preset("paper").to_dict())
    few = dataclasses.replace(config.data, train=8, val=4, test=4)
    search = dataclasses.replace(config.optimize, iterations=1, inputs=4)
    offline = dataclasses.replace(config.offline, inputs=4)
    planned = plan_run(dataclasses.replace(config, optimize=search, data=few, offline=offline))
    assert planned.host.total.expected.calls and not executed


def test_a_program_is_planned_and_not_run(tmp_path: Path) -> None:
    def program(question):
        raise AssertionError("a plan runs nothing")

    declared = oj.program(program, components=[search, oj.prompt("Answer.", name="answer")])
    model = oj.LanguageModel("random:0", max_tokens=4)
    settings = {**SETTINGS, "optimize.iterations": 2}
    planned = oj.plan(
        declared, lambda outputs: 1.0, MANY, model=model, workdir=tmp_path, config=settings, progress=QUIET
    )
    assert planned.host.steps["evaluate"].low.calls == 7  # of 36 rows a fifth
    assert any("a program is not run" in line for line in planned.host.unknown)
    assert json.loads((tmp_path / "plan.json").read_text())["title"].startswith("program")
    assert "calls" in repr(planned)


def test_a_scripted_run_spends_about_as_much_as_its_plan_says(tmp_path: Path) -> None:
    base, model = scripted_config(), LanguageModel("openai:scripted", style="text", max_tokens=8)
    system, settings = (
        dataclasses.replace(base.system, language_model=model),
        dataclasses.replace(base.optimize, score="off"),
    )
    config = dataclasses.replace(base, system=system, proposer=model, optimize=settings)
    planned = plan_run(config).host.total
    run_stages(config, tmp_path, "all", QUIET, ScriptedCompleter(answer))
    results = json.loads((tmp_path / "results.json").read_text())
    assert 0.75 * planned.low.calls <= results["paid_calls"] <= 1.25 * planned.high.calls
    assert sum(row["spent"]["calls"] for row in results["spent"].values()) == results["paid_calls"]


def test_the_command_needs_no_key(tmp_path: Path) -> None:
    keyless = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    flags = ["--config=configs/hotpotqa.py:smoke", "--config.system.language_model.model=openai:gpt-4o-mini", "--plan"]
    done = subprocess.run(
        [sys.executable, "launch/run.py", *flags, f"--workdir={tmp_path}"],
        cwd=ROOT,
        env={**keyless, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and "Plan of hotpotqa:smoke" in done.stdout, done.stderr
    assert (tmp_path / "plan.json").is_file() and not (tmp_path / "tape.sqlite").exists()
