"""The host loop on systems small enough to enumerate (paper, Theorem 4.2)."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enumerable import EXAMPLES, QUIET, ExactRewards, enumerable_system, make_run, mean_score, search, values_of
from rich.console import Console
from runs import run_config

from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.scoring import Score
from optimas_jax.core.types import Candidate, Group
from optimas_jax.core.values import Choice, PerInstance, Prompt, Value
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.budget import read_curve
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.iteration import iterate, open_components, pick, start, training_inputs
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.setup.build import build_run
from optimas_jax.loop.state import State
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.collect import CollectConfig, collect, standard_tries
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.engine import reward_engine
from optimas_jax.rewards.scorer import ScoredGroup
from optimas_jax.rewards.text import text_group
from optimas_jax.search.gate import GateConfig


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.long) for block in range(1, 10))])
def test_paper_mode_with_exact_local_rewards_ends_in_a_component_wise_maximum(tmp_path: Path, block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        system = enumerable_system(seed)
        workdir = tmp_path / str(seed)
        workdir.mkdir()
        run = make_run(system, workdir, seed=seed, mode="paper", engine=ExactRewards(system, workdir), iterations=24)
        configuration = search(run).configuration
        score = mean_score(system, configuration)
        for name in system.tunable:
            for value in values_of(system, name):
                assert mean_score(system, configuration.replace(name, value)) <= score + 1e-9, (seed, name, value)


def test_the_global_metric_needs_no_local_reward_and_ends_in_such_a_maximum_too(tmp_path: Path) -> None:
    for seed in range(3):
        system = enumerable_system(seed)
        run = make_run(
            system, tmp_path / str(seed), seed=seed, mode="paper", engine=None, iterations=24, score="global"
        )
        best = search(run, "").configuration
        for name in system.tunable:
            for value in values_of(system, name):
                assert mean_score(system, best.replace(name, value)) <= mean_score(system, best) + 1e-9


def test_local_rewards_cost_fewer_runs_of_the_system(tmp_path: Path) -> None:
    costs = {}
    for score in ("local", "global"):
        system = enumerable_system(1)
        workdir = tmp_path / score
        run = make_run(
            system, workdir, seed=1, mode="paper", engine=ExactRewards(system, workdir), iterations=8, score=score
        )
        search(run, "exact" if score == "local" else "")
        costs[score] = read_curve(workdir)[-1]
    assert costs["local"]["system_runs"] < costs["global"]["system_runs"]
    assert costs["local"]["val_score"] == costs["global"]["val_score"]


def budgeted(workdir: Path, limit: int) -> tuple[State, list[dict[str, Any]]]:
    """A search within so many tokens (0: without a limit), which accepts a change; its state and its events."""
    system = enumerable_system(5)
    settings = {"max_tokens": limit, "instructions": 4, "gate": GateConfig("paired", level=0.49)}
    run = make_run(
        system,
        workdir,
        seed=5,
        mode="improved",
        engine=ExactRewards(system, workdir),
        iterations=14,
        **settings,
    )
    state = search(run)
    return state, [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("budgets", [range(20), pytest.param(range(200), marks=pytest.mark.long)])
def test_every_budget_is_kept_and_nearly_used(tmp_path: Path, budgets: range) -> None:
    """Random budgets above the least that a search needs: never overrun, every accepted change within, ``best/`` there
    where something was accepted. A request of a proposer takes some 430 tokens here."""
    whole, events = budgeted(tmp_path / "whole", 0)
    assert whole.accepted
    tokens = [event["tokens"] for event in events if "tokens" in event]
    shares = []
    for index in budgets:
        limit = random.Random(index).randint(tokens[0] + 1_500, tokens[-1])
        workdir = tmp_path / str(index)
        state, events = budgeted(workdir, limit)
        used = max(event["tokens"] for event in events if "tokens" in event)
        assert used <= limit
        values = [change["value"] for change in state.accepted]
        assert values == [change["value"] for change in whole.accepted[: len(values)]]
        accepted = [event for event in events if event["event"] == "curve" and event["at"] == "accept"]
        assert len(accepted) == len(values) and all(event["tokens"] <= limit for event in accepted)
        if values:
            assert load_best(workdir / "best") == state.configuration
        shares.append(used / limit)
    assert statistics.fmean(shares) >= 0.9


def test_a_search_that_its_budget_ended_does_the_same_again(tmp_path: Path) -> None:
    first, events = budgeted(tmp_path, 2_500)
    assert load_best(tmp_path / "best") == first.configuration
    shutil.rmtree(tmp_path / "best")  # exact rewards are those of the configuration in it
    again, same = budgeted(tmp_path, 2_500)
    assert events == same and [event["event"] for event in events[-2:]] == ["out_of_budget", "search_end"]
    curve = read_curve(tmp_path)
    assert [point["at"] for point in curve].count("end") == 1 and curve[-1]["at"] == "end"
    assert curve[-1]["tokens"] == events[-2]["tokens"] > curve[-2]["tokens"]  # the iteration that was cut counts
    assert curve[-1]["val_score"] == curve[-2]["val_score"]
    assert (first.configuration, first.accepted) == (again.configuration, again.accepted)


def test_the_gate_refuses_a_value_once_for_a_configuration(tmp_path: Path) -> None:
    system = enumerable_system(2)
    run = make_run(system, tmp_path, seed=2, mode="improved", engine=ExactRewards(system, tmp_path), iterations=12)
    search(run)
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    refused: set[tuple[str, str]] = set()
    for event in (event for event in events if event["event"] == "gate"):
        value = (event["component"], event["value"])
        assert value not in refused
        refused = set() if event["accepted"] else refused | {value}
    assert refused


def test_components_take_turns_even_if_nothing_passes(tmp_path: Path) -> None:
    """A grid whose values are all refused has its turn no more; the others alternate."""
    system = enumerable_system(3)
    run = make_run(
        system,
        tmp_path,
        seed=3,
        mode="improved",
        engine=ExactRewards(system, tmp_path),
        iterations=12,
        gate=GateConfig("paired", level=0.125),  # of three examples all have to gain
    )
    state = search(run)
    visits = dict(state.visits)
    assert set(visits) == {"writer", "router", "tuner"} and sum(visits.values()) == 12
    assert not state.accepted and visits["router"] == 1  # its other value was refused


def test_a_component_is_open_while_the_choice_of_a_model_by_the_local_reward_is_new(tmp_path: Path) -> None:
    system = enumerable_system(3)
    engine = ExactRewards(system, tmp_path)
    run = make_run(system, tmp_path, seed=3, mode="improved", engine=engine, iterations=1, per_instance="argmax")
    config = run.config.optimize
    state = State(system.default_configuration(), "one", (), ())

    def refused(state: State, value: Value) -> State:
        return dataclasses.replace(state, refused={*state.refused, state.configuration.replace("router", value).digest})

    state = refused(state, Choice("large"))
    assert "router" in open_components(run.host, config, state)
    state = refused(state, PerInstance((Choice("small"), Choice("large")), "one"))
    assert "router" not in open_components(run.host, config, state)
    assert "router" in open_components(run.host, config, dataclasses.replace(state, reward="two"))
    never = dataclasses.replace(config, per_instance="never")
    assert "router" not in open_components(run.host, never, dataclasses.replace(state, reward="two"))
    run.tape.close()


@pytest.mark.parametrize("proposers", ["copro", "mipro,reflect", "random", "demos,opro"])
@pytest.mark.parametrize("score", ["local", "global", "off"])
def test_every_optimiser_works_with_local_rewards_with_the_global_metric_and_with_labels_alone(
    tmp_path: Path, score: str, proposers: str
) -> None:
    system = enumerable_system(2)
    settings = {"score": score, "proposers": proposers, "demo_sets": 2, "demo_size": 1}
    run = make_run(
        system, tmp_path, seed=2, mode="improved", engine=ExactRewards(system, tmp_path), iterations=4, **settings
    )
    state = search(run, "exact" if score == "local" else "")
    assert mean_score(system, state.configuration) >= mean_score(system, system.default_configuration())
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert {event["component"] for event in events if event["event"] == "proposal"} >= {"writer"}
    reasons = {event["reason"] for event in events if event["event"] == "dropped"}
    assert reasons <= {"repeated", "refused before", "same outputs"}


@pytest.mark.parametrize(
    "settings",
    [
        {"score": "local", "ranking": "corrected", "labels": 3},
        {"score": "global", "ranking": "mean"},
        {"score": "local", "ranking": "mean"},
    ],
)
def test_instructions_are_remembered_with_what_they_score_where_the_metric_ranks_them(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """By the metric it is the expected score itself; by the mean local reward, which has no scale, the gain."""
    system = enumerable_system(11)
    engine = ExactRewards(system, tmp_path)
    settings = {**settings, "iterations": 1, "gate_top": 0, "components": ("writer",)}
    state = search(make_run(system, tmp_path, seed=11, mode="improved", engine=engine, **settings))
    default, tried = system.default_configuration(), state.history["writer"]
    before = 0.0 if settings["score"] == "global" or settings["ranking"] == "corrected" else mean_score(system, default)
    assert tried and mean_score(system, default) > 0
    for one in tried:
        after = mean_score(system, default.replace("writer", Prompt(one.instruction)))
        assert one.score == pytest.approx(after - before)


def test_a_rule_that_the_metric_names_is_tried_before_an_instruction_is_rewritten(tmp_path: Path) -> None:
    """Once, although it changes no output here and is therefore refused by no gate."""
    system = enumerable_system(11)

    def metric(outputs: Any, gold: Any) -> Score:
        return Score(system.metric(outputs, gold), "Be loud.")

    told = dataclasses.replace(system, metric=metric)
    settings = {"proposers": "opro,feedback", "iterations": 3, "gate_top": 0, "components": ("writer",)}
    search(make_run(told, tmp_path, seed=11, mode="improved", engine=ExactRewards(told, tmp_path), **settings))
    rows = [json.loads(line) for line in (tmp_path / "proposals.jsonl").read_text().splitlines()]
    kinds = [{row["optimiser"] for row in rows if row["iteration"] == number} for number in range(3)]
    assert kinds[0] == {"feedback"} and "opro" in kinds[1] and "opro" in kinds[2]
    assert rows[0]["text"] == "red\nBe loud." and "answers as the value in use" in rows[0]["reason"]


def test_an_accepted_proposal_starts_the_history_of_instructions_anew(tmp_path: Path) -> None:
    """Scores of before were those of another configuration."""
    states = []
    for gate_top in (0, 1):
        system, workdir = enumerable_system(11), tmp_path / str(gate_top)
        engine = ExactRewards(system, workdir)
        settings = {"iterations": 1, "gate_top": gate_top, "components": ("writer",)}
        states.append(search(make_run(system, workdir, seed=11, mode="paper", engine=engine, **settings)))
    tested, accepted = states
    assert tested.history["writer"] and not tested.accepted
    assert len(accepted.accepted) == 1 and not accepted.history


def test_a_component_with_one_value_says_so(tmp_path: Path) -> None:
    said = io.StringIO()
    one = dataclasses.replace(run_config().system, k_grid=(1,), k=1)
    with pytest.raises(ConfigError, match=r"'context_retriever', which has one value to choose from, .*: leave it out"):
        config = run_config(system=one, optimize=OptimizeConfig(components="context_retriever"))
        build_run(config, tmp_path / "named", QUIET)
    run = build_run(run_config(system=one), tmp_path / "all", ConsoleProgress(Console(file=said, width=300)))
    assert "context_retriever" not in run.host.components and len(run.host.components) == 4
    assert "context_retriever stays as it is, which has one value" in said.getvalue()


def test_an_order_of_components_is_checked_and_read_with_spaces(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"order names 'hints'; tuned are .*context_retriever, .*hint_generator"):
        build_run(run_config(optimize=OptimizeConfig(order="hint_generator, hints")), tmp_path / "unknown", QUIET)
    left_out = OptimizeConfig(components="context_retriever", order="hint_generator")
    with pytest.raises(ConfigError, match="order names 'hint_generator'; tuned are context_retriever"):
        build_run(run_config(optimize=left_out), tmp_path / "left-out", QUIET)
    system, order = enumerable_system(2), ["tuner", "router", "tuner"]
    run = make_run(
        system,
        tmp_path / "spaces",
        seed=2,
        mode="improved",
        engine=ExactRewards(system, tmp_path / "spaces"),
        iterations=3,
        order=" tuner, router ,tuner,",
    )
    state = start(run.host, run.config.optimize, "exact", ())
    rng = random.Random(0)
    assert [pick(run.host, run.config.optimize, state, number, rng) for number in range(3)] == order


def test_trained_local_rewards_rank_as_the_exact_ones(tmp_path: Path) -> None:
    system = enumerable_system(4)
    groups: list[Group] = []
    for values in itertools.product(*(values_of(system, name) for name in system.tunable[:2])):
        configuration = system.default_configuration()
        for name, value in zip(system.tunable, values, strict=False):
            configuration = configuration.replace(name, value)
        traces = run_many(system, [Job(configuration, example, 0) for example in EXAMPLES], concurrency=4)
        runs = list(zip(EXAMPLES, traces, strict=True))
        tries = standard_tries(system, configuration, "tuner", runs, CollectConfig(samples=0, other_values=4), seed=0)
        groups += collect(system, configuration, tries, rollouts=1, seed=0, concurrency=4, progress=QUIET)
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


def test_inputs_come_last_once_they_were_collected_whatever_their_answers_were(tmp_path: Path) -> None:
    """Otherwise inputs on which all answers were alike would take the labels, and labels would be no random draw."""
    system = enumerable_system(2)
    run = make_run(system, tmp_path, seed=2, mode="improved", engine=ExactRewards(system, tmp_path), iterations=1)
    alike = Group("writer", EXAMPLES[0].id, EXAMPLES[0].inputs, (Candidate({"word": "ape"}, "current", (0.5,)),), "")
    with run.host.ledger.limit():
        state = start(run.host, run.config.optimize, "exact", (alike,))
        assert not state.evidence  # nothing to learn, or to show
        for number in range(4):
            inputs = training_inputs(run.host, run.config.optimize, state, "writer", number)
            assert inputs[-1] == EXAMPLES[0] and len(inputs) == 3
        raced = iterate(run.host, run.device, run.config, state, 0)
    run.tape.close()
    assert any(len(ids) == 3 for ids in raced.learned.values())


@pytest.mark.parametrize("known", [True, False])
def test_groups_that_a_local_reward_has_not_seen_give_its_weight_from_the_first_race_on(
    tmp_path: Path, known: bool
) -> None:
    """Those of another configuration do not; a change that is accepted ends what was known."""
    system = enumerable_system(5)
    configuration = system.default_configuration().digest if known else "another"
    rng = random.Random(0)
    rows = [[rng.random() for _ in range(3)] for _ in range(20)]
    flat = (0.0, 0.0, 0.0)
    groups = [ScoredGroup(configuration, f"g{index}", row, row, flat, flat) for index, row in enumerate(rows)]

    class Knowing(ExactRewards):
        def held_out(self, name: str) -> dict[str, Any]:
            return dict.fromkeys(system.tunable, groups)

    engine = Knowing(system, tmp_path)
    run = make_run(
        system, tmp_path, seed=5, mode="improved", engine=engine, iterations=1, labels=1, order="writer", rounds=1
    )
    state = search(run)
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    [race] = [event for event in events if event["event"] == "race"]
    assert (race["weight"] > 0) == known
    assert set(state.known) == (set(system.tunable) if known and not state.accepted else set())
