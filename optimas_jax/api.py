"""The Python interface: optimise and evaluate a program."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimas_jax.benchmarks.data import DataConfig, Dataset, deal
from optimas_jax.benchmarks.modules import Benchmark, SystemConfig, refuse_while_importing
from optimas_jax.benchmarks.tables import SHARES, examples_of, read_table, sizes_of
from optimas_jax.core.folder.events import Event
from optimas_jax.core.progress import Progress
from optimas_jax.core.running import event_loop
from optimas_jax.core.running.event_loop import Waiting
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.running.watch import Watch, tell_waits, why_failed
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.scoring import name_of
from optimas_jax.core.stats import mean_interval
from optimas_jax.core.system import System
from optimas_jax.core.text.frames import without_our_frames
from optimas_jax.core.types import Example, thaw
from optimas_jax.core.values import Configuration
from optimas_jax.llm.accounts.ledger import Budget, Ledger
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.config import RunConfig, overridden
from optimas_jax.loop.hooks.callbacks import checked_callbacks
from optimas_jax.loop.hooks.settings import checked_hooks
from optimas_jax.loop.journal import TAPE
from optimas_jax.presets import local
from optimas_jax.programs.program import Program
from optimas_jax.programs.program import program as declare
from optimas_jax.result import Result, open_run
from optimas_jax.saved.folder import read_saved
from optimas_jax.saved.models import completer_of, language_model, make_engines
from optimas_jax.saved.rewards import scorer_of
from optimas_jax.saved.source import record_source
from optimas_jax.saved.system import as_observed
from optimas_jax.search.hooks import Hooks

if TYPE_CHECKING:
    from optimas_jax.loop.forecast.plan import Plan


@without_our_frames
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
    start: str | Path | Mapping[str, str] = "",
    traces: str | Path | Sequence[str | Path] = (),
    config: Mapping[str, Any] | None = None,
    hooks: Hooks | None = None,
    callbacks: Sequence[Callable[[Event], Any]] = (),
    progress: Progress | None = None,
) -> Result:
    """Improves a program's components by its metric; the same call with the same ``workdir`` resumes.

    Args:
      program: function that calls components (``program``).
      metric: score of the program's outputs, higher is better: a function of ``(example, outputs)``, or of the values
        that its arguments name (``core.scoring``). It returns a number, a number and a text with the reason, or a
        ``Score``.
      data: rows with the program's inputs and the values that the metric compares with
        (``benchmarks.tables.read_table``).
      model: the model that answers for ``prompt`` components: a model spec, ``openai:NAME`` or ``anthropic:NAME``; by
        default the embedded SmolLM2.
      proposer: the model that writes instructions; by default ``model``.
      budget: the most that all completions may cost.
      split: shares of train, validation, confirmation and test.
      workdir: folder of the run; by default ``runs/NAME``.
      seed: of all randomness of the search and of the split.
      start: where the search starts: the folder of an earlier run or its ``best/``, a ``.json`` file that
        ``module.save`` of DSPy wrote, or instructions by component, as a dict or such a file (``loop.setup.start``).
      traces: files of recorded calls, with or without scores (``traces.read``): they become demonstrations and spare
        the run a part of its calls.
      config: other settings by their path, such as ``{"optimize.iterations": 8}``.
      hooks: your own steps of the search.
      callbacks: functions, plain or ``async``. Each gets every event of the run (``events``) in order, in a thread of
        its own. An exception in a callback is shown and stops nothing. A resumed run does not send events again that
        were sent before: ``events.read_events(workdir)`` has them all. Trackers are callbacks, too (``tracker``);
        TensorBoard is one unless ``config`` turns it off (``{"trackers": ""}``).
      progress: receives lines and bars; by default the console, or one table in a notebook.

    Raises:
      ValueError: for data, a program or settings that cannot be used, before anything is paid for.
      StopRun: with a message for the user; what was paid for is kept.

    Example:
      ```python
      result = oj.optimize(rag, grade, "questions.jsonl", workdir="runs/rag", budget=oj.Budget(calls=2000))
      print(result, result.best["answer"].instruction)
      result.best(question="Where is Lima?")
      ```
    """
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.report.notebook import default_progress, keep_libraries_quiet
    from optimas_jax.report.page.live import live_page
    from optimas_jax.report.run import report_run, write_report
    from optimas_jax.report.trackers.choose import with_trackers

    keep_libraries_quiet()
    from optimas_jax.loop.stages import run_stages

    shown = default_progress() if progress is None else progress
    config = {**_given(start, traces), **(config or {})}
    declared, settings, benchmark = _prepared(
        program, metric, data, model, proposer, budget, split, seed, config, shown, hooks, callbacks
    )
    folder = Path(workdir or f"runs/{declared.name}")
    listeners = with_trackers(benchmark.CALLBACKS, settings.trackers)
    benchmark = dataclasses.replace(benchmark, CALLBACKS=())  # they are among the listeners
    command = f"optimize({declared.name}, {_model_and_budget(model, budget)}...{_named(config)}) from Python"
    try:
        with live_page(shown.line) as tell_page:
            callbacks = [tell_page, *listeners]
            label = run_stages(
                settings, folder, "all", shown, benchmark=benchmark, command=command, callbacks=callbacks
            )
    except KeyboardInterrupt:
        shown.line(f"stopped; the same call resumes, and what was paid for is kept in {folder}")
        raise
    if progress is None and isinstance(shown, ConsoleProgress):
        report_run(folder, shown, label)
    else:  # a notebook shows the result itself, and a caller's own progress shows what the caller wants
        write_report(folder, label)
    return open_run(folder, declared, evaluation=label)


@without_our_frames
def plan(
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
    start: str | Path | Mapping[str, str] = "",
    traces: str | Path | Sequence[str | Path] = (),
    config: Mapping[str, Any] | None = None,
    hooks: Hooks | None = None,
    callbacks: Sequence[Callable[[Event], Any]] = (),
    devices: str = "",
    progress: Progress | None = None,
) -> Plan:
    """Forecast of what ``optimize`` with the same arguments takes: calls, tokens, dollars and seconds by step, each as
    a range. Nothing is sent or run, not even the program, and no key is needed; local models on this machine are timed
    and asked for a few answers. The plan is kept in the folder of the run, whose results show it beside actual costs.

    Args:
      program, metric, data, model, proposer, budget, split, workdir, seed, start, traces, config, hooks, callbacks: as
        in ``optimize``.
      devices: on which local models are planned: ``h100``, ``8xa100-80``, ``v5e-16``; "" for none.
      progress: receives the table of the plan; by default the console.

    Raises:
      ValueError, StopRun: as ``optimize`` before anything is paid for, except that no keys are needed.

    Example:
      ```python
      planned = oj.plan(rag, grade, "questions.jsonl", devices="h100")
      ```
    """
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.report.notebook import keep_libraries_quiet
    from optimas_jax.report.run import report_plan

    keep_libraries_quiet()
    from optimas_jax.loop.forecast.plan import plan_run

    shown = ConsoleProgress() if progress is None else progress
    config = {**_given(start, traces), **(config or {})}
    declared, settings, benchmark = _prepared(
        program, metric, data, model, proposer, budget, split, seed, config, shown, hooks, callbacks
    )
    planned = plan_run(settings, benchmark=benchmark, devices=devices, progress=shown)
    planned.save(Path(workdir or f"runs/{declared.name}"))
    if isinstance(shown, ConsoleProgress):
        report_plan(planned.to_json(), shown)
    return planned


def _model_and_budget(model: str | LanguageModel | None, budget: Budget | None) -> str:
    """Model and budget as arguments, for the run's record of its command; "" without them."""
    given = {"model": model.model if isinstance(model, LanguageModel) else model, "budget": budget}
    return "".join(f"{name}={value!r}, " for name, value in given.items() if value)


def _named(config: Mapping[str, Any]) -> str:
    """Settings in the form of a run's record of its command; "" for none."""
    return f", config={json.dumps(dict(config), ensure_ascii=False, default=str)}" if config else ""


def _given(start: str | Path | Mapping[str, str], traces: str | Path | Sequence[str | Path]) -> dict[str, Any]:
    """``start`` and ``traces`` of ``optimize`` as settings, unless they are left out; raises ``ValueError`` for a start
    that cannot be written as JSON."""
    files = [traces] if isinstance(traces, str | Path) else traces
    try:
        begin = json.dumps(dict(start), ensure_ascii=False) if isinstance(start, Mapping) else str(start)
    except TypeError as error:
        raise ValueError(f"start holds more than texts by component ({error}): give instructions as texts") from None
    settings = {"optimize.start": begin if start else "", "traces": ",".join(map(str, files))}
    return {name: value for name, value in settings.items() if value}


def _prepared(
    program: Program | Callable[..., Any],
    metric: Callable[..., Any],
    data: Any,
    model: str | LanguageModel | None,
    proposer: str | LanguageModel | None,
    budget: Budget | None,
    split: Sequence[float],
    seed: int,
    config: Mapping[str, Any] | None,
    progress: Progress,
    hooks: Hooks | None,
    callbacks: Sequence[Callable[[Event], Any]],
) -> tuple[Program, RunConfig, Benchmark]:
    """The program, the settings of its run, and the benchmark of program, metric and rows; see ``optimize``."""
    refuse_while_importing()
    if not isinstance(budget, Budget | None):
        raise ConfigError(f"budget is {budget!r}, expected a Budget, such as oj.Budget(calls=400)")
    own_hooks, listeners = checked_hooks(hooks), checked_callbacks(callbacks)
    declared = declare(program)
    inputs, examples, repeated = _examples(declared, data)
    if repeated:
        progress.line(_repeated(repeated))
    if declared.alone:
        progress.line(_ALONE.format(declared.name))
    sizes = dataclasses.replace(DataConfig(seed=seed), **sizes_of(len(examples), split))
    base = _settings(declared, sizes, language_model(model), proposer, budget or Budget())
    benchmark = dataclasses.replace(
        _benchmark(declared, metric, inputs, examples),
        on_open=functools.partial(record_source, program=program, metric=metric, local_reward=own_hooks.local_reward),
        HOOKS=own_hooks,
        CALLBACKS=listeners,
    )
    return declared, overridden(base, config or {}), benchmark


def _settings(
    program: Program, data: DataConfig, answers: LanguageModel, proposer: str | LanguageModel | None, budget: Budget
) -> RunConfig:
    """The settings of a program's run; every component has two iterations."""
    base = local(program.name, SystemConfig(answers), data, variant="program")
    return dataclasses.replace(
        base,
        seed=data.seed,
        proposer=answers if proposer is None else language_model(proposer),
        budget=budget,
        optimize=dataclasses.replace(base.optimize, iterations=max(4, 2 * len(program.components))),
    )


async def aoptimize(
    program: Program | Callable[..., Any], metric: Callable[..., Any], data: Any, **options: Any
) -> Result:
    """``optimize`` in a thread of its own, so that the caller's event loop stays free.

    Cancelling it stops the run as an interrupt does: what was paid for is kept, and the same call resumes.

    Args:
      program, metric, data, options: as in ``optimize``.

    Raises:
      ValueError, StopRun: as ``optimize``.
      asyncio.CancelledError: it was cancelled.

    Example:
      ```python
      result = await oj.aoptimize(rag, grade, "questions.jsonl", workdir="runs/rag")
      ```
    """
    from optimas_jax.report.notebook import keep_libraries_quiet

    keep_libraries_quiet()
    # An interrupt in the middle of an import would leave it half done.
    await asyncio.to_thread(importlib.import_module, "optimas_jax.loop.stages")
    return await event_loop.in_thread(optimize, program, metric, data, **options)


@without_our_frames
def benchmark(program: Program | Callable[..., Any], metric: Callable[..., Any], data: Any) -> Benchmark:
    """A program with its metric and data as a benchmark, for a configuration file (``benchmarks.modules``): it has the
    names ``METRIC``, ``load`` and ``build``.

    Args:
      program, metric, data: as in ``optimize``; ``config.data`` divides the rows.

    Raises:
      ValueError: data or a program that cannot be used.

    Example:
      ```python
      capitals = oj.benchmark(rag, grade, "questions.jsonl")
      METRIC, load, build = capitals.METRIC, capitals.load, capitals.build
      ```
    """
    declared = declare(program)
    inputs, examples, repeated = _examples(declared, data)
    return _benchmark(declared, metric, inputs, examples, repeated)


def _examples(program: Program, data: Any) -> tuple[tuple[str, ...], list[Example], int]:
    """The columns that the program reads, the rows as examples, and the number of rows that repeat another one."""
    rows = read_table(data)
    inputs = program.inputs_of(rows[0])
    return inputs, *examples_of(rows, inputs)


_ALONE = "runs of {} go one at a time (alone=True): its calls do not tell which run they belong to"


def _repeated(rows: int) -> str:
    return f"{rows} rows repeat the inputs of an earlier row and are left out"


def _benchmark(
    program: Program, metric: Callable[..., Any], inputs: Sequence[str], examples: Sequence[Example], repeated: int = 0
) -> Benchmark:
    origin = f"{len(examples)} rows" + f" ({_repeated(repeated)})" * bool(repeated)

    def load_data(settings: DataConfig) -> Dataset:
        return Dataset(deal(examples, settings), origin=origin)

    def build(dataset: Dataset, settings: SystemConfig) -> System:
        return program.system(metric, inputs, settings.language_model)

    return Benchmark(name_of(metric), load_data, build)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a program on rows.

    Attributes:
      rows: one for each example: id, inputs, gold, outputs, score, feedback, outcome, failure (why it failed).

    An evaluation is what ``evaluate`` returns; it raises nothing by itself.

    Example:
      ```python
      found = oj.evaluate(rag, grade, "questions.jsonl", best="runs/rag/best")
      print(found.mean, found.interval, [row["feedback"] for row in found.rows if row["score"] < 1])
      ```
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
        failed = [row["failure"] for row in self.rows if row["failure"]]
        words = f", {len(failed)} failed, such as by {failed[0]}" if failed else ""
        return f"Evaluation({self.mean:.3f} [{low:.3f}, {high:.3f}] on {len(self.rows)} rows{words})"


@without_our_frames
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
      model: the model that answers; by default the run's, or the embedded one.
      workdir: folder of the tape, which makes a repetition free; by default ``runs/NAME-evaluate``.

      seed: of all randomness of the runs.
      concurrency: runs at a time.

    Raises:
      ValueError: data, a program or a configuration that cannot be used, before anything is paid for.
      StopRun: with a message for the user; what was paid for is kept.

    Example:
      ```python
      print(oj.evaluate(rag, grade, "questions.jsonl"))
      print(oj.evaluate(rag, grade, "questions.jsonl", best="runs/rag/best"))
      ```
    """
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.report.notebook import keep_libraries_quiet

    keep_libraries_quiet()
    declared = declare(program)
    inputs, examples, repeated = _examples(declared, data)
    console = ConsoleProgress()
    if repeated:
        console.line(_repeated(repeated))
    if declared.alone:
        console.line(_ALONE.format(declared.name))
    folder = Path(workdir or f"runs/{declared.name}-evaluate")
    folder.mkdir(parents=True, exist_ok=True)
    configuration, answers, saved = read_saved(best, model)
    system = declared.system(metric, inputs, answers)
    system = system if saved is None else as_observed(saved, system)
    configuration = configuration or system.default_configuration()
    system.check(configuration)
    engines, settings = make_engines(), saved.settings if saved else {}
    parts = saved.folder if saved else folder  # with adapters
    with contextlib.closing(Tape(folder / TAPE)) as tape:
        taped = TapedCompleter(tape, Ledger(), completer_of(declared.name, answers, settings, parts, engines))
        scorer = scorer_of(saved, system, configuration, engines) if saved else None
        system = dataclasses.replace(system, completer=taped, scorer=scorer)
        jobs = [Job(configuration, example, seed) for example in examples]
        system = dataclasses.replace(system, watch=Watch())
        tell = functools.partial(tell_waits, system.watch, console.line)
        traces = run_many(system, jobs, concurrency=concurrency, waiting=Waiting(tell))
    rows = [
        {
            "id": example.id,
            "inputs": thaw(example.inputs),
            "gold": thaw(example.gold),
            "outputs": thaw(trace.outputs),
            "score": trace.score,
            "feedback": trace.feedback,
            "outcome": str(trace.outcome),
            "failure": why_failed(trace),
        }
        for example, trace in zip(examples, traces, strict=True)
    ]
    return Evaluation(tuple(rows))
