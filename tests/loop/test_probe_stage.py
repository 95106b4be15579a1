"""The probe stage: what it spends, what it says, and what it needs."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from scripted import answer, scripted_config

from optimas_jax.core.types import StopRun
from optimas_jax.loop.config import OptimizeConfig, ProbeConfig
from optimas_jax.loop.probe import fitting_plan, values_by_cost
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_probe

LARGE = ProbeConfig(tokens=200_000)  # a token of the scripted model is a character


def config(**changes):
    base = scripted_config(**{"probe": LARGE, **changes})
    return dataclasses.replace(base, data=dataclasses.replace(base.data, train=40))


def probed(folder: Path, **changes) -> tuple[dict, str, int]:
    model, console = ScriptedCompleter(answer), io.StringIO()
    progress = ConsoleProgress(Console(file=console, width=200))
    run_stages(config(**changes), folder, "probe", progress, model)
    report_probe(folder, progress)
    return json.loads((folder / "probe.json").read_text()), console.getvalue(), len(model.requests)


def test_it_names_what_to_tune_first_and_what_it_cost(tmp_path: Path) -> None:
    findings, said, requests = probed(tmp_path)
    assert findings["first"] == "answer_generator"  # which answers shortly once it is shown how
    assert "tune answer_generator first: a random value of it gains" in said
    assert 0 < findings["spent"] <= LARGE.tokens and f"used {findings['spent']:,} tokens" in said
    tested = {row["name"]: row for row in findings["components"] if row["gain"] is not None}
    assert tested["answer_generator"]["ceiling"] == 1.0 and tested["answer_generator"]["inputs"] >= 12
    again, _, paid = probed(tmp_path)
    assert again == findings and requests > 0 == paid


def test_its_tokens_are_a_hard_limit(tmp_path: Path) -> None:
    whole, _, _ = probed(tmp_path / "whole")
    less = whole["spent"] * 2 // 3
    findings, _, _ = probed(tmp_path / "less", probe=ProbeConfig(tokens=less))
    assert findings["spent"] <= less
    with pytest.raises(StopRun, match=r"config\.probe\.tokens = 50 .* ends the probe before all components"):
        probed(tmp_path / "none", probe=ProbeConfig(tokens=50))


def test_weights_have_no_random_values(tmp_path: Path) -> None:
    base = config()
    system = dataclasses.replace(base.system, weights="hint_generator")
    model = ScriptedCompleter(answer)
    alone = dataclasses.replace(base, system=system, optimize=OptimizeConfig(components="hint_generator", score="off"))
    with pytest.raises(StopRun, match="hint_generator are tuned by weights, which have none"):
        run_stages(alone, tmp_path / "alone", "probe", ConsoleProgress(quiet=True), model)
    assert not model.requests
    beside = dataclasses.replace(alone, optimize=OptimizeConfig(components="hint_generator,answer_generator"))
    run_stages(beside, tmp_path / "beside", "probe", ConsoleProgress(quiet=True), model)
    findings = json.loads((tmp_path / "beside" / "probe.json").read_text())
    assert findings["advice"][-1] == "hint_generator: not tried, without random values"


def test_too_few_examples_are_refused_by_number(tmp_path: Path) -> None:
    small = scripted_config()
    small = dataclasses.replace(small, data=dataclasses.replace(small.data, train=8))
    with pytest.raises(StopRun, match=r"the probe needs 12 training examples .* and there are 8"):
        run_stages(small, tmp_path, "probe", ConsoleProgress(quiet=True), ScriptedCompleter(answer))


def test_a_dear_system_is_screened_with_less() -> None:
    costs = {"a": 300.0, "b": 200.0}
    roomy = fitting_plan(ProbeConfig(), 300.0, costs, 1e6)
    assert (roomy.values, roomy.screen) == (2, 4)
    tight = fitting_plan(ProbeConfig(), 300.0, costs, 12_000.0)
    assert tight.values * tight.screen < 8
    sampled = fitting_plan(ProbeConfig(), 300.0, costs, 12_000.0, repeat=1.0)
    assert sampled.values * sampled.screen < tight.values * tight.screen  # second runs cost as much as the first
    least = fitting_plan(ProbeConfig(), 300.0, costs, 0.0)
    assert (least.values, least.screen) == (1, 2)


def test_cheap_components_get_more_values() -> None:
    assert values_by_cost(2, {"first": 400.0, "last": 100.0}) == {"first": 2, "last": 5}
    assert values_by_cost(2, {"first": 400.0, "last": 1.0})["last"] == 6


def test_a_run_says_what_a_probe_would_cost(tmp_path: Path) -> None:
    console = io.StringIO()
    run_stages(
        config(), tmp_path, "collect", ConsoleProgress(Console(file=console, width=200)), ScriptedCompleter(answer)
    )
    assert "--stage=probe tells beforehand, for at most 200,000 tokens" in console.getvalue()
