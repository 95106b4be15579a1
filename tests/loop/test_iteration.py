"""The host loop on systems small enough to enumerate (paper, Theorem 4.2)."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enumerable import EXAMPLES, QUIET, ExactRewards, enumerable_system, make_run, mean_score, values_of
from rich.console import Console
from runs import run_config

from optimas_jax.core.plain import ConfigError
from optimas_jax.core.system import Job, run_many
from optimas_jax.core.types import Group
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.tape import Tape
from optimas_jax.loop.budget import read_curve
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import build_run
from optimas_jax.loop.iteration import optimize
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.progress import ConsoleProgress
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.rewards.collect import CollectConfig, collect
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.engine import reward_engine
from optimas_jax.rewards.text import text_group


@pytest.mark.parametrize("block", range(10))
def test_paper_mode_with_exact_local_rewards_ends_in_a_component_wise_maximum(tmp_path: Path, block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        system = enumerable_system(seed)
        workdir = tmp_path / str(seed)
        workdir.mkdir()
        run = make_run(system, workdir, seed=seed, mode="paper", engine=ExactRewards(system, workdir), iterations=24)
        found = optimize(run, "exact", []).configuration
        run.tape.close()
        score = mean_score(system, found)
        for name in system.tunable:
            for value in values_of(system, name):
                assert mean_score(system, found.replace(name, value)) <= score + 1e-9, (seed, name, value)


def test_the_global_metric_needs_no_local_reward_and_ends_in_such_a_maximum_too(tmp_path: Path) -> None:
    for seed in range(3):
        system = enumerable_system(seed)
        run = make_run(
            system, tmp_path / str(seed), seed=seed, mode="paper", engine=None, iterations=24, score="global"
        )
        found = optimize(run, "", []).configuration
        run.tape.close()
        for name in system.tunable:
            for value in values_of(system, name):
                assert mean_score(system, found.replace(name, value)) <= mean_score(system, found) + 1e-9


def test_local_rewards_cost_fewer_runs_of_the_system(tmp_path: Path) -> None:
    costs = {}
    for score in ("local", "global"):
        system = enumerable_system(1)
        workdir = tmp_path / score
        run = make_run(
            system, workdir, seed=1, mode="paper", engine=ExactRewards(system, workdir), iterations=8, score=score
        )
        optimize(run, "exact" if score == "local" else "", [])
        run.tape.close()
        costs[score] = read_curve(workdir)[-1]
    assert costs["local"]["system_runs"] < costs["global"]["system_runs"]
    assert costs["local"]["val_score"] == costs["global"]["val_score"]


def test_the_search_stops_at_its_tokens_and_keeps_the_best_so_far(tmp_path: Path) -> None:
    def search(workdir: Path, limit: int) -> tuple[Any, list[dict[str, Any]]]:
        system = enumerable_system(3)
        engine = ExactRewards(system, workdir)
        run = make_run(system, workdir, seed=3, mode="paper", engine=engine, iterations=12, max_tokens=limit)
        with run.ledger.phase("optimize"):
            state = optimize(run, "exact", [])
        run.tape.close()
        return state, [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]

    whole, _ = search(tmp_path / "whole", 0)
    curve = read_curve(tmp_path / "whole")
    first = next(point for point in curve if point["at"] == "accept")
    limit = first["tokens"] + 1
    assert limit < curve[-1]["tokens"] and len(whole.accepted) > 1
    stopped, events = search(tmp_path / "stopped", limit)
    assert stopped.accepted == whole.accepted[: len(stopped.accepted)] and 1 <= len(stopped.accepted) < 4
    assert load_best(tmp_path / "stopped" / "best") == stopped.configuration
    assert events[-1]["event"] == "out_of_tokens" and limit <= events[-1]["tokens"] < curve[-1]["tokens"]
    again, same = search(tmp_path / "stopped", limit)  # every answer comes from the tape, and counts
    assert again == stopped and same == events


def test_the_gate_refuses_a_value_once_for_a_configuration(tmp_path: Path) -> None:
    system = enumerable_system(2)
    run = make_run(system, tmp_path, seed=2, mode="improved", engine=ExactRewards(system, tmp_path), iterations=12)
    optimize(run, "exact", [])
    run.tape.close()
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    refused: set[tuple[str, str]] = set()
    for event in (event for event in events if event["event"] == "gate"):
        value = (event["component"], event["value"])
        assert value not in refused
        refused = set() if event["accepted"] else refused | {value}
    assert refused


def test_a_search_that_asks_nothing_new_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = enumerable_system(3)
    run = make_run(
        system, tmp_path, seed=3, mode="paper", engine=ExactRewards(system, tmp_path), iterations=500, max_tokens=10**9
    )
    monkeypatch.setattr("optimas_jax.loop.iteration._iterate", lambda run, config, state, iteration: state)
    optimize(run, "exact", [])
    run.tape.close()
    assert len(read_curve(tmp_path)) == 1 + 50


@pytest.mark.parametrize("proposers", ["copro", "mipro,reflect", "random", "demos,opro"])
@pytest.mark.parametrize("score", ["local", "global"])
def test_every_optimiser_works_with_local_rewards_and_with_the_global_metric(
    tmp_path: Path, score: str, proposers: str
) -> None:
    system = enumerable_system(2)
    settings = {"score": score, "proposers": proposers, "demo_sets": 2, "demo_size": 1, "demo_min_reward": 0.1}
    run = make_run(
        system, tmp_path, seed=2, mode="improved", engine=ExactRewards(system, tmp_path), iterations=4, **settings
    )
    state = optimize(run, "exact" if score == "local" else "", [])
    run.tape.close()
    assert mean_score(system, state.configuration) >= mean_score(system, system.default_configuration())
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert {event["component"] for event in events if event["event"] == "proposal"} >= {"writer"}
    reasons = {event["reason"] for event in events if event["event"] == "dropped"}
    assert reasons <= {"repeated"}


def test_a_component_with_one_value_says_so(tmp_path: Path) -> None:
    said = io.StringIO()
    one = dataclasses.replace(run_config().system, k_grid=(1,), k=1)
    with pytest.raises(ConfigError, match=r"'context_retriever', which has one value to choose from, .*: leave it out"):
        config = run_config(system=one, optimize=OptimizeConfig(components="context_retriever"))
        build_run(config, tmp_path / "named", QUIET)
    run = build_run(run_config(system=one), tmp_path / "all", ConsoleProgress(Console(file=said, width=300)))
    run.tape.close()
    assert "context_retriever" not in run.components and len(run.components) == 4
    assert "context_retriever stays as it is, which has one value" in said.getvalue()


def test_trained_local_rewards_rank_as_the_exact_ones(tmp_path: Path) -> None:
    system = enumerable_system(4)
    groups: list[Group] = []
    for values in itertools.product(*(values_of(system, name) for name in system.tunable[:2])):
        configuration = system.default_configuration()
        for name, value in zip(system.tunable, values, strict=False):
            configuration = configuration.replace(name, value)
        traces = run_many(system, [Job(configuration, example, 0) for example in EXAMPLES], concurrency=4)
        found = collect(
            system,
            configuration,
            {"tuner": list(zip(EXAMPLES, traces, strict=True))},
            CollectConfig(samples=0, values=4),
            seed=0,
            concurrency=4,
            progress=QUIET,
        )
        groups += found
    unique = {str(group.inputs): group for group in groups}
    groups = [group for group in unique.values() if max(group.rewards) > min(group.rewards)]
    assert len(groups) >= 5
    config = RewardConfig("random:0", lora=LoraConfig(rank=8, alpha=16.0), learning_rate=1e-2, epochs=40, patience=40)
    engine = reward_engine(
        config,
        system.tunable,
        Engines(MeshConfig(data=1), QUIET),
        Tape(tmp_path / "tape.sqlite"),
        CheckpointStore(tmp_path / "checkpoints"),
        QUIET,
    )
    name, metadata = engine.trainer.train(system, None, groups, groups, epochs=config.epochs, seed=0)
    assert metadata["history"][-1]["loss"] < metadata["history"][0]["loss"]
    scores = engine.scorer.scores(
        name, [text_group(system, g.component, g.inputs, [c.outputs for c in g.candidates]) for g in groups]
    )
    for group, local in zip(groups, scores, strict=True):
        best = int(np.argmax(local))
        assert group.rewards[best] == max(group.rewards)
        for i, j in itertools.permutations(range(len(local)), 2):
            if group.rewards[i] > group.rewards[j]:
                assert local[i] > local[j]
