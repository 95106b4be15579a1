"""The host loop on systems small enough to enumerate (paper, Theorem 4.2)."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from runs import run_config

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.core.system import Component, Job, Meter, RunContext, System, run_many
from optimas_jax.core.types import Example, Group
from optimas_jax.core.values import (
    Choice,
    Configuration,
    Grid,
    Hyperparameters,
    Models,
    Prompt,
    Value,
    value_digest,
    value_from_json,
)
from optimas_jax.learn.checkpoint import CheckpointStore
from optimas_jax.learn.config import LossConfig
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.llm.ledger import Ledger
from optimas_jax.llm.tape import Tape, TapedCompleter
from optimas_jax.loop.collect import CollectConfig, collect
from optimas_jax.loop.config import ConfigError, OptimizeConfig
from optimas_jax.loop.cost import OutOfTokens, read_curve
from optimas_jax.loop.engines import Engines
from optimas_jax.loop.journal import RunFolder, load_best
from optimas_jax.loop.local_reward import RewardEngine, TextGroup, text_group
from optimas_jax.loop.optimize import optimize
from optimas_jax.loop.progress import Progress
from optimas_jax.loop.run import Run, build_run
from optimas_jax.loop.train_config import RewardConfig
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig

INSTRUCTIONS = ("red", "green", "blue")
MODEL = LanguageModel("scripted", style="text", max_tokens=8)
QUIET = Progress(Console(file=io.StringIO()))


def enumerable_system(seed: int) -> System:
    """prompt -> model -> grid, every output one of four words, rewards drawn at random. Every component sees ``q``."""
    rng = random.Random(seed)
    words = ("ape", "bee", "cat", "dog")
    first = {(q, text): rng.choice(words) for q in QUESTIONS for text in INSTRUCTIONS}
    second = {(q, a, name): rng.choice(words) for q in QUESTIONS for a in words for name in ("small", "large")}
    third = {(q, b, x, y): rng.choice(words) for q in QUESTIONS for b in words for x in (1, 2) for y in (1, 2)}
    rewards = {(q, c): rng.choice((0.0, 0.2, 0.5, 0.7, 1.0)) for q in QUESTIONS for c in words}

    def answer(request: CompletionRequest) -> str:
        if request.role == "proposer":
            return INSTRUCTIONS[request.seed % 3]
        lines = request.messages[0].content.splitlines()
        return first[next(line[3:] for line in lines if line.startswith("Q: ")), lines[0]]

    async def route(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Choice)
        return {"b": second[fields["q"], fields["a"], value.name]}

    async def tune(fields: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Hyperparameters)
        return {"c": third[fields["q"], fields["b"], value["x"], value["y"]]}

    writer = llm_component(
        name="writer", description="Write.", inputs=("q",), output="a", instruction="red", language_model=MODEL
    )
    router = Component("router", "Route.", ("q", "a"), ("b",), route, Models(("small", "large")), Choice("small"))
    grid = Grid({"x": (1, 2), "y": (1, 2)})
    tuner = Component("tuner", "Tune.", ("q", "b"), ("c",), tune, grid, Hyperparameters({"x": 1, "y": 1}))
    return System(
        components=(writer, router, tuner),
        input_fields=("q",),
        output_fields=("c",),
        metric=lambda outputs, gold: rewards[gold["q"], outputs["c"]],
        completer=ScriptedCompleter(answer),
    )


QUESTIONS = ("one", "two", "three")
EXAMPLES = tuple(Example(q, {"q": q}, {"q": q}, "train") for q in QUESTIONS)


def values_of(system: System, name: str) -> list[Value]:
    space = system.by_name[name].space
    return list(space.values()) if isinstance(space, Grid | Models) else [Prompt(text) for text in INSTRUCTIONS]


class ExactRewards:
    """Local rewards as the paper defines their optimum: the global reward that a candidate leads to, computed by
    running what follows under the configuration in use. Stands in for ``RewardEngine``."""

    config = RewardConfig("exact", loss=LossConfig())

    def __init__(self, system: System, workdir: Path):
        self._system, self._workdir = system, workdir

    def train(self, *arguments: Any, **settings: Any) -> tuple[str, dict[str, Any]]:
        return "exact", {"history": []}

    def scores(self, name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        best = self._workdir / "best"
        configuration = load_best(best) if best.exists() else self._system.default_configuration()
        return [[self._score(configuration, group, text) for text in group.candidates] for group in groups]

    def _score(self, configuration: Configuration, group: TextGroup, candidate: str) -> float:
        fields = dict(line.split(": ", 1) for line in f"{group.prefix}{candidate}".splitlines())
        example = next(e for e in EXAMPLES if e.id == fields["Q"])
        order = list(self._system.order)
        before = order[: order.index(group.component) + 1]
        given = {
            name: {self._system.by_name[name].outputs[0]: fields.get(self._system.by_name[name].outputs[0].upper(), "")}
            for name in before
        }
        return run_many(self._system, [Job(configuration, example, 0, given)], concurrency=1)[0].score


def make_run(
    system: System, workdir: Path, *, seed: int, mode: str, engine: Any, iterations: int, **settings: Any
) -> Run:
    search = {"inputs": len(EXAMPLES), "instructions": 8, "demo_sets": 0, "gate_top": 1, "per_instance": "never"}
    config = run_config(
        seed=seed,
        proposer=MODEL,
        collect=CollectConfig(samples=0, values=4),
        optimize=OptimizeConfig(**{"mode": mode, "iterations": iterations, **search, **settings}),
    )
    tape, ledger = Tape(workdir / "tape.sqlite"), Ledger()
    completer = TapedCompleter(tape, ledger, system.completer)
    return Run(
        config=config,
        folder=RunFolder(workdir, config),
        system=dataclasses.replace(system, completer=completer, meter=Meter()),
        completer=completer,
        data=Dataset({"train": EXAMPLES, "val": EXAMPLES, "test": EXAMPLES}),
        engine=engine,
        policies=None,
        tape=tape,
        ledger=ledger,
        progress=QUIET,
        components=system.tunable,
        started=0.0,
    )


def mean_score(system: System, configuration: Configuration) -> float:
    traces = run_many(system, [Job(configuration, example, 0) for example in EXAMPLES], concurrency=1)
    return statistics.fmean(trace.score for trace in traces)


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


@pytest.mark.parametrize("score", ["local", "global"])
def test_ranking_ends_within_a_block_of_the_search_s_tokens(
    tmp_path: Path, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[int] = []

    def third_look_says_stop(run: Run) -> None:
        assert run.system.meter is not None
        executed.append(run.system.meter.executions)
        if len(executed) == 3:
            raise OutOfTokens

    monkeypatch.setattr("optimas_jax.loop.rank._BLOCK", 2)
    monkeypatch.setattr("optimas_jax.loop.rank.check_tokens", third_look_says_stop)
    system = enumerable_system(2)
    run = make_run(
        system, tmp_path, seed=2, mode="improved", engine=ExactRewards(system, tmp_path), iterations=1, score=score
    )
    state = optimize(dataclasses.replace(run, components=("writer",)), "exact" if score == "local" else "", [])
    run.tape.close()
    first, second, third = executed
    most = 2 * (1 if score == "local" else len(system.components))
    assert 0 < second - first <= most and 0 < third - second <= most
    assert state.configuration == system.default_configuration()


def test_local_rewards_are_adapted_on_what_they_rank_next(tmp_path: Path) -> None:
    system = enumerable_system(2)
    engine = ExactRewards(system, tmp_path)
    run = make_run(system, tmp_path, seed=2, mode="improved", engine=engine, iterations=1, adapt="every")
    state = optimize(dataclasses.replace(run, components=("writer",)), "exact", [])
    run.tape.close()
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    proposed = [value_from_json(event["value"]) for event in events if event["event"] == "proposal"]
    sources = {candidate.source for group in state.groups for candidate in group.candidates}
    assert proposed and {f"value:{value_digest(value)}" for value in proposed} == sources - {"current"}
    assert [event["event"] for event in events].index("adaptation") < [e["event"] for e in events].index("proposal")


class WrongRewards(ExactRewards):
    """Local rewards that prefer what is worse."""

    def scores(self, name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        return [[-score for score in row] for row in super().scores(name, groups)]


@pytest.mark.parametrize(("component", "corrected"), [("tuner", True), ("router", False)])
def test_rewards_of_the_last_component_are_known_and_correct_its_local_reward(
    tmp_path: Path, component: str, corrected: bool
) -> None:
    for seed in range(6):
        system, workdir = enumerable_system(seed), tmp_path / str(seed)
        run = make_run(
            system,
            workdir,
            seed=seed,
            mode="improved",
            engine=WrongRewards(system, workdir),
            iterations=1,
            adapt="never",
        )
        optimize(dataclasses.replace(run, components=(component,)), "exact", [])
        run.tape.close()
        before, events = (
            system.default_configuration(),
            map(json.loads, (workdir / "journal.jsonl").read_text().splitlines()),
        )
        gains = [
            (event["expected_gain"], mean_score(system, before.replace(component, value_from_json(event["value"]))))
            for event in events
            if event["event"] == "proposal"
        ]
        base = mean_score(system, before)
        assert all((expected > 0) == ((score > base) == corrected) for expected, score in gains if score != base)


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
    monkeypatch.setattr("optimas_jax.loop.optimize._iterate", lambda run, config, state, iteration: state)
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
    run = build_run(run_config(system=one), tmp_path / "all", Progress(Console(file=said, width=300)))
    run.tape.close()
    assert "context_retriever" not in run.components and len(run.components) == 4
    assert "context_retriever stays as it is, which has one value" in said.getvalue()


def test_proposals_that_change_no_output_are_dropped(tmp_path: Path) -> None:
    system = enumerable_system(0)
    run = make_run(system, tmp_path, seed=0, mode="improved", engine=ExactRewards(system, tmp_path), iterations=12)
    optimize(run, "exact", [])
    run.tape.close()
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    proposed: dict[str, list[list[str]]] = {}
    for event in events:
        if event["event"] == "pick":
            proposed.setdefault(event["component"], []).append([])
        if event["event"] == "proposal":
            proposed[event["component"]][-1].append(json.dumps(event["value"], sort_keys=True))
    rounds = [values for picks in proposed.values() for values in picks if values]
    assert rounds and all(len(set(values)) == len(values) for values in rounds)
    # Eight answers name three instructions; the current one and what writes the same words are not proposals.
    assert all(len(values) <= 2 for values in proposed.get("writer", []))


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
    engine = RewardEngine(
        config,
        system.tunable,
        Engines(MeshConfig(data=1), QUIET),
        Tape(tmp_path / "tape.sqlite"),
        CheckpointStore(tmp_path / "checkpoints"),
        QUIET,
    )
    name, metadata = engine.train(system, None, groups, groups, epochs=config.epochs, seed=0)
    assert metadata["history"][-1]["loss"] < metadata["history"][0]["loss"]
    scores = engine.scores(
        name, [text_group(system, g.component, g.inputs, [c.outputs for c in g.candidates]) for g in groups]
    )
    for group, local in zip(groups, scores, strict=True):
        best = int(np.argmax(local))
        assert group.rewards[best] == max(group.rewards)
        for i, j in itertools.permutations(range(len(local)), 2):
            if group.rewards[i] > group.rewards[j]:
                assert local[i] > local[j]
