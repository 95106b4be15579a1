"""The four arms of ours: each control differs in what its name says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from enumerable import enumerable_system, make_run
from runs import run_config
from weights_run import NAME
from weights_run import config as weights_config

from optimas_jax.compare.optimizers import OPTIMIZERS, CompareError, find_optimizers
from optimas_jax.compare.plan import read_order, run_cells
from optimas_jax.core.selection import RANDOM, random_score
from optimas_jax.core.types import Call, Example, Outcome, StopRun
from optimas_jax.core.values import value_digest
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.iteration import start, with_base_runs
from optimas_jax.loop.journal import BEST, load_best
from optimas_jax.loop.setup.build import build_run
from optimas_jax.loop.state import State
from optimas_jax.loop.steps.propose import propose
from optimas_jax.loop.steps.trials import answer, local_scores
from optimas_jax.policy.reinforce import GlobalScores
from optimas_jax.policy.rollout import LocalScores, RandomScores
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.scorer import InstanceScorer


def config_of(arm: str, order: tuple[str, ...] = ()):
    return OPTIMIZERS[arm].config(run_config(), 3, 1000, order)


def test_random_numbers_replace_local_rewards_and_nothing_else() -> None:
    ours, random = config_of("ours"), config_of("random")
    assert random.optimize.score == "random"
    assert dataclasses.replace(random, optimize=ours.optimize) == ours
    assert changed(ours, random) == {"score", "adapt"}  # there is nothing to adapt


def test_random_numbers_choose_a_model_for_every_input_as_local_rewards_do(tmp_path: Path) -> None:
    kinds = {}
    for score, reward in (("local", "exact"), ("random", RANDOM)):
        system, folder = enumerable_system(2), tmp_path / score
        run = make_run(
            system, folder, seed=3, mode="improved", engine=None, iterations=1, score=score, per_instance="argmax"
        )
        host = dataclasses.replace(
            run.host, system=dataclasses.replace(run.host.system, scorer=InstanceScorer(None, system, 3))
        )
        state = start(host, run.config.optimize, reward, ())
        state, runs = with_base_runs(host, state, "router", host.splits["train"])
        proposals, _ = propose(host, run.device, run.config, run.config.optimize, state, "router", runs, 0)
        kinds[score] = [proposal.kind for proposal in proposals]
    assert kinds["random"] == kinds["local"] == ["grid", "per_instance"]

    choice = proposals[1].value
    trials = answer(host, "router", [*choice.values, choice], runs, {})
    scores = local_scores(host, run.device, state, "router", trials, runs)
    small, large, chosen = ([scores[value_digest(v), e.id] for e, _ in runs] for v in (*choice.values, choice))
    assert chosen == [max(pair) for pair in zip(small, large, strict=True)]  # the race sees the numbers chosen by
    assert small != chosen != large
    configuration = state.configuration.replace("router", choice)
    host.folder.save_best(configuration, {})  # no checkpoint goes with it
    assert load_best(host.folder.path / BEST) == configuration


def test_random_numbers_tune_weights_as_local_rewards_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same algorithm, sizes and optimiser: no global reward tells it anything."""
    tuned = []
    monkeypatch.setattr("optimas_jax.loop.steps.propose.tune_weights", lambda *args, **_: tuned.append(args))
    policies = {}
    for score in ("local", "random", "global"):
        config = weights_config(optimize=OptimizeConfig(score=score, components=NAME))
        run = build_run(config, tmp_path / score, ConsoleProgress(quiet=True))
        state = State(run.host.system.default_configuration(), RANDOM, (), ())
        propose(run.host, run.device, config, config.optimize, state, NAME, (), 0)
        policies[score] = run.device.policies.config
        run.tape.close()
    assert policies["random"] == policies["local"] != policies["global"]
    assert [type(args[-1]) for args in tuned] == [LocalScores, RandomScores, GlobalScores]


def test_random_numbers_for_weights_are_those_of_a_race_and_no_failure_is_above_the_rest() -> None:
    steps = [Call("a", {}, {"out": "x"}), Call("a", {}, {"out": "y"}), Call("a", {}, {}, Outcome.PARSE_ERROR)]
    example = Example("e", {}, {}, "train")
    [[x, y, failed]] = RandomScores(NAME, 3)([(example, None)], [steps])
    assert (x, y) == tuple(random_score(3, NAME, "e", step.outputs) for step in steps[:2])
    assert x != y and failed <= min(x, y)


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


def test_a_run_that_failed_is_followed_once_it_has_a_result(tmp_path: Path) -> None:
    """Its order as far as it came would make another control, and the finished one would have another task."""
    healthy: list[bool] = []

    async def runner(folder: Path) -> tuple[int, str]:
        if folder.name.startswith("ours"):
            write_run(folder, ["answer_generator", "hint_generator"] if healthy else ["answer_generator"])
            if not healthy:
                return 1, "no room"
        (folder / "cell.json").write_text('{"fine": 1}')
        return 0, ""

    def compare() -> dict[str, str]:
        optimizers = find_optimizers(["twin", "ours"])
        cells = run_cells(run_config(), optimizers, 1000, [4], tmp_path, lambda text: None, runner)
        return {name: by_seed[4].get("error", "") for name, by_seed in cells.items()}

    errors = compare()
    assert errors["ours"] == "no room"
    assert errors["twin"] == "it follows the order of 'ours', which has no result with this seed"
    healthy.append(True)
    assert compare() == {"ours": "", "twin": ""}
    task = json.loads((tmp_path / "cells" / "twin-4" / "task.json").read_text())
    assert task["config"]["optimize"]["order"] == "answer_generator,hint_generator"


def test_a_run_that_failed_has_no_order_to_follow(tmp_path: Path) -> None:
    with pytest.raises(StopRun, match="the run whose order of components is followed has failed"):
        read_order(tmp_path)
