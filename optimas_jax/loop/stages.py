"""The stages of a run in their order: collect, train, optimize, evaluate. Each can be run alone on the same folder.

Stages share no state in memory: a stage reads the files of the stages before it in the run folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.modules import Benchmark, title
from optimas_jax.core.folder import events
from optimas_jax.core.progress import Progress
from optimas_jax.core.selection import OWN_REWARD, UNTRAINED
from optimas_jax.core.types import Group, StopRun
from optimas_jax.core.usage import OutOfBudget
from optimas_jax.core.values import Configuration
from optimas_jax.llm.accounts.ledger import OverBudget
from optimas_jax.llm.base import Completer
from optimas_jax.llm.providers import models_named
from optimas_jax.loop.align import align, alignment_of
from optimas_jax.loop.budget import USED, hold_final, price, run_limit, search_limit
from optimas_jax.loop.config import ALIGN, PROBE, REFRESH, STAGES, RunConfig
from optimas_jax.loop.context import Host, Run
from optimas_jax.loop.evaluate import after_each, confirm_search, measure
from optimas_jax.loop.folder.evaluations import is_own, save
from optimas_jax.loop.folder.record import finish, took
from optimas_jax.loop.folder.unfinished import leave_unfinished
from optimas_jax.loop.forecast.spent import beside_plan, note_spent
from optimas_jax.loop.hooks.command import telling
from optimas_jax.loop.iteration import optimize
from optimas_jax.loop.journal import (
    BEST,
    JOURNAL,
    OPTIMIZED,
    REFRESHED_REWARD,
    UNCONFIRMED,
    UNFINISHED,
    config_of,
    load_best,
    reward_name,
)
from optimas_jax.loop.local_rewards import Collected, collect_offline, refresh, train_first
from optimas_jax.loop.probe import run_probe
from optimas_jax.loop.setup.build import build_run
from optimas_jax.loop.setup.completers import answering, loaded_here
from optimas_jax.loop.setup.recordings import use_recordings
from optimas_jax.loop.setup.start import ROWS
from optimas_jax.loop.steps.blame import blame_of, to_json
from optimas_jax.loop.steps.caps import within_caps
from optimas_jax.loop.steps.fields import OBSERVED
from optimas_jax.loop.steps.observe import observed
from optimas_jax.parallel.lockstep import Leader
from optimas_jax.rewards.data import load_groups, save_groups
from optimas_jax.rewards.pairs import is_informative
from optimas_jax.search.pareto import rows_of

ALIGNED = ("local", OWN_REWARD)  # values of config.optimize.score whose alignment is measured


class MissingStage(StopRun):
    """The input of a stage is missing in the run folder."""


def run_stages(
    config: RunConfig,
    workdir: Path,
    stage: str,
    progress: Progress,
    completer: Completer | None = None,
    shared: Path | None = None,
    benchmark: Benchmark | None = None,
    command: str = "",
    leader: Leader | None = None,
    callbacks: Sequence[Callable[[events.Event], Any]] = (),
) -> str:
    """Runs one stage, or all of them; the same call on the same folder resumes. ``completer``, ``shared``,
    ``benchmark``, ``command``, ``leader``, ``callbacks``: see ``build_run``.

    Returns:
      The label of the evaluation (``loop.folder.evaluations``), or "" where none was made.

    Raises:
      ValueError: for an unknown stage, a model that cannot be found, and as ``build_run``.
      StopRun: with a message for the user; results that were paid for are kept.
    """
    if stage not in ("all", ALIGN, PROBE, REFRESH, *STAGES):
        raise ValueError(f"unknown stage {stage!r}; known: all, {', '.join((*STAGES, ALIGN, PROBE, REFRESH))}")
    label = ""
    with open_run(config, workdir, progress, completer, shared, benchmark, command, leader, callbacks) as run:
        if completer is None:
            find_models(run)
        with telling(run, stage):
            for name in STAGES if stage == "all" else (stage,):
                label = run_stage(run, name)
                run.engines.forget_programs()
    return label


@contextlib.contextmanager
def open_run(
    config: RunConfig,
    workdir: Path,
    progress: Progress,
    completer: Completer | None = None,
    shared: Path | None = None,
    benchmark: Benchmark | None = None,
    command: str = "",
    leader: Leader | None = None,
    callbacks: Sequence[Callable[[events.Event], Any]] = (),
) -> Iterator[Run]:
    """A run (``build_run``) whose stages share one set of loaded models; its tape and folder are closed at the end.

    Raises:
      OverBudget: as ``with_price``.
    """
    run = build_run(config, workdir, progress, completer, shared, benchmark, command, leader, callbacks)
    sizes = ", ".join(f"{len(examples)} {split}" for split, examples in run.host.splits.items())
    progress.line(
        f"{title(config.benchmark)}:{config.variant}, seed {config.seed}, {sizes}"
        f"{' of ' * bool(run.data.origin)}{run.data.origin}; {run.host.folder.path}"
    )
    if run.host.folder.damaged:
        progress.line(
            f"warning: {run.host.folder.damaged} damaged lines of {JOURNAL} are kept, and so is all "
            "that stands behind them; a command that repeats their events writes them in their places again"
        )
    if config.optimize.start and not run.host.splits.get("confirm"):
        progress.line(
            "warning: no row is new to the run that this one starts from, so that nothing can be "
            "confirmed: give more rows, or keep some back in the first run (config.data.reserve)"
        )
    if all(spec.startswith("random:") for spec in answering(config)):
        passes = ", and every best proposal is accepted" * (config.optimize.gate.kind == "none")
        progress.line(
            f"the language model has random weights: this shows that everything works, scores mean nothing{passes}"
        )
    try:
        yield with_price(observed(within_caps(run)))
    except (Exception, KeyboardInterrupt) as error:
        with contextlib.suppress(Exception):  # the error itself is what the user should see
            leave_unfinished(run.record, run.host.system.default_configuration(), error)
        raise
    finally:
        run.opened.close()


def with_price(run: Run) -> Run:
    """The run with the price of its measurements, if ``config.budget`` or ``config.optimize.max_tokens`` limits them.

    Raises:
      OverBudget: with that price, if a limit does not allow for them.
    """
    most = run.host.max_tokens
    if not run.host.ledger.budget.is_set and not most:
        return run
    host = dataclasses.replace(run.host, price=price(run.host, run.config))
    if host.ledger.budget.exceeded(host.price.least):
        raise OverBudget(
            f"config.budget allows {host.ledger.budget}, and what has to be measured may cost {host.price.least}: a "
            f"few first runs, the validation of the default ({host.price.baseline}), confirmation and final test "
            f"({host.price.final}). Set it at least to that, and higher for a search; or lower config.data.val, "
            "confirm or test in a new --workdir"
        )
    if most and host.price.baseline.tokens > most:
        raise OverBudget(
            f"config.optimize.max_tokens is {most:,}, and the validation of the default alone may use "
            f"{host.price.baseline.tokens:,}: set it higher, or config.data.val lower, in a new --workdir"
        )
    return dataclasses.replace(run, host=host)


def find_models(run: Run, found: Collection[str] = ()) -> list[str]:
    """Checks that all local models can be loaded before anything is paid for, and returns them. Skipped for a folder
    with completions, which may answer all requests.

    Args:
      found: models that are checked already, which are left out.

    Raises:
      ValueError: for a model that cannot be found.
      StopRun: if devices do not allow the mesh.
    """
    specs = [spec for spec in loaded_here(run.config, models_named(run.host.system)) if spec not in found]
    if specs and not len(run.tape):
        _ = run.engines.mesh
        run.engines.find(specs)
    return specs


def run_stage(run: Run, name: str) -> str:
    """Runs the stage ``name`` (``STAGES``); raises ``StopRun`` with a message for the user.

    Returns:
      The label of the evaluation, for the stage that makes one, or "".
    """
    run.host.progress.line(f"{name}")
    if run.host.system.meter is not None:
        run.host.system.meter.reset()
    actions = {
        "probe": _probe,
        "collect": _collect,
        "train": _train,
        "optimize": _optimize,
        "refresh": _refresh,
        "align": _align,
        "evaluate": _evaluate,
    }
    try:
        with run.host.ledger.phase(name):
            return actions[name](run) or ""
    finally:
        if name in ("collect", "optimize"):  # the run's own evaluation notes it itself
            note_spent(run.host)


def _probe(run: Run) -> None:
    """Measures whether a search can gain anything, and where."""
    with run_limit(run.host, PROBE):
        _hold_measurements(run.host)
        findings, costs = run_probe(run.host, run.config)
    run.host.folder.write("probe.json", {**findings.to_json(), **costs})


def _collect(run: Run) -> None:
    """Collects groups under the default configuration: for the first local reward, for gaps and for demonstrations."""
    host, config = run.host, run.config
    recordings = use_recordings(host, host.recorded)
    collected = Collected(recordings.groups, {})
    if host.folder.read("probe.json") is None:
        host.progress.line(
            f"  (--stage=probe tells beforehand, for at most {config.probe.tokens:,} tokens, whether a search can gain)"
        )
    if config.offline.groups:
        with run_limit(host, "collect"), search_limit(host, "collect"):
            collected = collect_offline(host, config, recordings)
    else:
        host.progress.line("  nothing is collected (config.offline.groups is 0)")
    save_groups(host.folder.path / "groups" / "offline", collected.groups)
    for name, reason in collected.reasons.items():
        groups = [group for group in collected.groups if group.component == name]
        rewards = [group.rewards for group in groups if len(group.candidates) > 1]
        informative = sum(is_informative(row, config.reward.loss.threshold) for row in rewards)
        host.folder.emit(events.Groups(component=name, groups=len(rewards), informative=informative, stopped=reason))
        host.progress.line(f"  {name}: {len(rewards)} groups, {informative} with different rewards; stopped: {reason}")
    scores = [reward for group in collected.groups for reward in group.rewards]
    if len(scores) > 1 and len(set(scores)) == 1:
        host.progress.line(
            f"warning: all {len(scores)} runs score {scores[0]:.3f}: the outputs are alike, or the metric and the data "
            "make no difference between them. In the second case a search finds nothing"
        )


def _offline_groups(run: Run) -> list[Group]:
    groups = load_groups(run.host.folder.path / "groups" / "offline")
    if groups is None:
        raise MissingStage(f"no groups in {run.host.folder.path}: --stage=collect makes them")
    for group in groups:
        node = run.host.system.by_name.get(group.component)
        unlike = node is not None and bool(node.inputs) and set(group.inputs) != set(node.inputs)
        if node is None or node.space is None or (unlike and run.host.system.program is None):
            raise MissingStage(
                f"{run.host.folder.path} has groups of component {group.component!r} with inputs "
                f"{sorted(group.inputs)}, which this system does not have: pull groups of the same system, or "
                "--stage=collect makes its own"
            )
    return groups


def groups_so_far(run: Run) -> list[Group]:
    """Groups of the first collecting and of every iteration.

    Raises:
      MissingStage: if nothing was collected, or for another system.
    """
    folders = sorted((run.host.folder.path / "groups").glob("iteration-*"))
    return [*_offline_groups(run), *(group for folder in folders for group in load_groups(folder) or ())]


def _train(run: Run) -> None:
    """Trains the first local reward."""
    if run.config.optimize.score != "local":
        run.host.progress.line(f"  nothing is trained (config.optimize.score is {run.config.optimize.score!r})")
        return
    name, metadata = train_first(run.host, run.device, run.config, _offline_groups(run))
    run.host.folder.write("reward.json", {"name": name, "history": metadata["history"]})
    for epoch, row in enumerate(metadata["history"]):
        run.host.folder.emit(events.Epoch(epoch=epoch, metrics=row))
        numbers = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
        run.host.progress.line(f"  {'fit' if run.config.reward.heads == 'fitted' else f'epoch {epoch + 1}'}: {numbers}")


def _optimize(run: Run) -> None:
    """Runs the search, and confirms the changes that it accepted."""
    host, config = run.host, run.config
    with run_limit(host, "optimize"):
        with search_limit(host):
            state = optimize(host, run.device, config, _first_reward(run), _offline_groups(run))
        steps = after_each(host.system.default_configuration(), state.accepted)
        run.engines.forget_programs()
        with host.ledger.phase("confirm"):
            with contextlib.suppress(OutOfBudget):  # then the confirmation may use everything
                hold_final(host, state.costs, len(state.val_traces), host.price.test_runs)
            confirmation = confirm_search(host, steps, needed=bool(config.optimize.start))
    confirmed = confirmation and confirmation.to_json()
    kept = len(state.accepted) if confirmation is None else confirmation.changes or 0
    host.folder.save_best(steps[kept], {"accepted": list(state.accepted[:kept]), "confirmed": confirmed})
    host.folder.write(f"{BEST}/{ROWS}", host.folder.read(ROWS))
    if (fields := host.folder.read(OBSERVED)) is not None:  # the system is a program
        host.folder.write(f"{BEST}/{OBSERVED}", fields)
    if steps[kept] == steps[-1]:
        shutil.rmtree(host.folder.path / UNCONFIRMED, ignore_errors=True)  # from an earlier command with another budget
    else:
        info = {"accepted": list(state.accepted), "confirmed": confirmed}
        host.folder.save_best(steps[-1], info, folder=UNCONFIRMED)
    alignment = {} if config.optimize.score not in ALIGNED else alignment_of(host, run.device, config, state)
    host.folder.emit(events.Alignment(reward=state.reward, alignment=alignment))
    blamed = blame_of(host, run.device, state)
    if blamed is not None:
        host.folder.emit(
            events.Blame(
                reward=state.reward,
                passing=blamed.passing,
                failing=blamed.failing,
                first=blamed.first,
                reason=blamed.reason,
            )
        )
    host.folder.write(
        OPTIMIZED,
        {
            "reward": state.reward,
            "alignment": alignment,
            "label_use": {name: dataclasses.asdict(use) for name, use in state.label_use.items()},
            "dropped": {name: dict(reasons) for name, reasons in state.dropped.items()},
            "accepted": list(state.accepted),
            "confirmed": confirmed,
            "pareto": rows_of(state.front, kept),
            "blame": to_json(blamed),
        },
    )


def _first_reward(run: Run) -> str:
    """The name of the local reward that the search starts with."""
    score = run.config.optimize.score
    if score != "local":
        return score if score in UNTRAINED else ""
    trained = run.host.folder.read("reward.json")
    if trained is None:
        raise MissingStage(f"no local reward in {run.host.folder.path}: --stage=train makes it")
    return trained["name"]


def _refresh(run: Run) -> None:
    """Trains local rewards further under the last configuration of the search; ``--stage=align`` then measures
    them."""
    best, search = run.host.folder.path / BEST, run.host.folder.read(OPTIMIZED)
    _check_local(run)
    if search is None:
        raise MissingStage(f"no search in {run.host.folder.path}: --stage=optimize makes it")
    configuration = load_best(best)
    with run_limit(run.host, REFRESH):
        _hold_measurements(run.host)
        name = refresh(run.host, run.device, run.config, configuration, search["reward"], groups_so_far(run))
    run.host.folder.write(REFRESHED_REWARD, {"name": name, "configuration": configuration.to_json()})


def check_folders(folders: Sequence[Path]) -> None:
    """Checks run folders before a measurement after the search compares them.

    Raises:
      StopRun: a folder is named twice, has no finished search with local rewards, or has another benchmark.
    """
    benchmarks: dict[str, Path] = {}
    for folder in folders:
        config = config_of(folder)
        if [other.resolve() for other in folders].count(folder.resolve()) > 1:
            raise StopRun(f"{folder} is named twice")
        if config.optimize.score != "local" or not (folder / OPTIMIZED).is_file() or not (folder / BEST).is_dir():
            raise MissingStage(
                f"{folder} has no finished search with local rewards: the command that made it resumes it, with "
                "config.optimize.score=local"
            )
        benchmarks.setdefault(config.benchmark, folder)
    if len(benchmarks) > 1:
        named = ", ".join(f"{folder} of {benchmark}" for benchmark, folder in benchmarks.items())
        raise StopRun(f"the folders are of several benchmarks: {named}")


@contextlib.contextmanager
def measuring(run: Run, name: str) -> Iterator[None]:
    """A measurement after a search, booked under ``name``, with the cost of the run's own measurements set aside.

    Raises:
      OutOfBudget: if less than that is left of ``config.budget``.
    """
    with run.host.ledger.phase(name), run_limit(run.host, name):
        _hold_measurements(run.host)
        yield


def _hold_measurements(host: Host) -> None:
    """Sets aside the cost of later measurements, where ``config.budget`` limits the run."""
    used = host.folder.read(USED) or {}
    if "evaluate" not in used:
        host.ledger.hold(host.price.final if "optimize" in used else host.price.least)


def _align(run: Run) -> None:
    """Measures the alignment of the last local reward, under the configuration in ``best/``."""
    best = run.host.folder.path / BEST
    configuration = load_best(best) if best.is_dir() else run.host.system.default_configuration()
    reward = last_reward(run, configuration)
    with run_limit(run.host, "align"):
        _hold_measurements(run.host)
        alignment = align(run.host, run.device, run.config, configuration, reward)
    run.host.folder.write("alignment.json", {"reward": reward, "alignment": alignment})
    run.host.folder.emit(events.Alignment(reward=reward, alignment=alignment))


def _check_local(run: Run, allowed: Sequence[str] = ("local",)) -> None:
    score = run.config.optimize.score
    if score not in allowed:
        raise MissingStage(
            f"{run.host.folder.path} has no local rewards, as config.optimize.score is {score!r}: set 'local' in a new "
            "--workdir"
        )


def last_reward(run: Run, configuration: Configuration) -> str:
    """The name of the last local reward of a run (``loop.journal.reward_name``), or the user's own.

    Raises:
      MissingStage: if nothing was trained.
    """
    _check_local(run, ALIGNED)
    if run.config.optimize.score == OWN_REWARD:
        return OWN_REWARD
    reward = reward_name(run.host.folder.path, configuration)
    if not reward:
        raise MissingStage(f"no local reward in {run.host.folder.path}: --stage=train makes it")
    return reward


def _evaluate(run: Run) -> str:
    """Measures the best configuration on examples that the search has not seen; returns the label of the evaluation."""
    host, settings = run.host, run.config.evaluate
    own = is_own(host.folder, settings)
    with run_limit(host, "evaluate", is_part=own):
        measured = measure(run)
    results, costs = measured.results, took(run.record)
    before, after = (results[name]["mean"] for name in ("baseline", "optimized"))
    host.folder.emit(
        events.Evaluation(split=results["split"], n=results["n"], gain=results["gain"], before=before, after=after)
    )
    results = {
        **results,
        "paid_calls": costs["paid_calls"],
        "wall_seconds": costs["seconds"],
        "peak_rss_mb": costs["peak_rss_mb"],
        "versions": run.record.facts["versions"],
        "spent": beside_plan(host, run.config) if own else {},
    }
    label = save(host.folder, settings.split, measured.identity, results, measured.rows, own=own)
    if own:
        finish(run.record)
        (host.folder.path / UNFINISHED).unlink(missing_ok=True)
    return label
