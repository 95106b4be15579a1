"""The front door: optimise, load and call a program from Python."""

from __future__ import annotations

import contextlib
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
from optimas_jax.core.execution import Job, run_many
from optimas_jax.core.progress import Progress
from optimas_jax.core.schema import from_dict, to_dict
from optimas_jax.core.scoring import name_of
from optimas_jax.core.stats import mean_interval
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome, freeze, thaw
from optimas_jax.core.values import Configuration
from optimas_jax.llm.base import Completer
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.ledger import Budget, Ledger
from optimas_jax.llm.tape import Tape, TapedCompleter
from optimas_jax.loop.config import RunConfig, overridden
from optimas_jax.loop.journal import BEST, TAPE, config_json, load_best
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
    declared = declare(program)
    inputs, examples, repeated = _examples(declared, data)
    if repeated:
        (progress or console).line(f"{repeated} rows repeat the inputs of an earlier row and are left out")
    sizes = dataclasses.replace(DataConfig(seed=seed), **sizes_of(len(examples), split))
    answers = language_model(model)
    base = local(declared.name, SystemConfig(answers), sizes, variant="program")
    base = dataclasses.replace(
        base,
        seed=seed,
        proposer=answers if proposer is None else language_model(proposer),
        budget=budget or Budget(),
        optimize=dataclasses.replace(base.optimize, iterations=max(4, 2 * len(declared.components))),
    )
    folder = Path(workdir or f"runs/{declared.name}")
    run_stages(
        overridden(base, config or {}),
        folder,
        "all",
        progress or console,
        benchmark=_benchmark(declared, metric, inputs, examples),
    )
    if progress is None:
        report_run(folder, console)
    return open_run(folder, declared)


def benchmark(program: Program | Callable[..., Any], metric: Callable[..., Any], data: Any) -> Benchmark:
    """A program with its metric and data as a benchmark, for a configuration file (``benchmarks.modules``): it has the
    names ``METRIC``, ``load`` and ``build``.

    Args:
      program, metric, data: as in ``optimize``; ``config.data`` divides the rows.
    """
    declared = declare(program)
    inputs, examples, _ = _examples(declared, data)
    return _benchmark(declared, metric, inputs, examples)


def _examples(program: Program, data: Any) -> tuple[tuple[str, ...], list[Example], int]:
    """The columns that the program reads, the rows as examples, and how many rows repeat another one."""
    rows = read_table(data)
    inputs = program.inputs_of(rows[0])
    return inputs, *examples_of(rows, inputs)


def _benchmark(
    program: Program, metric: Callable[..., Any], inputs: Sequence[str], examples: Sequence[Example]
) -> Benchmark:
    def load_data(settings: DataConfig) -> Dataset:
        return Dataset(deal(examples, settings), origin=f"{len(examples)} rows")

    def build(dataset: Dataset, settings: SystemConfig) -> System:
        return program.system(metric, inputs, settings.language_model)

    return Benchmark(name_of(metric), load_data, build)


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
        # On the loop where the program's own clients live.
        run = event_loop.run_beside if event_loop.running() else event_loop.run
        return run(self._run(inputs))

    async def _run(self, inputs: Mapping[str, Any]) -> Any:
        example = Example("", freeze(inputs), freeze({}), "")
        system = dataclasses.replace(self.system, input_fields=tuple(inputs))
        trace = await system.run(self.configuration, example, self.seed)
        if trace.outcome is not Outcome.OK:
            raise ComponentFailure(trace.outcome, next((call.detail for call in trace.calls if call.detail), ""))
        return from_fields(OUTPUT, thaw(trace.outputs), self.returns)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a program on rows.

    Attributes:
      rows: one for each example: id, inputs, gold, outputs, score, feedback, outcome.
    """

    rows: tuple[Mapping[str, Any], ...]

    @property
    def mean(self) -> float:
        """Mean score; runs that failed score 0."""
        return mean_interval([row["score"] for row in self.rows])[0]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean."""
        low, high = mean_interval([row["score"] for row in self.rows])[1]
        return low, high

    def __repr__(self) -> str:
        low, high = self.interval
        return f"Evaluation({self.mean:.3f} [{low:.3f}, {high:.3f}] on {len(self.rows)} rows)"


def evaluate(
    program: Program | Callable[..., Any],
    metric: Callable[..., Any],
    data: Any,
    *,
    best: str | Path | Configuration | None = None,
    model: str | LanguageModel | None = None,
    workdir: str | Path | None = None,
    seed: int = 0,
    concurrency: int = 32,
) -> Evaluation:
    """Runs a program on all rows and scores what it returns.

    Args:
      program, metric, data: as in ``optimize``.
      best: a ``best/`` folder or its configuration; by default the program as it is declared.
      model: that answers; by default the run's, or the embedded one.
      workdir: folder of the tape, which makes a repetition free; by default ``runs/NAME-evaluate``.
    """
    declared = declare(program)
    inputs, examples, _ = _examples(declared, data)
    folder = Path(workdir or f"runs/{declared.name}-evaluate")
    folder.mkdir(parents=True, exist_ok=True)
    configuration, answers, saved = _saved(best, model)
    system = declared.system(metric, inputs, answers)
    configuration = configuration or system.default_configuration()
    system.check(configuration)
    with contextlib.closing(Tape(folder / TAPE)) as tape:
        taped = TapedCompleter(tape, Ledger(), _completer(declared.name, answers, saved, folder))
        jobs = [Job(configuration, example, seed) for example in examples]
        traces = run_many(system.using(taped), jobs, concurrency=concurrency)
    rows = [
        {
            "id": example.id,
            "inputs": thaw(example.inputs),
            "gold": thaw(example.gold),
            "outputs": thaw(trace.outputs),
            "score": trace.score,
            "feedback": trace.feedback,
            "outcome": str(trace.outcome),
        }
        for example, trace in zip(examples, traces, strict=True)
    ]
    return Evaluation(tuple(rows))


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
    folder = Path(folder)
    configuration, answers, saved = _saved(folder, model)
    assert configuration is not None  # of a folder
    declared = declare(program)
    system = declared.system(lambda outputs: 0.0, (), answers)
    system.check(configuration)
    completer = _completer(declared.name, answers, saved, folder)
    return Optimized(configuration, system.using(completer), declared.returns, saved.get("seed", 0))


def _saved(
    best: str | Path | Configuration | None, model: str | LanguageModel | None
) -> tuple[Configuration | None, LanguageModel, Mapping[str, Any]]:
    """A saved configuration, the language model that answers, and the settings of its run, where they are known."""
    if best is None or isinstance(best, Configuration):
        return best, language_model(model), {}
    folder = Path(best)
    configuration, saved = load_best(folder), config_json(folder.parent) or {}
    known = saved.get("system", {}).get("language_model")
    answers = LanguageModel(**known) if model is None and known else language_model(model)
    return configuration, answers, saved


def _completer(name: str, answers: LanguageModel, saved: Mapping[str, Any], folder: Path) -> Completer:
    """A completer for the models of a program, local or on the servers of its run; loads none yet."""
    from optimas_jax.engine.pool import Engines
    from optimas_jax.loop.completers import make_completer
    from optimas_jax.report.console import ConsoleProgress

    quiet = ConsoleProgress(quiet=True)
    config = local(name, SystemConfig(answers), DataConfig())
    servers = {part: saved[part] for part in ("server", "anthropic", "prices") if part in saved}
    config = from_dict(RunConfig, {**to_dict(config), **servers})
    return make_completer(config, folder, quiet.line, Engines(config.mesh, quiet).sampler)
