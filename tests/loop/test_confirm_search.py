"""The confirmation of a search: what it accepted is tested once on examples that no gate has seen, and ``best/`` holds
what was confirmed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from enumerable import make_run
from runs import ROOT
from systems import system, tool

from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.core.types import Example
from optimas_jax.core.values import Hyperparameters, value_to_json
from optimas_jax.loop.context import Run
from optimas_jax.loop.iteration import start
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.stages import run_stage
from optimas_jax.loop.state import State
from optimas_jax.rewards.data import save_groups

DEFAULT, FIRST, SECOND = (Hyperparameters({"x": x}) for x in range(3))
TEST_SCORES = (0.0, 0.25, 0.75)


def examples(split: str, count: int, scores: Sequence[float]) -> tuple[Example, ...]:
    """Examples on which setting x scores ``scores[x]``."""
    return tuple(Example(f"{split}{i}", {"q": i}, {"scores": tuple(scores)}, split) for i in range(count))


def searched(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, accepted: Sequence[Hyperparameters], confirm: Sequence[Example]
) -> Run:
    """A run whose search accepted these settings of its one component, one after the other."""
    setting = tool("setting", ("q",), lambda q, x: x, grid=(0, 1, 2))
    stepped = system(setting, output="setting_out", metric=lambda outputs, gold: gold["scores"][outputs["setting_out"]])
    run = make_run(stepped, workdir, seed=0, mode="improved", engine=None, iterations=0, score="global")
    splits = {split: examples(split, 3, TEST_SCORES) for split in ("train", "val", "test")}
    host = dataclasses.replace(run.host, splits={**splits, **({"confirm": tuple(confirm)} if confirm else {})})
    config = dataclasses.replace(run.config, benchmark=str(ROOT / "configs" / "own_system.py"))

    def script(host: Any, device: Any, config: Any, reward: str, groups: Any) -> State:
        facts = {"component": "setting", "kind": "grid", "val_gain": 0.25}
        changes = tuple(
            {"iteration": index, **facts, "value": value_to_json(value)} for index, value in enumerate(accepted)
        )
        return dataclasses.replace(start(host, config.optimize, reward, groups), accepted=changes)

    monkeypatch.setattr("optimas_jax.loop.stages.optimize", script)
    save_groups(host.folder.path / "groups" / "offline", ())
    run = dataclasses.replace(run, host=host, config=config, benchmark=find_benchmark(config.benchmark))
    run_stage(run, "optimize")
    return run


def saved(run: Run, folder: str) -> Hyperparameters | None:
    """The setting in ``best/`` or ``unconfirmed/``; None without that folder."""
    path = run.host.folder.path / folder
    return load_best(path)["setting"] if path.is_dir() else None


def confirmed(run: Run) -> dict[str, Any] | None:
    return json.loads((run.host.folder.path / "optimized.json").read_text())["confirmed"]


def results(run: Run) -> dict[str, Any]:
    label = run_stage(run, "evaluate")
    return json.loads((run.host.folder.path / "evaluations" / f"{label}.json").read_text())


def test_a_final_configuration_that_gains_is_confirmed_and_no_other_is_run(tmp_path: Path, monkeypatch) -> None:
    run = searched(tmp_path, monkeypatch, (FIRST, SECOND), examples("confirm", 12, (0.0, 1.0, 1.0)))
    assert run.host.system.meter is not None and run.host.system.meter.runs == 3 + 2 * 12  # validation; two of three
    outcome = confirmed(run)
    assert outcome is not None and (outcome["changes"], outcome["verdict"], outcome["n"]) == (2, "confirmed", 12)
    assert saved(run, "best") == SECOND and saved(run, "unconfirmed") is None
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    [event] = [event for event in events if event["event"] == "confirmation"]
    assert event["changes"] == 2
    data = results(run)
    assert data["confirmed"] == outcome and data["unconfirmed"] is None
    assert data["optimized"]["mean"] == pytest.approx(0.75)


def test_without_a_gain_the_default_is_kept_and_what_was_not_confirmed_beside_it(tmp_path: Path, monkeypatch) -> None:
    run = searched(tmp_path, monkeypatch, (FIRST, SECOND), examples("confirm", 12, (0.5, 0.5, 0.5)))
    assert run.host.system.meter is not None and run.host.system.meter.runs == 3 + 3 * 12  # earlier states, too
    outcome = confirmed(run)
    assert outcome is not None and (outcome["changes"], outcome["verdict"]) == (None, "not confirmed")
    assert [test["changes"] for test in outcome["tests"]] == [2, 1]
    assert saved(run, "best") == DEFAULT and saved(run, "unconfirmed") == SECOND
    settings = dataclasses.replace(run.config.evaluate, changes=True)
    data = results(dataclasses.replace(run, config=dataclasses.replace(run.config, evaluate=settings)))
    assert data["optimized"]["mean"] == data["baseline"]["mean"] == 0.0
    assert data["unconfirmed"]["gain"]["mean"] == pytest.approx(0.75)
    assert [change["test"]["gain"]["mean"] for change in data["accepted"]] == pytest.approx([0.25, 0.5])


def test_an_earlier_state_is_confirmed_where_the_final_one_is_not(tmp_path: Path, monkeypatch) -> None:
    run = searched(tmp_path, monkeypatch, (FIRST, SECOND), examples("confirm", 12, (0.0, 1.0, 0.0)))
    outcome = confirmed(run)
    assert outcome is not None and outcome["changes"] == 1
    assert outcome["verdict"] == "confirmed: the state after 1 of 2 accepted changes"
    assert saved(run, "best") == FIRST and saved(run, "unconfirmed") == SECOND
    data = results(run)
    assert data["optimized"]["mean"] == pytest.approx(0.25)
    assert data["unconfirmed"]["gain"]["mean"] == pytest.approx(0.75)


def test_too_few_examples_confirm_nothing(tmp_path: Path, monkeypatch) -> None:
    run = searched(tmp_path, monkeypatch, (FIRST,), examples("confirm", 4, (0.0, 1.0, 1.0)))
    outcome = confirmed(run)
    assert outcome is not None and outcome["changes"] is None and not outcome["tests"]
    assert outcome["verdict"] == "not confirmed: too few (4 examples)"
    assert saved(run, "best") == DEFAULT and saved(run, "unconfirmed") == FIRST


@pytest.mark.parametrize("changes", [True, False])
def test_changes_that_were_not_kept_are_not_measured_as_if_they_were(
    tmp_path: Path, monkeypatch, changes: bool
) -> None:
    run = searched(tmp_path, monkeypatch, (FIRST,), examples("confirm", 12, (0.5, 0.5, 0.5)))
    assert saved(run, "best") == DEFAULT
    settings = dataclasses.replace(run.config.evaluate, changes=changes)
    data = results(dataclasses.replace(run, config=dataclasses.replace(run.config, evaluate=settings)))
    assert data["optimized"]["mean"] == 0.0
    measured = [change["test"]["gain"]["mean"] for change in data["accepted"] if "test" in change]
    assert measured == ([pytest.approx(0.25)] if changes else [])


def test_a_change_that_was_taken_back_leaves_nothing_unconfirmed(tmp_path: Path, monkeypatch) -> None:
    run = searched(tmp_path, monkeypatch, (FIRST, DEFAULT), examples("confirm", 12, (0.5, 0.5, 0.5)))
    assert saved(run, "best") == DEFAULT and saved(run, "unconfirmed") is None
    assert results(run)["unconfirmed"] is None


def test_a_search_that_accepts_nothing_has_nothing_to_confirm(tmp_path: Path, monkeypatch) -> None:
    run = searched(tmp_path, monkeypatch, (), examples("confirm", 12, (0.0, 1.0, 1.0)))
    outcome = confirmed(run)
    assert outcome is not None and outcome["verdict"] == "nothing to confirm: no change was accepted"
    assert saved(run, "best") == DEFAULT and saved(run, "unconfirmed") is None
    assert run.host.system.meter is not None
    assert run.host.system.meter.runs == 3  # of the validation


def test_without_a_confirm_split_best_is_the_last_accepted_state(tmp_path: Path, monkeypatch) -> None:
    run = searched(tmp_path, monkeypatch, (FIRST, SECOND), ())
    assert confirmed(run) is None
    assert saved(run, "best") == SECOND and saved(run, "unconfirmed") is None
    data = results(run)
    assert data["confirmed"] is None and data["unconfirmed"] is None
