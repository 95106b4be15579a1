"""Whole runs: collect, train, optimise, evaluate, with a language model that follows rules and a tiny random backbone
under the local rewards."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from scripted import answer, scripted_config

from optimas_jax.core.types import StopRun
from optimas_jax.core.values import Hyperparameters, value_to_json
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import EngineError
from optimas_jax.loop.config import STAGES, EvaluateConfig, RunConfig
from optimas_jax.loop.journal import FolderError
from optimas_jax.loop.progress import ConsoleProgress
from optimas_jax.loop.stages import MissingStage, run_stages


def run(
    workdir: Path,
    config: RunConfig | None = None,
    respond: Callable[[CompletionRequest], str] = answer,
    stage: str = "all",
) -> tuple[ScriptedCompleter, dict[str, Any]]:
    model = ScriptedCompleter(respond)
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        run_stages(config or scripted_config(), workdir, stage, ConsoleProgress(Console(file=log)), model)
    path = workdir / "results.json"
    return model, json.loads(path.read_text()) if path.is_file() else {}


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in every repetition: all but the bill, the clock and memory."""
    return {key: value for key, value in results.items() if key not in ("ledger", "wall_seconds", "peak_rss_mb")}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScriptedCompleter, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("straight") / "run"
    return (workdir, *run(workdir))


def test_a_run_improves_the_system_and_leaves_everything(straight) -> None:
    workdir, model, results = straight
    assert results["gain"]["ci95"][0] > 0
    assert [step["component"] for step in results["accepted"]][:1] == ["answer_generator"]
    brought = [step["test"]["gain"]["mean"] for step in results["accepted"]]
    assert sum(brought) == pytest.approx(results["gain"]["mean"])  # one after the other they make up the whole
    assert all(step["test"]["local_gain"]["ci95"] for step in results["accepted"])
    assert results["n"] == len(results["baseline"]["scores"]) == 12
    assert sum(row["n"] for row in results["by_kind"].values()) == 12
    assert set(results["alignment"]["answer_generator"]["controls"]) == {"shorter", "loglik"}
    paid = sum(row["paid_calls"] for roles in results["ledger"].values() for row in roles.values())
    assert paid == len(model.requests) == len({request.key for request in model.requests})
    for name in (
        "config.json",
        "journal.jsonl",
        "tape.sqlite",
        "best/configuration.json",
        "report.html",
        "tensorboard",
    ):
        assert (workdir / name).exists(), name
    events = [json.loads(line)["event"] for line in (workdir / "journal.jsonl").read_text().splitlines()]
    assert {"groups", "epoch", "pick", "proposal", "gate", "alignment", "evaluation"} <= set(events)


def test_the_same_command_again_pays_nothing_and_says_the_same(straight) -> None:
    workdir, _, results = straight
    journal = (workdir / "journal.jsonl").read_text()
    model, again = run(workdir)
    assert not model.requests
    assert comparable(again) == comparable(results)
    assert (workdir / "journal.jsonl").read_text() == journal


def test_changes_need_not_be_evaluated_one_by_one(straight, tmp_path: Path) -> None:
    workdir, _, _ = straight
    values = [value_to_json(Hyperparameters({"k": k})) for k in (2, 1)]
    results = {}
    for changes in (True, False):
        folder = tmp_path / str(changes)
        shutil.copytree(workdir, folder, ignore=shutil.ignore_patterns("results.json", "journal.jsonl", "config.json"))
        optimized = json.loads((folder / "optimized.json").read_text())
        last = optimized["accepted"][-1]
        there_and_back = [{**last, "component": "context_retriever", "value": value} for value in values]
        optimized["accepted"] = [*there_and_back, last]
        (folder / "optimized.json").write_text(json.dumps(optimized))
        _, results[changes] = run(folder, scripted_config(evaluate=EvaluateConfig(changes=changes)), stage="evaluate")
    assert results[False]["gain"] == results[True]["gain"]
    assert [["test" in step for step in results[key]["accepted"]] for key in (True, False)] == [[True] * 3, [False] * 3]
    calls = [sum(row["calls"] for row in one["ledger"]["evaluate"].values()) for one in results.values()]
    assert calls[0] == 2 * calls[1]


def test_collecting_that_leaves_nothing_to_search_with_says_so(tmp_path: Path) -> None:
    config = scripted_config()
    config = dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, max_tokens=100))
    with pytest.raises(StopRun, match=r"collecting took .*max_tokens = 100 .* or lower config.offline.calls"):
        run(tmp_path / "run", config, stage="collect")


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_concurrency_changes_nothing(straight, tmp_path: Path, concurrency: int) -> None:
    _, again = run(tmp_path / "run", scripted_config(concurrency=concurrency))
    assert comparable(again) == comparable(straight[2])


def test_stages_one_by_one_are_the_whole(straight, tmp_path: Path) -> None:
    for stage in STAGES:
        _, results = run(tmp_path / "run", stage=stage)
    assert comparable(results) == comparable(straight[2])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.97])
def test_a_run_that_a_dead_server_ended_resumes(straight, tmp_path: Path, share: float) -> None:
    total = len(straight[1].requests)
    seen = 0

    def dying(request: CompletionRequest) -> str:
        nonlocal seen
        seen += 1
        if seen > share * total:
            raise EngineError("the server died")
        return answer(request)

    with pytest.raises(EngineError, match="died"):
        run(tmp_path / "run", respond=dying)
    model, results = run(tmp_path / "run")
    assert comparable(results) == comparable(straight[2])
    assert len(model.requests) <= total - int(share * total) + scripted_config().concurrency


def test_a_stage_without_its_input_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="--stage=collect"):
        run(tmp_path / "run", stage="train")
    with pytest.raises(FolderError, match="--stage=optimize"):
        run(tmp_path / "run", stage="evaluate")


def test_evaluate_takes_a_saved_configuration_another_split_and_repeats(straight, tmp_path: Path) -> None:
    settings = EvaluateConfig(folder=str(straight[0] / "best"), split="val", repeats=3)
    _, results = run(tmp_path / "run", scripted_config(evaluate=settings), stage="evaluate")
    assert results["split"] == "val" and results["n"] == 8
    assert len(results["optimized"]["repeats"]) == 3 and results["optimized"]["spread"] >= 0
    assert results["optimized"]["mean"] > results["baseline"]["mean"]


def test_a_folder_of_another_run_is_refused(straight) -> None:
    with pytest.raises(FolderError, match=r"config\.seed: 0 -> 7"):
        run(straight[0], scripted_config(seed=7))


def test_without_local_rewards_nothing_is_collected_or_trained(tmp_path: Path) -> None:
    base = scripted_config()
    settings = dataclasses.replace(base.optimize, score="global", gate_top=2)
    _, results = run(tmp_path / "run", dataclasses.replace(base, optimize=settings))
    assert results["gain"]["mean"] >= 0 and results["alignment"] == {}
    assert "collect" not in results["ledger"] and "optimize" in results["ledger"]
    assert not (tmp_path / "run" / "groups").exists() and not (tmp_path / "run" / "reward.json").exists()
    assert all(change["test"]["local_gain"] is None for change in results["accepted"])
    again, same = run(tmp_path / "run", dataclasses.replace(base, optimize=settings))
    assert not again.requests and comparable(same) == comparable(results)
