"""The four arms of ours: each control differs in what its name says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from runs import run_config

from optimas_jax.compare.optimizers import OPTIMIZERS, CompareError, find_optimizers
from optimas_jax.compare.plan import read_order, run_cells
from optimas_jax.core.types import StopRun


def config_of(arm: str, order: tuple[str, ...] = ()):
    return OPTIMIZERS[arm].config(run_config(), 3, 1000, order)


def test_random_numbers_replace_local_rewards_and_nothing_else() -> None:
    ours, random = config_of("ours"), config_of("random")
    assert random.optimize.score == "random"
    assert dataclasses.replace(random, optimize=ours.optimize) == ours
    assert changed(ours, random) == {"score", "adapt", "per_instance"}  # there is nothing to adapt or to choose by


def changed(one, other) -> set[str]:
    """Fields of ``optimize`` that differ."""
    names = [field.name for field in dataclasses.fields(one.optimize)]
    return {name for name in names if getattr(one.optimize, name) != getattr(other.optimize, name)}


def test_the_twin_ranks_the_same_by_the_global_metric_in_the_order_of_ours() -> None:
    ours, twin = config_of("ours"), config_of("twin", ("b", "a"))
    assert (twin.optimize.score, twin.optimize.order) == ("global", "b,a")
    assert (twin.offline, twin.collect, twin.data, twin.reward) == (ours.offline, ours.collect, ours.data, ours.reward)
    assert changed(ours, twin) == {
        "score",
        "order",
        "adapt",
        "per_instance",
    }  # without local rewards none are adapted or chosen by


def test_the_bare_arm_is_the_twin_without_collected_candidates() -> None:
    twin, bare = config_of("twin", ("a",)), config_of("bare", ("a",))
    assert bare.offline.groups == 0
    assert dataclasses.replace(bare, offline=twin.offline) == twin


def test_arms_that_follow_another_come_after_it_and_need_it() -> None:
    assert [*find_optimizers(["twin", "ours", "random"])] == ["ours", "random", "twin"]
    with pytest.raises(CompareError, match="bare visits components in the order of 'ours': name that, too"):
        find_optimizers(["bare", "random"])


def write_run(folder: Path, picks: list[str]) -> None:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    events = [{"event": "pick", "iteration": number, "component": name} for number, name in enumerate(picks)]
    lines = [json.dumps(event) for event in [{"event": "curve"}, *events]]
    (folder / "run" / "journal.jsonl").write_text("\n".join(lines) + "\n")


def test_a_cell_follows_the_order_of_the_run_that_it_is_compared_with(tmp_path: Path) -> None:
    started: list[str] = []

    async def runner(folder: Path) -> tuple[int, str]:
        started.append(folder.name)
        if folder.name.startswith("ours"):
            write_run(folder, ["answer_generator", "hint_generator", "answer_generator"])
        (folder / "cell.json").write_text("{}")
        return 0, ""

    optimizers = find_optimizers(["twin", "ours"])
    run_cells(run_config(), optimizers, 1000, [4], tmp_path, lambda text: None, runner, jobs=2)
    assert started == ["ours-4", "twin-4"]
    task = json.loads((tmp_path / "cells" / "twin-4" / "task.json").read_text())
    assert task["config"]["optimize"]["order"] == "answer_generator,hint_generator,answer_generator"
    assert read_order(tmp_path / "cells" / "ours-4" / "run")[1] == "hint_generator"


def test_a_run_that_failed_has_no_order_to_follow(tmp_path: Path) -> None:
    with pytest.raises(StopRun, match="the run whose order of components is followed has failed"):
        read_order(tmp_path)
