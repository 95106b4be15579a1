"""Whole runs: collect, train, optimise, evaluate, with a language model that follows rules and a tiny random backbone
under the local rewards."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedCompleter
from fuzz_folder import fuzz_files, fuzz_groups, fuzz_metadata, fuzz_tape_bytes, fuzz_tape_rows
from fuzzing import Watch
from rich.console import Console
from runs import comparable
from scripted import answer, scripted_config

from optimas_jax.core.values import Hyperparameters, value_to_json
from optimas_jax.llm.accounts.ledger import OverBudget
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import EngineError
from optimas_jax.loop.config import STAGES, EvaluateConfig, RunConfig
from optimas_jax.loop.journal import FolderError
from optimas_jax.loop.stages import MissingStage, run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.run import report_run
from optimas_jax.rewards.data import load_groups


def run(
    workdir: Path,
    config: RunConfig | None = None,
    respond: Callable[[CompletionRequest], str] = answer,
    stage: str = "all",
) -> tuple[ScriptedCompleter, dict[str, Any]]:
    model = ScriptedCompleter(respond)
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        progress = ConsoleProgress(Console(file=log))
        run_stages(config or scripted_config(), workdir, stage, progress, model)
        report_run(workdir, progress)
    path = workdir / "results.json"
    return model, json.loads(path.read_text()) if path.is_file() else {}


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
    # Measured under the final configuration alone, which has few groups after an accepted change.
    assert all(set(row["controls"]) == {"shorter", "loglik", "majority"} for row in results["alignment"].values())
    assert set(results["label_use"]) == {"context_retriever", "answer_generator"}
    assert set(results["dropped"]) <= set(results["label_use"])
    paid = sum(row["paid_calls"] for roles in results["ledger"].values() for row in roles.values())
    assert paid == results["paid_calls"] == len(model.requests) == len({request.key for request in model.requests})
    for name in (
        "config.json",
        "journal.jsonl",
        "tape.sqlite",
        "best/configuration.json",
        "report.html",
    ):
        assert (workdir / name).exists(), name
    events = [json.loads(line)["event"] for line in (workdir / "journal.jsonl").read_text().splitlines()]
    assert {"groups", "epoch", "pick", "proposal", "gate", "alignment", "blame", "evaluation"} <= set(events)
    blame = results["blame"]
    assert blame["passing"] + blame["failing"] == 8 and len(blame["examples"]) == blame["failing"]
    assert set(blame["components"]) <= {"context_retriever", "answer_generator"}
    assert [row["changes"] for row in results["pareto"]] == list(range(1 + len(results["accepted"])))


def test_the_same_command_again_pays_nothing_and_says_the_same(straight) -> None:
    workdir, _, results = straight
    journal = (workdir / "journal.jsonl").read_text()
    model, again = run(workdir)
    assert not model.requests
    assert comparable(again) == comparable(results)
    assert (workdir / "journal.jsonl").read_text() == journal


def test_damaged_files_meet_typed_errors_and_no_flipped_bit_is_read(straight, tmp_path: Path) -> None:
    watch, rng = Watch(most_seconds=5.0), random.Random(0)
    fuzz_files(watch, straight[0], tmp_path, rng, 65)
    fuzz_metadata(watch, straight[0], tmp_path, rng, 10)
    fuzz_tape_rows(watch, straight[0], tmp_path, rng, 10)
    assert not fuzz_tape_bytes(watch, straight[0], tmp_path, rng, 10)
    assert not fuzz_groups(watch, straight[0], tmp_path, rng, 10)
    watch.check()


def test_what_is_in_the_place_of_the_report_is_named(straight, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(straight[0], folder, ignore=shutil.ignore_patterns("report.html"))
    (folder / "report.html").mkdir()
    with pytest.raises(FolderError, match=r"cannot write the report of .*report.html.*move what is in its place away"):
        report_run(folder, ConsoleProgress(Console(quiet=True)))


@pytest.mark.parametrize("left", [None, b""])
def test_nothing_is_bought_again_without_a_word(straight, tmp_path: Path, left: bytes | None) -> None:
    workdir, _, results = straight
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    (folder / "tape.sqlite").unlink()
    if left is not None:
        (folder / "tape.sqlite").write_bytes(left)
    for stage in ("all", "evaluate"):
        again = ScriptedCompleter(answer)
        with pytest.raises(
            FolderError, match=r"the tape .* is empty, and .* has results of \d+ calls: .*Put the tape back"
        ):
            run_stages(scripted_config(), folder, stage, ConsoleProgress(quiet=True), again)
        assert not again.requests
    shutil.copy(workdir / "tape.sqlite", folder)
    again, repeated = run(folder)
    assert not again.requests and comparable(repeated) == comparable(results)


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


@pytest.mark.parametrize("max_tokens", [8_000, 100_000])
def test_collecting_uses_its_share_of_the_budget_and_says_so(tmp_path: Path, max_tokens: int) -> None:
    config = scripted_config()
    config = dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, max_tokens=max_tokens))
    run(tmp_path / "run", config, stage="collect")
    collected = json.loads((tmp_path / "run" / "used.json").read_text())["collect"]
    assert collected["tokens"] <= 0.2 * max_tokens
    events = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    reasons = {event["component"]: event["stopped"] for event in events if event["event"] == "groups"}
    assert reasons == dict.fromkeys(("context_retriever", "answer_generator"), "its share of the budget is used")


def test_a_budget_for_less_than_the_first_validation_says_so(tmp_path: Path) -> None:
    config = scripted_config()
    config = dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, max_tokens=100))
    with pytest.raises(OverBudget, match=r"max_tokens is 100, and the validation of the default alone may use 7,251"):
        run(tmp_path / "run", config)


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


@pytest.mark.parametrize("groups", [0, 12])
def test_without_local_rewards_nothing_is_trained_and_offline_groups_alone_says_what_is_collected(
    tmp_path: Path, groups: int
) -> None:
    base = scripted_config()
    settings = dataclasses.replace(base.optimize, score="global", gate_top=2)
    offline = dataclasses.replace(base.offline, groups=groups)
    config = dataclasses.replace(base, optimize=settings, offline=offline)
    _, results = run(tmp_path / "run", config)
    assert results["gain"]["mean"] >= 0 and results["alignment"] == {}
    assert ("collect" in results["ledger"]) == bool(groups) and "optimize" in results["ledger"]
    assert bool(load_groups(tmp_path / "run" / "groups" / "offline")) == bool(groups)
    assert not (tmp_path / "run" / "reward.json").exists()
    assert all(change["test"]["local_gain"] is None for change in results["accepted"])
    again, same = run(tmp_path / "run", config)
    assert not again.requests and comparable(same) == comparable(results)
