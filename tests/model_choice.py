"""A system that chooses among three models, each right on more examples and dearer than the one before; whole runs of
it, whose points are known by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakes import ScriptedCompleter
from runs import run_config

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.benchmarks.modules import Benchmark
from optimas_jax.core.cost import Cost
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.values import Models
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.component import LanguageModel, llm_component, model_selector
from optimas_jax.loop.config import EvaluateConfig, OfflineConfig, OptimizeConfig, RunConfig, overridden
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.search.gate import GateConfig

COSTS = {"small": Cost(20, 0.001, 0.5), "medium": Cost(50, 0.004, 1.0), "large": Cost(400, 0.03, 4.0)}
SIZES = {"train": 16, "val": 16, "confirm": 64, "test": 16}
RIGHT = {"small": 2, "medium": 3, "large": 4}  # of every four examples
SCORES = {name: right / 4 for name, right in RIGHT.items()}


def examples(split: str, count: int) -> tuple[Example, ...]:
    return tuple(Example(f"{split}{i}", {"q": f"{split} {i}"}, {"a": f"right {i}"}, split) for i in range(count))


def routed(costs: Mapping[str, Cost] = COSTS) -> System:
    """router -> writer."""

    def answer(request: CompletionRequest) -> Completion:
        number = int(request.messages[0].content.splitlines()[-2].split()[-1])
        word = "right" if number % 4 < RIGHT[request.model] else "wrong"
        cost = costs[request.model]
        return Completion(f"{word} {number}", Outcome.OK, cost.tokens - 4, 4, cost.seconds, cost.usd)

    router = model_selector(
        name="router", description="Pick a model.", inputs=("q",), output="model", models=Models(tuple(COSTS))
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


def choice_config(**objective: Any) -> RunConfig:
    """Labels alone rank, and the gate compares sums: what it decides can be computed by hand."""
    base = run_config(
        proposer=LanguageModel("unused", style="text", max_tokens=8),
        offline=OfflineConfig(groups=0),
        optimize=OptimizeConfig(
            components="router",
            iterations=3,
            inputs=8,
            labels=8,
            rounds=1,
            score="off",
            gate=GateConfig("strict"),
            fewest_groups=0,
        ),
        evaluate=EvaluateConfig(changes=False),
    )
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, **SIZES))
    return overridden(base, {f"optimize.objective.{name}": value for name, value in objective.items()})


def run_choice(
    workdir: Path, system: System | None = None, progress: Any = None, **objective: Any
) -> tuple[ScriptedCompleter, dict[str, Any]]:
    """A whole run; returns the model that answered, and the results."""
    system = system or routed()
    splits = {split: examples(split, count) for split, count in SIZES.items()}
    benchmark = Benchmark("exact", lambda settings: Dataset(splits), lambda dataset, settings: system)
    progress = progress or ConsoleProgress(quiet=True)
    run_stages(choice_config(**objective), workdir, "all", progress, system.completer, benchmark=benchmark)
    return system.completer, json.loads((workdir / "results.json").read_text())


def names(results: Mapping[str, Any]) -> list[str]:
    """The models that were accepted, in order."""
    return [change["value"]["name"] for change in results["accepted"]]
