"""Proposals that come to nothing: what is said of them, and that nothing is paid for them twice."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from enumerable import ExactRewards, enumerable_system, make_run, mean_score, search, values_of
from fakes import ScriptedCompleter
from rich.console import Console
from runs import ROOT, run_config

from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.scoring import NonFiniteScore
from optimas_jax.core.system import System
from optimas_jax.core.values import value_from_json
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OptimizeConfig, RunConfig, parse_config
from optimas_jax.loop.context import Run
from optimas_jax.loop.setup.build import build_run
from optimas_jax.loop.stages import run_stages
from optimas_jax.loop.state import State
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_run
from optimas_jax.rewards.data import load_groups

OWN_FILE = str(ROOT / "configs" / "own_system.py")


def with_proposer(system: System, text: str) -> System:
    """The same system beside a proposer that always answers ``text``; with the instruction "useless" the writer always
    writes the same word."""
    completer = system.completer

    def answer(request: CompletionRequest) -> Any:
        if request.role == "proposer":
            return text
        return "dog" if request.messages[0].content.startswith("useless") else completer._answer(request)

    return system.using(ScriptedCompleter(answer))


def searched(tmp_path: Path, text: str, **settings: Any) -> tuple[Run, State, str]:
    """A search of the writer alone beside such a proposer; and what its console shows."""
    system, console = with_proposer(enumerable_system(2), text), io.StringIO()
    engine = ExactRewards(system, tmp_path)
    settings = {"seed": 2, "mode": "paper", "iterations": 5, "components": ("writer",), **settings}
    run = make_run(system, tmp_path, engine=engine, **settings)
    progress = ConsoleProgress(Console(file=console, width=200))
    run = dataclasses.replace(run, host=dataclasses.replace(run.host, progress=progress))
    return run, search(run), console.getvalue()


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.mark.parametrize(("text", "reason"), [("", "empty"), ("red", "repeated"), ("...", "placeholder")])
def test_a_proposer_that_writes_nothing_new_is_told(tmp_path: Path, text: str, reason: str) -> None:
    _, state, said = searched(tmp_path, text, instructions=4)
    assert said.count(f"no usable proposal: 4 answers dropped (4 {reason})") == 5
    assert state.dropped == {"writer": {reason: 20}} and not state.accepted
    proposed = [(event["usable"], event["dropped"]) for event in events(tmp_path, "proposed")]
    assert proposed == [(0, {reason: 4})] * 5


def test_a_proposal_that_the_gate_refused_is_neither_ranked_nor_paid_for_again(tmp_path: Path) -> None:
    run, state, said = searched(tmp_path, "useless", instructions=2, inputs=3)
    assert not state.accepted
    assert len(events(tmp_path, "proposal")) == len(events(tmp_path, "gate")) == 1
    assert state.dropped["writer"] == {"repeated": 5, "refused before": 4}
    assert "no usable proposal: 2 answers dropped (1 repeated, 1 refused before)" in said
    completer = run.host.completer._inner
    prompts = [request.messages[0].content for request in completer.requests if request.role == "proposer"]
    assert prompts[-1].count("useless") == 1  # its history has it once
    tried = [request for request in completer.requests if request.messages[0].content.startswith("useless")]
    assert len(tried) == 3  # once for each of the three inputs


def test_proposals_with_the_outputs_of_the_value_in_use_are_told(tmp_path: Path) -> None:
    system = enumerable_system(2)
    completer = system.completer

    def answer(request: CompletionRequest) -> Any:
        if request.role == "proposer":
            return "scarlet"
        [message] = request.messages
        red = dataclasses.replace(message, content=message.content.replace("scarlet", "red"))
        return completer._answer(dataclasses.replace(request, messages=(red,)))

    system = system.using(ScriptedCompleter(answer))
    settings = {"iterations": 1, "instructions": 1, "components": ("writer",)}
    run = make_run(system, tmp_path, seed=2, mode="paper", engine=ExactRewards(system, tmp_path), **settings)
    state = search(run)
    assert state.dropped == {"writer": {"same outputs": 1}}
    assert [(event["usable"], event["dropped"]) for event in events(tmp_path, "proposed")] == [(0, {"same outputs": 1})]


def own_config(**optimize: Any) -> RunConfig:
    base = parse_config({**find_benchmark(OWN_FILE).get_config().to_dict(), "benchmark": OWN_FILE})
    model = LanguageModel("scripted", style="text")
    return dataclasses.replace(
        base,
        system=dataclasses.replace(base.system, language_model=model),
        proposer=model,
        data=dataclasses.replace(base.data, train=6, val=4, test=4),
        optimize=OptimizeConfig.improved(iterations=2, inputs=4, score="global", **optimize),
    )


def test_results_and_page_count_what_was_dropped(tmp_path: Path) -> None:
    config = own_config(proposers="opro", instructions=2)
    log = io.StringIO()
    model = ScriptedCompleter(lambda request: "" if request.role == "proposer" else "fruit")
    run_stages(config, tmp_path, "all", ConsoleProgress(Console(file=log, width=200)), model)
    results = json.loads((tmp_path / "results.json").read_text())
    assert sum(results["dropped"][name]["empty"] for name in results["dropped"]) == 4
    assert "no usable proposal: 2 answers dropped (2 empty)" in log.getvalue()
    report_run(tmp_path, ConsoleProgress(quiet=True))
    assert "Proposals that came to nothing" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"proposers": "opro", "instructions": 0}, "opro needs instructions > 0"),
        ({"proposers": "demos", "demo_sets": 0}, "demos needs demo_sets > 0 and demo_size > 0"),
        ({"proposers": "copro,opro", "instructions": 0}, "copro needs .*, opro needs"),
        ({"proposers": "random", "instructions": 0, "demo_sets": 0}, "random needs instructions > 0 or demo_sets > 0"),
        ({"proposers": "llmselector"}, "llmselector chooses models only"),
    ],
)
def test_a_search_in_which_no_prompt_can_be_written_is_refused_at_the_start(
    tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    config = run_config(optimize=OptimizeConfig.improved(**settings))
    with pytest.raises(ConfigError, match=f"would write no prompt for question_rewriter, .*: {why}"):
        build_run(config, tmp_path / "all", ConsoleProgress(quiet=True))
    grid_only = dataclasses.replace(config.optimize, components="context_retriever")
    run = build_run(dataclasses.replace(config, optimize=grid_only), tmp_path / "grid", ConsoleProgress(quiet=True))
    run.tape.close()


def test_one_optimiser_that_can_write_is_enough(tmp_path: Path) -> None:
    config = run_config(optimize=OptimizeConfig.improved(proposers="demos,opro", demo_sets=0))
    build_run(config, tmp_path, ConsoleProgress(quiet=True)).tape.close()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_a_metric_that_is_not_finite_stops_at_the_first_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    module = find_benchmark(OWN_FILE)

    def ratio(outputs: Any, gold: Any) -> float:
        return bad if outputs["sort"] == "thing" else 1.0

    build = module.build
    monkeypatch.setattr(module, "build", lambda *parts: dataclasses.replace(build(*parts), metric=ratio))
    monkeypatch.setattr("optimas_jax.loop.setup.build.find_benchmark", lambda name: module)
    model = ScriptedCompleter(lambda request: "thing")
    with pytest.raises(NonFiniteScore, match=r"the metric 'ratio' returned .* on example '\w+'.*'thing'.*gold"):
        run_stages(own_config(), tmp_path, "all", ConsoleProgress(quiet=True), model)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
@pytest.mark.parametrize(
    ("metrics", "where"),
    [("OTHER_METRICS", r"on example '\w+', .*'thing'.*gold"), ("SET_METRICS", "on a set of 4 examples, ")],
)
def test_another_metric_that_is_not_finite_gives_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: str, where: str, bad: float
) -> None:
    module = find_benchmark(OWN_FILE)
    monkeypatch.setattr(
        module, metrics, {"good": lambda outputs, golds: 0.5, "ratio": lambda outputs, golds: bad}, False
    )
    model = ScriptedCompleter(lambda request: "thing")
    with pytest.raises(NonFiniteScore, match=rf"^the metric 'ratio' returned {re.escape(str(bad))} {where}"):
        run_stages(own_config(), tmp_path, "all", ConsoleProgress(quiet=True), model)
    assert not (tmp_path / "results.json").exists()


def test_a_grid_that_is_searched_globally_is_ranked_by_the_metric_on_all_training_examples(tmp_path: Path) -> None:
    system = enumerable_system(3)

    class Wrong(ExactRewards):
        def scores(self, name: str, groups: Any) -> list[list[float]]:
            return [[-score for score in row] for row in super().scores(name, groups)]

    engine = Wrong(system, tmp_path)
    settings = {"iterations": 4, "global_search": "tuner", "inputs": 1, "components": ("tuner",)}
    run = make_run(system, tmp_path, seed=3, mode="paper", engine=engine, **settings)
    state = search(run)
    proposals = events(tmp_path, "proposal")
    assert proposals and {event["inputs"] for event in proposals} == {3}
    default = system.default_configuration()
    first = {str(value_from_json(event["value"])): event["expected_gain"] for event in proposals[:3]}
    scores = {str(value): mean_score(system, default.replace("tuner", value)) for value in values_of(system, "tuner")}
    before = mean_score(system, default)
    assert first and all(scores[value] - before == pytest.approx(gain) for value, gain in first.items())
    assert state.accepted and mean_score(system, state.configuration) == max(scores.values())


def test_names_to_search_globally_have_listed_values(tmp_path: Path) -> None:
    config = run_config(optimize=OptimizeConfig.paper(global_search="hint_generator"))
    with pytest.raises(ConfigError, match="'hint_generator'; components with listed values are context_retriever"):
        build_run(config, tmp_path, ConsoleProgress(quiet=True))


def test_the_gate_and_adaptation_have_sizes_of_their_own(tmp_path: Path) -> None:
    system = enumerable_system(3)
    run = make_run(
        system,
        tmp_path,
        seed=3,
        mode="paper",
        engine=ExactRewards(system, tmp_path),
        iterations=12,
        gate_examples=2,
        adapt_inputs=1,
    )
    state = search(run)
    assert state.accepted and {event["n"] for event in events(tmp_path, "gate")} == {2}
    assert len(state.val_traces) == 2
    adapted = [load_groups(folder) for folder in (tmp_path / "groups").glob("iteration-*")]
    assert len(adapted) == len({change["iteration"] for change in state.accepted})
    assert all(groups and len({group.example_id for group in groups}) == 1 for groups in adapted)
