"""The stages of a run, in order, each of which can be run alone on the same folder: collect, train, optimize, evaluate.

Nothing is handed from stage to stage in memory: a stage reads what the one before left in the run folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.modules import find_benchmark, title
from optimas_jax.core.types import StopRun
from optimas_jax.llm.base import Completer
from optimas_jax.llm.providers import models_named
from optimas_jax.loop.budget import COLLECTED, cost_so_far, is_spent, stage_cost
from optimas_jax.loop.completers import loaded_here
from optimas_jax.loop.config import STAGES, RunConfig
from optimas_jax.loop.context import Run, build_run
from optimas_jax.loop.evaluate import after_each, by_kind, contributions, evaluate, gain, other_metrics
from optimas_jax.loop.iteration import State, optimize, resolve_mode
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.offline import collect_offline, train_offline
from optimas_jax.loop.progress import ConsoleProgress
from optimas_jax.report.tables import tables, write_html, write_tensorboard
from optimas_jax.rewards.alignment import measure_alignment
from optimas_jax.rewards.data import load_groups, save_groups
from optimas_jax.rewards.split import is_held_out


class MissingStage(StopRun):
    """A stage was asked for whose input is not there yet."""


def run_stages(
    config: RunConfig,
    workdir: Path,
    stage: str = "all",
    progress: ConsoleProgress | None = None,
    completer: Completer | None = None,
) -> None:
    """Runs one stage, or all of them; the same call on the same folder resumes. ``completer``: see ``build_run``.

    Raises:
      ValueError: for an unknown stage, a model that is nowhere, and what ``build_run`` raises.
      StopRun: with a message for the user; what was paid for is kept.
    """
    if stage not in ("all", *STAGES):
        raise ValueError(f"unknown stage {stage!r}; known: all, {', '.join(STAGES)}")
    with open_run(config, workdir, progress or ConsoleProgress(), completer) as run:
        if stage == "all" and completer is None:
            find_models(run)
        for name in STAGES if stage == "all" else (stage,):
            run_stage(run, name)


@contextlib.contextmanager
def open_run(
    config: RunConfig, workdir: Path, progress: ConsoleProgress, completer: Completer | None = None
) -> Iterator[Run]:
    """A run (``build_run``) whose stages share one set of loaded models; its tape and folder are closed at the end."""
    run = build_run(config, workdir, progress, completer)
    sizes = ", ".join(f"{len(examples)} {split}" for split, examples in run.splits.items())
    progress.line(
        f"[bold]{title(config.benchmark)}:{config.variant}[/bold], seed {config.seed}, {sizes}"
        f"{' of ' * bool(run.data.origin)}{run.data.origin}; {run.folder.path}"
    )
    try:
        yield run
    finally:
        run.tape.close()
        run.folder.close()


def find_models(run: Run) -> None:
    """Makes sure that every local model of the stages can be loaded, so that none is missed after others were paid for.
    A folder with completions is not asked: they may answer everything.

    Raises:
      ValueError: for a model that is nowhere.
      StopRun: if devices do not allow the mesh.
    """
    specs = loaded_here(run.config, models_named(run.system))
    if specs and not len(run.tape):
        _ = run.engines.mesh
        run.engines.find(specs)


def run_stage(run: Run, name: str) -> None:
    """Runs the stage ``name`` (``STAGES``); raises ``StopRun`` with a message for the user."""
    run.progress.line(f"[bold cyan]{name}[/bold cyan]")
    if run.system.meter is not None:
        run.system.meter.reset()
    actions = {"collect": _collect, "train": _train, "optimize": _optimize, "evaluate": _evaluate}
    with run.ledger.phase(name):
        actions[name](run)


def _collect(run: Run) -> None:
    if run.config.optimize.score == "global":
        run.progress.line("  nothing to collect: proposals are ranked by the global metric (config.optimize.score)")
        return
    groups = collect_offline(run, resolve_mode(run.config.optimize))
    save_groups(run.folder.path / "groups" / "offline", groups)
    for name in run.system.tunable:
        own = [group for group in groups if group.component == name]
        informative = sum(max(group.rewards) > min(group.rewards) for group in own)
        run.folder.emit("groups", component=name, groups=len(own), informative=informative)
        run.progress.line(f"  {name}: {len(own)} groups, {informative} with different rewards")
    run.folder.write(COLLECTED, dataclasses.asdict(stage_cost(run, "collect")))
    if is_spent(run):
        raise StopRun(
            f"collecting took {cost_so_far(run).tokens:,} tokens, and config.optimize.max_tokens = "
            f"{run.config.optimize.max_tokens:,} is for collecting and searching together: raise it, or lower "
            "config.offline.calls or config.offline.inputs"
        )


def _offline_groups(run: Run) -> list:
    groups = load_groups(run.folder.path / "groups" / "offline")
    if groups is None:
        raise MissingStage(f"no groups in {run.folder.path}: --stage=collect makes them")
    for group in groups:
        node = run.system.by_name.get(group.component)
        if node is None or node.space is None or set(group.inputs) != set(node.inputs):
            raise MissingStage(
                f"{run.folder.path} has groups of component {group.component!r} with inputs {sorted(group.inputs)}, "
                "which this system does not have: pull groups of the same system, or --stage=collect makes its own"
            )
    return groups


def _train(run: Run) -> None:
    if run.config.optimize.score == "global":
        run.progress.line("  nothing to train: proposals are ranked by the global metric (config.optimize.score)")
        return
    name, metadata = train_offline(run, _offline_groups(run))
    run.folder.write("reward.json", {"name": name, "history": metadata["history"]})
    for epoch, row in enumerate(metadata["history"]):
        run.folder.emit("epoch", epoch=epoch, **row)
        run.progress.line(f"  epoch {epoch + 1}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))


def _optimize(run: Run) -> None:
    if run.config.optimize.score == "global":
        state, alignment = optimize(run, "", ()), {}
    else:
        reward = run.folder.read("reward.json")
        if reward is None:
            raise MissingStage(f"no local reward in {run.folder.path}: --stage=train makes it")
        state = optimize(run, reward["name"], _offline_groups(run))
        alignment = _alignment(run, state)
    val_score = sum(trace.score for trace in state.val_traces) / len(state.val_traces)
    run.folder.save_best(state.configuration, {"val_score": val_score, "accepted": list(state.accepted)})
    run.folder.write(
        "optimized.json", {"reward": state.reward, "alignment": alignment, "accepted": list(state.accepted)}
    )


def _alignment(run: Run, state: State) -> dict[str, Any]:
    """Of the last local reward with the global one, by component."""
    share = run.config.offline.held_out
    held_out = [group for group in state.groups if is_held_out(group.example_id, share)]
    alignment = {
        name: {**dataclasses.asdict(row), "controls": {"shorter": row.shorter, "loglik": row.loglik}}
        for name, row in measure_alignment(run.engine.scorer, state.reward, run.system, held_out).items()
    }
    for row in alignment.values():
        del row["shorter"], row["loglik"]
    run.folder.emit("alignment", reward=state.reward, alignment=alignment)
    return alignment


def _evaluate(run: Run) -> None:
    settings = run.config.evaluate
    folder = Path(settings.folder) if settings.folder else run.folder.path / "best"
    configuration = load_best(folder)
    run.folder.take_parts(configuration, folder)
    run.system.check(configuration)
    examples = run.splits[settings.split]
    optimization = run.folder.read("optimized.json") or {"alignment": {}, "accepted": []}
    steps = after_each(run.system.default_configuration(), optimization["accepted"])
    known = steps[-1].to_json() == configuration.to_json()  # not if it was saved elsewhere
    one_by_one = known and settings.changes
    if not one_by_one:
        steps = [steps[0], configuration]
    evaluations = evaluate(run, steps, examples, settings.repeats)
    baseline, optimized, accepted = evaluations[0], evaluations[-1], optimization["accepted"]
    if one_by_one and accepted:
        brought = contributions(run, optimization["reward"], accepted, evaluations)
        accepted = [{**change, settings.split: row} for change, row in zip(accepted, brought, strict=True)]
    benchmark = find_benchmark(run.config.benchmark)
    results: dict[str, Any] = {
        "benchmark": title(run.config.benchmark),
        "variant": run.config.variant,
        "seed": run.config.seed,
        "split": settings.split,
        "n": len(examples),
        "metric": benchmark.METRIC,
        "chance": run.data.chance.get(benchmark.METRIC, 0.0),
        "data": run.data.origin,
        "baseline": baseline.to_json(),
        "optimized": optimized.to_json(),
        "gain": gain(optimized, baseline),
        "other_metrics": {
            name: {"chance": run.data.chance.get(name, 0.0), **row}
            for name, row in other_metrics(benchmark, examples, baseline, optimized).items()
        },
        "by_kind": by_kind(examples, {"baseline": baseline, "optimized": optimized}),
        "outcomes": optimized.outcomes,
        "alignment": optimization["alignment"],
        "accepted": accepted,
        "ledger": run.ledger.to_json(),
        "wall_seconds": round(time.monotonic() - run.started, 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "versions": _versions(),
    }
    run.folder.emit("evaluation", split=settings.split, n=len(examples), gain=results["gain"])
    history = (run.folder.read("reward.json") or {"history": []})["history"]
    run.folder.write("results.json", results)
    write_tensorboard(run.folder.path / "tensorboard", results, history)
    write_html(run.folder.path / "report.html", results)
    for table in tables(results):
        run.progress.console.print(table)
    run.progress.line(
        f"{results['wall_seconds']:.0f} s, {results['peak_rss_mb']} MB at most, "
        f"{run.ledger.paid_calls} completions paid for now; {run.folder.path / 'results.json'}"
    )


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
