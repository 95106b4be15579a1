"""The front door: optimise, load and call a program from Python."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import DataConfig, Dataset, deal
from optimas_jax.benchmarks.modules import Benchmark, SystemConfig
from optimas_jax.benchmarks.tables import SHARES, examples_of, read_table, sizes_of
from optimas_jax.core import event_loop
from optimas_jax.core.component import ComponentFailure
from optimas_jax.core.progress import Progress
from optimas_jax.core.scoring import name_of
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome, freeze, thaw
from optimas_jax.core.values import Configuration
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.ledger import Budget
from optimas_jax.loop.config import RunConfig, overridden
from optimas_jax.loop.journal import BEST, config_json, load_best
from optimas_jax.presets import EMBEDDED_MODEL, local
from optimas_jax.programs.plain import from_fields
from optimas_jax.programs.program import OUTPUT, Program
from optimas_jax.programs.program import program as declare


def optimize(
    program: Program | Callable[..., Any],
    metric: Callable[..., Any],
    data: Any,
    *,
    model: str | LanguageModel | None = None,
    proposer: str | LanguageModel | None = None,
    budget: Budget | None = None,
    split: Sequence[float] = SHARES,
    workdir: str | Path | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Improves a program's components by its metric; the same call with the same ``workdir`` resumes.

    Args:
      program: function that calls components (``program``).
      metric: score of what the program returned, higher is better: a function of ``(example, outputs)``, or of what its
        arguments name (``core.scoring``). It returns a number, a number and a text that says why, or a ``Score``.
      data: rows with what the program reads and what the metric compares with (``benchmarks.tables.read_table``).
      model: that answers for ``prompt`` components: a model spec, ``openai:NAME`` or ``anthropic:NAME``; by default the
        embedded SmolLM2.
      proposer: that writes instructions; by default ``model``.
      budget: the most that all completions may cost.
      split: shares of train, validation, confirmation and test.
      workdir: folder of the run; by default ``runs/NAME``.
      seed: names all randomness of the search and of the split.
      config: other settings by their path, such as ``{"optimize.iterations": 8}``.
      progress: receives lines and bars; by default the console.

    Raises:
      ValueError: for data, a program or settings that cannot be used, before anything is paid for.
      StopRun: with a message for the user; what was paid for is kept.
    """
    from optimas_jax.loop.stages import run_stages
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.report.run import report_run

    console = ConsoleProgress()
    progress = progress or console
    declared = program if isinstance(program, Program) else declare(program)
    rows = read_table(data)
    inputs = declared.inputs_of(rows[0])
    examples, repeated = examples_of(rows, inputs)
    if repeated:
        progress.line(f"{repeated} rows repeat the inputs of an earlier row and are left out")
    sizes = sizes_of(len(examples), split)

    def load_data(settings: DataConfig) -> Dataset:
        return Dataset(deal(examples, settings), origin=f"{len(rows)} rows")

    def build(dataset: Dataset, settings: SystemConfig) -> System:
        return declared.system(metric, inputs, settings.language_model)

    benchmark = Benchmark(name_of(metric), load_data, build)
    answers = language_model(model)
    base = local(
        declared.name, SystemConfig(answers), dataclasses.replace(DataConfig(seed=seed), **sizes), variant="program"
    )
    base = dataclasses.replace(
        base,
        seed=seed,
        proposer=answers if proposer is None else language_model(proposer),
        budget=budget or Budget(),
        optimize=dataclasses.replace(base.optimize, iterations=max(4, 2 * len(declared.components))),
    )
    resolved = overridden(base, config or {})
    folder = Path(workdir or f"runs/{declared.name}")
    run_stages(resolved, folder, "all", progress, benchmark=benchmark)
    if progress is console:
        report_run(folder, console)
    return open_run(folder, declared)


def language_model(model: str | LanguageModel | None) -> LanguageModel:
    """A language model by its spec; by default the embedded one."""
    if isinstance(model, LanguageModel):
        return model
    return EMBEDDED_MODEL if model is None else LanguageModel(model)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run found, read from its folder.

    Attributes:
      folder: of the run.
      results: ``results.json``.
      best: the optimised program.
    """

    folder: Path
    results: Mapping[str, Any]
    best: Optimized

    @property
    def gain(self) -> float:
        """Mean gain of the metric on the test split."""
        return self.results["gain"]["mean"]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the gain."""
        low, high = self.results["gain"]["ci95"]
        return low, high

    @property
    def confirmed(self) -> bool:
        """Whether the change was confirmed on examples that the search has not seen."""
        return bool((self.results["confirmed"] or {}).get("changes"))

    def __repr__(self) -> str:
        before, after = (self.results[name]["mean"] for name in ("baseline", "optimized"))
        low, high = self.interval
        return (
            f"Result({self.results['metric']} {before:.3f} -> {after:.3f}, gain {self.gain:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] on {self.results['n']} examples, "
            f"{'confirmed' if self.confirmed else 'not confirmed'}; {self.folder})"
        )


def open_run(folder: str | Path, program: Program | Callable[..., Any]) -> Result:
    """The result of a finished run.

    Raises:
      FileNotFoundError: it has no ``results.json``.
    """
    folder = Path(folder)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return Result(folder, results, load(folder / BEST, program))


@dataclasses.dataclass(frozen=True)
class Optimized:
    """A program with a saved configuration. Called with the program's arguments it returns what the program returns: on
    an event loop an awaitable, elsewhere the result itself.

    Attributes:
      configuration: value of each tuned component.
      system: the program as a system.
      returns: type of what the program returns, if it is a dataclass or a pydantic model.
    """

    configuration: Configuration
    system: System
    returns: Any = None
    seed: int = 0

    def __getitem__(self, name: str) -> Any:
        """The value of a component: ``.instruction`` and ``.demos`` of a prompt, ``["value"]`` of a setting."""
        if name not in self.configuration:
            raise KeyError(f"no component {name!r}; tuned are {', '.join(self.configuration)}")
        return self.configuration[name]

    def __call__(self, **inputs: Any) -> Any:
        """Runs the program on one input; needs neither a metric nor gold fields.

        Raises:
          ComponentFailure: a component failed, and the program did not catch it.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return event_loop.run(self._run(inputs))
        return self._run(inputs)

    async def _run(self, inputs: Mapping[str, Any]) -> Any:
        example = Example("", freeze(inputs), freeze({}), "")
        system = dataclasses.replace(self.system, input_fields=tuple(inputs))
        trace = await system.run(self.configuration, example, self.seed)
        if trace.outcome is not Outcome.OK:
            raise ComponentFailure(trace.outcome, next((call.detail for call in trace.calls if call.detail), ""))
        return from_fields(OUTPUT, thaw(trace.outputs), self.returns)


def load(
    folder: str | Path, program: Program | Callable[..., Any], *, model: str | LanguageModel | None = None
) -> Optimized:
    """A program with the configuration of a ``best/`` folder.

    Args:
      program: the one that was optimised; its components are found by their names.
      model: in place of the one that the run had.

    Raises:
      FolderError: the folder holds no configuration.
      ValueError: a component of it is none of the program's.
    """
    from optimas_jax.engine.pool import Engines
    from optimas_jax.loop.completers import make_completer
    from optimas_jax.report.console import ConsoleProgress

    folder = Path(folder)
    configuration = load_best(folder)
    declared = program if isinstance(program, Program) else declare(program)
    saved = config_json(folder.parent)
    answers = language_model(model)
    if model is None and saved is not None:
        answers = LanguageModel(**saved["system"]["language_model"])
    system = declared.system(lambda outputs: 0.0, (), answers)
    system.check(configuration)
    config: RunConfig = local(declared.name, SystemConfig(answers), DataConfig())
    quiet = ConsoleProgress(quiet=True)
    engines = Engines(config.mesh, quiet)
    completer = make_completer(config, folder, quiet.line, engines.sampler)
    return Optimized(configuration, system.using(completer), declared.returns, 0 if saved is None else saved["seed"])
