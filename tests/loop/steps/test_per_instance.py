"""The choice of a model for the input at hand, from groups to the saved configuration: better than the best single
model where that depends on the input, and as good where it does not."""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
from pathlib import Path

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from runs import run_config

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.system import Meter, System
from optimas_jax.core.types import Example, StopRun, derive_seed
from optimas_jax.core.values import Choice, Configuration, Models, PerInstance
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.component import LanguageModel, llm_component, model_selector
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig
from optimas_jax.loop.context import Device, Host, Run
from optimas_jax.loop.folder.record import begin
from optimas_jax.loop.iteration import optimize
from optimas_jax.loop.journal import CHECKPOINTS, RunFolder, load_best
from optimas_jax.loop.local_rewards import collect_offline, train_first
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.engine import reward_engine
from optimas_jax.rewards.scorer import InstanceScorer

QUIET = ConsoleProgress(Console(file=io.StringIO()))
KINDS = ("add", "rhyme")
MODELS = ("counter", "poet")
REWARD = RewardConfig("random:0", lora=LoraConfig(rank=8, alpha=16.0), learning_rate=3e-3, epochs=8)


def examples(split: str, count: int) -> tuple[Example, ...]:
    rows = []
    for index in range(count):
        kind, number = KINDS[index % 2], derive_seed(split, index) % 900
        rows.append(Example(f"{split}{index}", {"q": f"{kind} {number}"}, {"a": f"right {number}"}, split, kind))
    return tuple(rows)


def routed_system(*, depends: bool) -> System:
    """router -> writer. A question is answered rightly by the model for its kind; or, if nothing depends on the input,
    by the poet alone."""

    def answer(request: CompletionRequest) -> str:
        kind, number = request.messages[0].content.splitlines()[-2].removeprefix("Q: ").split()
        able = MODELS[KINDS.index(kind)] if depends else "poet"
        return f"{'right' if request.model == able else 'wrong'} {number}"

    router = model_selector(
        name="router", description="Pick a model.", inputs=("q",), output="model", models=Models(MODELS)
    )
    writer = llm_component(
        name="writer",
        description="Answer.",
        inputs=("q",),
        output="a",
        instruction="Answer.",
        language_model=LanguageModel("unused", style="text", max_tokens=8),
        model_from="model",
    )
    return System(
        components=(router, writer),
        input_fields=("q",),
        output_fields=("a",),
        metric=lambda outputs, gold: float(outputs["a"] == gold["a"]),
        completer=ScriptedCompleter(answer),
    )


def make_run(system: System, workdir: Path, **settings) -> Run:
    config = run_config(
        proposer=LanguageModel("unused", style="text", max_tokens=8),
        reward=REWARD,
        offline=OfflineConfig(inputs=24, groups=24, stop=0.0, report=0.35),
        collect=CollectConfig(samples=0, other_values=2),
        optimize=OptimizeConfig(**{"components": "router", "iterations": 2, "inputs": 8, "demo_sets": 0, **settings}),
    )
    folder = RunFolder(workdir, config)
    tape, ledger = Tape(workdir / "tape.sqlite"), Ledger()
    checkpoints = CheckpointStore(workdir / CHECKPOINTS)
    engines = Engines(MeshConfig(data=1), QUIET)
    engine = reward_engine(REWARD, system.tunable, engines, tape, checkpoints, QUIET)
    completer = TapedCompleter(tape, ledger, system.completer)
    data = Dataset({"train": examples("train", 24), "val": examples("val", 12), "test": examples("test", 20)})
    scorer = InstanceScorer(engine.scorer, system, config.seed)
    host = Host(
        system=dataclasses.replace(system, completer=completer, scorer=scorer, meter=Meter()),
        completer=completer,
        splits=data.splits,
        components=("router",),
        folder=folder,
        ledger=ledger,
        progress=QUIET,
        seed=config.seed,
        concurrency=config.concurrency,
    )
    return Run(
        config, host, Device(engine, None), data, engines, tape, None, begin(folder, ledger, tape, engines, "a test")
    )


def tuned(run: Run) -> Configuration:
    groups = collect_offline(run.host, run.config).groups
    reward, _ = train_first(run.host, run.device, run.config, groups)
    return optimize(run.host, run.device, run.config, reward, groups).configuration


def mean_score(run: Run, configuration: Configuration) -> float:
    jobs = [Job(configuration, example, 0) for example in run.host.splits["test"]]
    return statistics.fmean(trace.score for trace in run_many(run.host.system, jobs, concurrency=8))


def best_single(run: Run) -> float:
    default = run.host.system.default_configuration()
    return max(mean_score(run, default.replace("router", Choice(name))) for name in MODELS)


@pytest.fixture(scope="module")
def depending(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Configuration]:
    run = make_run(routed_system(depends=True), tmp_path_factory.mktemp("depending"))
    return run, tuned(run)


def test_it_beats_the_best_single_model_where_that_depends_on_the_input(depending) -> None:
    run, configuration = depending
    assert isinstance(configuration["router"], PerInstance)
    assert best_single(run) == 0.5
    assert mean_score(run, configuration) == 1.0


@pytest.mark.long
def test_it_equals_the_best_single_model_where_it_does_not(tmp_path: Path) -> None:
    run = make_run(routed_system(depends=False), tmp_path)
    configuration = tuned(run)
    assert mean_score(run, run.host.system.default_configuration()) == 0.0
    assert mean_score(run, configuration) == best_single(run) == 1.0
    assert configuration["router"] == Choice("poet")  # which makes the same outputs without asking a local reward


def test_choices_do_not_depend_on_how_many_run_at_once(depending) -> None:
    run, configuration = depending
    jobs = [Job(configuration, example, 0) for example in run.host.splits["test"]]
    assert run_many(run.host.system, jobs, concurrency=1) == run_many(run.host.system, jobs, concurrency=20)


def test_sampling_prefers_the_better_model_and_follows_the_seed(depending) -> None:
    run, configuration = depending
    sampled = configuration.replace("router", dataclasses.replace(configuration["router"], mode="sample"))
    jobs = [Job(sampled, example, seed) for example in run.host.splits["test"] for seed in range(20)]
    traces = run_many(run.host.system, jobs, concurrency=20)
    assert best_single(run) < statistics.fmean(trace.score for trace in traces) < 1.0
    assert run_many(run.host.system, jobs, concurrency=1) == traces


def test_the_saved_configuration_carries_its_local_reward(depending, tmp_path: Path) -> None:
    run, configuration = depending
    best = run.host.folder.path / "best"
    assert load_best(best) == configuration
    other = make_run(routed_system(depends=True), tmp_path / "other")
    with pytest.raises(StopRun, match=r"no local reward '[0-9a-f]+' in .*evaluate\.folder"):
        mean_score(other, configuration)
    other.host.folder.take_parts(configuration, best)
    assert mean_score(other, configuration) == 1.0


def test_a_local_reward_of_another_backbone_is_refused(depending) -> None:
    run, configuration = depending
    changed = dataclasses.replace(REWARD, lora=dataclasses.replace(REWARD.lora, rank=4))
    engine = reward_engine(
        changed,
        run.host.system.tunable,
        Engines(MeshConfig(data=1), QUIET),
        run.tape,
        CheckpointStore(run.host.folder.path / CHECKPOINTS),
        QUIET,
    )
    with pytest.raises(StopRun, match=r"was trained as .*'rank': 8.*make it .*'rank': 4"):
        engine.scorer.check(configuration["router"].reward)


def test_every_candidate_of_best_of_n_is_paid_for_and_counted(tmp_path: Path) -> None:
    run = make_run(routed_system(depends=True), tmp_path)
    groups = collect_offline(run.host, run.config).groups
    reward, _ = train_first(run.host, run.device, run.config, groups)
    many = PerInstance((run.host.system.by_name["writer"].default,), reward, samples=4)
    before = run.host.ledger.to_json()["setup"]["writer"]["calls"]
    run.host.system.meter.reset()
    configuration = run.host.system.default_configuration().replace("writer", many)
    run_many(run.host.system, [Job(configuration, run.host.splits["test"][0], 0)], concurrency=1)
    assert run.host.ledger.to_json()["setup"]["writer"]["calls"] == before + 4
    assert run.host.system.meter == Meter(runs=1, executions=5)


def test_the_journal_has_a_curve_of_score_against_cost(depending) -> None:
    run, _ = depending
    events = [json.loads(line) for line in (run.host.folder.path / "journal.jsonl").read_text().splitlines()]
    curve = [event for event in events if event["event"] == "curve"]
    assert [point["at"] for point in curve] == ["start", "accept", "iteration", "iteration"]
    for name in ("tokens", "calls", "system_runs", "component_calls", "seconds"):
        amounts = [point[name] for point in curve]
        assert amounts == sorted(amounts), name
    assert curve[0]["val_score"] == 0.5 and curve[-1]["val_score"] == 1.0
