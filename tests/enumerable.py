"""A system small enough to enumerate, its exact local rewards, and runs of it without a model."""

from __future__ import annotations

import dataclasses
import io
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fakes import ScriptedCompleter
from rich.console import Console
from runs import run_config

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.core.component import Component, RunContext
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.system import Meter, System
from optimas_jax.core.types import Call, Example, Group, freeze
from optimas_jax.core.values import Choice, Configuration, Grid, Hyperparameters, Models, Prompt, Value
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.config import LossConfig
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.budget import search_limit
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Device, Host, Run
from optimas_jax.loop.folder.record import begin
from optimas_jax.loop.iteration import optimize
from optimas_jax.loop.journal import RunFolder, load_best
from optimas_jax.loop.state import State
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.text import TextGroup

INSTRUCTIONS = ("red", "green", "blue")
MODEL = LanguageModel("scripted", style="text", max_tokens=8)
QUIET = ConsoleProgress(Console(file=io.StringIO()))


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

    @property
    def trainer(self) -> ExactRewards:
        return self

    @property
    def scorer(self) -> ExactRewards:
        return self

    def train(self, *arguments: Any, **settings: Any) -> tuple[str, dict[str, Any]]:
        return "exact", {"history": []}

    def held_out(self, name: str) -> dict[str, Any]:
        return {}

    def logliks(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        return [[0.0 for _ in group.candidates] for group in groups]

    def scores(self, name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        best = self._workdir / "best"
        configuration = load_best(best) if best.exists() else self._system.default_configuration()
        return [[self._score(configuration, group, text) for text in group.candidates] for group in groups]

    def _score(self, configuration: Configuration, group: TextGroup, candidate: str) -> float:
        fields = dict(line.split(": ", 1) for line in f"{group.prefix}{candidate}".splitlines())
        example = next(e for e in EXAMPLES if e.id == fields["Q"])
        order = list(self._system.order)
        known, given = dict(example.inputs), {}
        for name in order[: order.index(group.component) + 1]:
            component = self._system.by_name[name]
            outputs = {field: fields.get(field.upper(), "") for field in component.outputs}
            call = Call(name, freeze({field: known[field] for field in component.inputs}), outputs)
            given[call.key] = call
            known |= outputs
        return run_many(self._system, [Job(configuration, example, 0, given)], concurrency=1)[0].score


def make_run(
    system: System,
    workdir: Path,
    *,
    seed: int,
    mode: str,
    engine: Any,
    iterations: int,
    components: tuple[str, ...] = (),
    **settings: Any,
) -> Run:
    effort = {"inputs": len(EXAMPLES), "instructions": 8, "demo_sets": 0, "gate_top": 1, "per_instance": "never"}
    effort |= {"fewest_groups": 0}  # the exact local reward needs no groups
    config = run_config(
        seed=seed,
        proposer=MODEL,
        collect=CollectConfig(samples=0, other_values=4),
        optimize=getattr(OptimizeConfig, mode)(**{"iterations": iterations, **effort, **settings}),
    )
    tape, ledger = Tape(workdir / "tape.sqlite"), Ledger()
    completer = TapedCompleter(tape, ledger, system.completer)
    splits = dict.fromkeys(("train", "val", "test"), EXAMPLES)
    host = Host(
        system=dataclasses.replace(system, completer=completer, meter=Meter()),
        completer=completer,
        splits=splits,
        components=components or system.tunable,
        folder=RunFolder(workdir, config),
        ledger=ledger,
        progress=QUIET,
        seed=seed,
        concurrency=config.concurrency,
        max_tokens=config.optimize.max_tokens,
    )
    engines = Engines(MeshConfig(), QUIET)
    return Run(
        config,
        host,
        Device(engine, None),
        Dataset(splits),
        engines,
        tape,
        find_benchmark(config.benchmark),
        begin(host.folder, ledger, tape, engines, "a test"),
    )


def search(run: Run, reward: str = "exact", groups: Sequence[Group] = ()) -> State:
    """The whole search of a run, whose folder is closed then."""
    with search_limit(run.host, "optimize"), run.host.ledger.phase("optimize"):
        state = optimize(run.host, run.device, run.config, reward, groups)
    run.tape.close()
    run.host.folder.close()
    return state


def mean_score(system: System, configuration: Configuration) -> float:
    traces = run_many(system, [Job(configuration, example, 0) for example in EXAMPLES], concurrency=1)
    return statistics.fmean(trace.score for trace in traces)
