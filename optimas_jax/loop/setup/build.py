"""Builds the parts of a run from its configuration: checks first, then its folder, tape, ledger and engines."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.benchmarks.modules import Benchmark, find_benchmark, title
from optimas_jax.core.folder.events import Event
from optimas_jax.core.progress import Progress
from optimas_jax.core.running.watch import Watch
from optimas_jax.core.system import Meter, System
from optimas_jax.engine.pool import Engines, make_engines
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.base import Completer
from optimas_jax.llm.providers import models_named
from optimas_jax.llm.sandbox import SandboxCompleter
from optimas_jax.llm.shared import SharedCompleter
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.context import Device, Host, Run
from optimas_jax.loop.folder.bought import check_tape
from optimas_jax.loop.folder.described import describe_system
from optimas_jax.loop.folder.record import begin, close
from optimas_jax.loop.folder.recorded import check_traces
from optimas_jax.loop.hooks.callbacks import Callbacks, checked_callbacks
from optimas_jax.loop.hooks.local_reward import with_own_reward
from optimas_jax.loop.hooks.settings import hooks_of, with_hooks
from optimas_jax.loop.journal import ADAPTERS, CHECKPOINTS, TAPE, RunFolder, load_best
from optimas_jax.loop.live.board import Board, Subject, planned_steps
from optimas_jax.loop.objective import check_measurable, check_objective, is_shared, tell_noise, under_objective
from optimas_jax.loop.setup.checks import check_search, chosen_components, tell_no_labels, tell_unmetered
from optimas_jax.loop.setup.completers import check_completers, make_completer, own_prices, without_price
from optimas_jax.loop.setup.same_program import check_components, check_program
from optimas_jax.loop.setup.start import Start, data_and_system, keep, read_start
from optimas_jax.parallel.lockstep import Leader
from optimas_jax.policy.engine import PolicyEngine
from optimas_jax.policy.reinforce import reinforce_config
from optimas_jax.rewards.engine import RewardEngine, reward_engine
from optimas_jax.rewards.scorer import InstanceScorer
from optimas_jax.search.hooks import Hooks
from optimas_jax.traces.read import TraceFiles, read_traces


def build_run(
    config: RunConfig,
    workdir: Path,
    progress: Progress,
    completer: Completer | None = None,
    shared: Path | None = None,
    benchmark: ModuleType | Benchmark | None = None,
    command: str = "",
    leader: Leader | None = None,
    callbacks: Sequence[Callable[[Event], Any]] = (),
) -> Run:
    """Checks the configuration, reads the data, and puts the parts together. Loads no model.

    Args:
      completer: answers the requests of the system and of proposers; by default the servers and local engines of the
        models that they name.
      shared: folder of results that several processes share (``llm.shared``).
      benchmark: replaces the one that the configuration names.
      command: text of the command for ``run.json``; by default the command line.
      leader: tells the other processes of the run what to compute (``loop.follow``).
      callbacks: functions that get every event, after the benchmark's own.

    Raises:
      ValueError: for an unknown benchmark or component, models without a server or engine, or unusable data, before
        anything is spent.
      FolderError: for a folder of another configuration.
    """
    benchmark = benchmark or find_benchmark(config.benchmark)
    prepared = _prepare(config, workdir, progress, completer, benchmark, leader, callbacks)
    config, data, engines = prepared.config, prepared.data, prepared.engines
    with contextlib.ExitStack() as opened:
        check_components(workdir, prepared.system)
        callers = Callbacks(prepared.callbacks, prepared.board.line, config.stop_grace)
        opened.callback(callers.close)
        folder, tape = _open_folder(prepared, workdir, callers, opened)
        _check_folder(prepared, folder, tape)
        if isinstance(benchmark, Benchmark) and benchmark.on_open is not None:
            benchmark.on_open(folder.path)
        keep(folder, data, prepared.start)
        describe_system(folder, prepared.system, prepared.components)
        ledger = Ledger(config.budget, tape.usage(), own_prices(config))
        record = begin(folder, ledger, tape, engines, command)
        opened.callback(close, record)
        opened.enter_context(prepared.board.of(_subject(config, data, folder, ledger)))
        executing = _executing(prepared.completer, shared, opened)
        taped = TapedCompleter(tape, ledger, executing, callers.teller_of_calls)
        device = _make_device(prepared, folder, tape)
        host = _make_host(prepared, folder, ledger, taped, device.rewards)
        return Run(config, host, device, data, engines, tape, benchmark, record, opened.pop_all())


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """Parts of a run that are read and checked before its folder is opened.

    Attributes:
      config: its configuration, with the settings that follow from its hooks.
      hooks: the user's own steps of the search.
      callbacks: functions that get every event.
      board: shows progress, and holds or stops the run.
      engines: local models.
      completer: answers requests, without tape and ledger.
      shared_engine: see ``Host``.
      start: the saved result that the search starts from, if any.
      recorded: calls of ``config.traces``.
      data: examples by split.
      system: the system as built, without a completer.
      components: names that may be tuned.
    """

    config: RunConfig
    hooks: Hooks
    callbacks: Sequence[Callable[[Event], Any]]
    board: Board
    engines: Engines
    completer: Completer
    shared_engine: bool
    start: Start | None
    recorded: TraceFiles
    data: Dataset
    system: System
    components: tuple[str, ...]


def _prepare(
    config: RunConfig,
    workdir: Path,
    progress: Progress,
    completer: Completer | None,
    benchmark: ModuleType | Benchmark,
    leader: Leader | None,
    callbacks: Sequence[Callable[[Event], Any]],
) -> _Prepared:
    """Reads the data and checks all settings; writes nothing and sends no request."""
    hooks = hooks_of(benchmark)
    config = with_hooks(config, hooks)
    callbacks = (*checked_callbacks(getattr(benchmark, "CALLBACKS", ())), *checked_callbacks(callbacks))
    board = Board(progress)
    if config.evaluate.folder:
        load_best(Path(config.evaluate.folder))  # a missing folder is an error before anything is paid for
    engines = make_engines(config.mesh, board, leader)
    if completer is None:
        check_completers(config, workdir)
    start, recorded = read_start(config.optimize.start, config.optimize.start_names), read_traces(config.traces)
    data, system = data_and_system(benchmark, config, start)
    check_objective(config, system)
    shared_engine = completer is None and is_shared(system)
    if completer is None:
        check_measurable(config, system)
        completer = _checked_completer(config, workdir, system, board, engines)
    components = _checked_components(config, system, data, hooks, board)
    if isinstance(benchmark, Benchmark):
        tell_no_labels(config.optimize, system, data.splits["train"], board)
    return _Prepared(
        config=config,
        hooks=hooks,
        callbacks=callbacks,
        board=board,
        engines=engines,
        completer=completer,
        shared_engine=shared_engine,
        start=start,
        recorded=recorded,
        data=data,
        system=system,
        components=components,
    )


def _checked_components(
    config: RunConfig, system: System, data: Dataset, hooks: Hooks, progress: Progress
) -> tuple[str, ...]:
    """Names of the components to tune, with their search checked; warns of costs that are not limited, or noisy."""
    components = chosen_components(system, config.optimize, progress)
    gate_examples = len(data.splits["val"][: config.optimize.gate_examples or None])
    check_search(config, system, components, None if hooks.accept else gate_examples)
    tell_unmetered(config, system, progress)
    tell_noise(config, progress)
    return components


def _open_folder(
    prepared: _Prepared, workdir: Path, callers: Callbacks, opened: contextlib.ExitStack
) -> tuple[RunFolder, Tape]:
    """The run folder and its tape, which ``opened`` closes."""
    folder = RunFolder(workdir, prepared.config, callers.tell, prepared.board.follow)
    opened.callback(folder.close)
    tape = Tape(folder.path / TAPE, earlier=prepared.start and prepared.start.tape)
    opened.callback(tape.close)
    return folder, tape


def _check_folder(prepared: _Prepared, folder: RunFolder, tape: Tape) -> None:
    """Checks that the folder belongs to the same tape, recorded calls, and program."""
    check_tape(folder, tape)
    check_traces(folder, prepared.recorded)
    check_program(folder, prepared.system, prepared.data.splits, prepared.board, prepared.hooks.titles)


def _make_device(prepared: _Prepared, folder: RunFolder, tape: Tape) -> Device:
    """The parts that train and score on the devices."""
    config, engines = prepared.config, prepared.engines
    checkpoints = CheckpointStore(folder.path / CHECKPOINTS)
    rewards = reward_engine(config.reward, prepared.system.tunable, engines, tape, checkpoints, prepared.board)
    rewards = with_own_reward(rewards, prepared.hooks.local_reward, tape, config.concurrency)
    return Device(rewards, _policies(config, engines, folder, checkpoints))


def _make_host(
    prepared: _Prepared, folder: RunFolder, ledger: Ledger, taped: TapedCompleter, rewards: RewardEngine
) -> Host:
    """The parts that run the system and record its runs."""
    config, system = prepared.config, prepared.system
    scorer = InstanceScorer(rewards.scorer, system, config.seed)
    return Host(
        system=dataclasses.replace(
            system,
            completer=under_objective(config, system, taped),
            scorer=scorer,
            meter=Meter(),
            watch=Watch(system.default_configuration()),
            objective=config.optimize.objective,
        ),
        completer=taped,
        splits=prepared.data.splits,
        components=prepared.components,
        folder=folder,
        ledger=ledger,
        progress=prepared.board,
        seed=config.seed,
        concurrency=config.concurrency,
        max_tokens=config.optimize.max_tokens,
        stop_grace=config.stop_grace,
        judge=config.proposer,
        hooks=prepared.hooks,
        shared_engine=prepared.shared_engine,
        recorded=prepared.recorded,
        held=prepared.board.held,
    )


def _subject(config: RunConfig, data: Dataset, folder: RunFolder, ledger: Ledger) -> Subject:
    """What the board shows of a run."""
    finals = config.evaluate.repeats * len(data.splits[config.evaluate.split]) + len(data.splits.get("confirm", ()))
    return Subject(
        folder=folder.path,
        title=f"{title(config.benchmark)}:{config.variant}",
        ledger=ledger,
        iterations=config.optimize.iterations,
        val_runs=len(data.splits["val"][: config.optimize.gate_examples or None]),
        final_runs=2 * finals,
        plan=planned_steps(folder.path, config),
    )


def _policies(config: RunConfig, engines: Engines, folder: RunFolder, checkpoints: CheckpointStore) -> PolicyEngine:
    """Updates the weights of the tuned model; by REINFORCE where local rewards cannot choose outputs."""
    model = config.policy.model or _tuned_model(config)
    tuning = reinforce_config(config.policy) if not config.optimize.chooses else config.policy
    return PolicyEngine(tuning, model, engines, folder.path / ADAPTERS, checkpoints)


def _executing(completer: Completer, shared: Path | None, opened: contextlib.ExitStack) -> Completer:
    """The completer, which also executes programs, in a sandbox unless it does itself (an imagined model does); with
    results shared by processes, if a folder for them is given."""
    executing = completer if hasattr(completer, "execute") else SandboxCompleter(completer)
    if shared is None:
        return executing
    sharing = SharedCompleter(shared, executing)
    opened.callback(sharing.close)
    return sharing


def _checked_completer(
    config: RunConfig, workdir: Path, system: System, progress: Progress, engines: Engines
) -> Completer:
    """The servers and local engines of all models that a run may ask; warns of unknown prices."""
    choices = models_named(system)
    check_completers(config, workdir, choices)
    for spec in without_price(config, choices):
        progress.line(
            f"warning: no price of {spec} is known, and its dollars are not counted: set "
            f"config.prices to {spec}=PROMPT/COMPLETION"
        )
    return make_completer(config, workdir, progress.line, engines.sampler)


def _tuned_model(config: RunConfig) -> str:
    """The model whose weights may be tuned: the system's ``language_model``, or ""."""
    language_model = getattr(config.system, "language_model", None)
    return language_model.model if language_model is not None else ""
