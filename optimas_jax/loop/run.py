"""What a run consists of: built once from its configuration, handed to every stage."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from optimas_jax.benchmarks import hotpotqa
from optimas_jax.core.system import System
from optimas_jax.core.types import Example
from optimas_jax.learn.checkpoint import CheckpointStore
from optimas_jax.llm.base import Completer
from optimas_jax.llm.ledger import Ledger
from optimas_jax.llm.providers import models_named
from optimas_jax.llm.tape import Tape, TapedCompleter
from optimas_jax.loop.completers import check_completers, make_completer, own_prices, without_price
from optimas_jax.loop.config import ConfigError, RunConfig
from optimas_jax.loop.engines import Engines
from optimas_jax.loop.journal import ADAPTERS, TAPE, RunFolder
from optimas_jax.loop.local_reward import RewardEngine
from optimas_jax.loop.policy import PolicyEngine
from optimas_jax.loop.progress import Progress

BENCHMARKS = {"hotpotqa": hotpotqa}


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
      config: its configuration.
      folder: where it leaves its files.
      system: with its requests going to the tape.
      completer: the same completer, for proposers.
      splits: examples by split.
      engine: trains and evaluates local rewards.
      policies: updates weights.
      tape, ledger, progress: see their classes.
      components: names that may be tuned, in the system's order.
      started: ``time.monotonic()`` when it was built.
    """

    config: RunConfig
    folder: RunFolder
    system: System
    completer: TapedCompleter
    splits: dict[str, tuple[Example, ...]]
    engine: RewardEngine
    policies: PolicyEngine
    tape: Tape
    ledger: Ledger
    progress: Progress
    components: tuple[str, ...]
    started: float


def build_run(config: RunConfig, workdir: Path, progress: Progress, completer: Completer | None = None) -> Run:
    """Checks the configuration, reads the data, and puts the parts together. Loads no model.

    ``completer`` answers the requests of the system and of proposers; by default the
    servers and local engines of the models that they name.

    Raises:
      ConfigError: for an unknown benchmark or component, or models that nothing here can serve, before anything
        is spent.
      FolderError: for a folder of another configuration.
    """
    started = time.monotonic()
    if config.benchmark not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {config.benchmark!r}; known: {', '.join(BENCHMARKS)}")
    engines = Engines(config.mesh, progress)
    if completer is None:
        check_completers(config, workdir)
    benchmark = BENCHMARKS[config.benchmark]
    data = benchmark.load(config.data)
    settings = config.system
    bare = benchmark.build(data.articles, settings.language_model, settings.k_grid, settings.k, settings.weights)
    if completer is None:
        choices = models_named(bare)
        check_completers(config, workdir, choices)
        for spec in without_price(config, choices):
            progress.line(
                f"[yellow]warning[/yellow]: no price of {spec} is known, and its dollars are not counted: set "
                f"config.prices to {spec}=PROMPT/COMPLETION"
            )
        completer = make_completer(config, workdir, progress.line, engines.sampler)
    components = _chosen_components(bare, config.optimize.components)
    folder = RunFolder(workdir, config)
    checkpoints = CheckpointStore(folder.path / "checkpoints")
    tape = Tape(folder.path / TAPE)
    ledger = Ledger(config.budget, tape.cost(), own_prices(config))
    taped = TapedCompleter(tape, ledger, completer)
    return Run(
        config=config,
        folder=folder,
        system=bare.using(taped),
        completer=taped,
        splits=dict(data.splits),
        engine=RewardEngine(config.reward, bare.tunable, engines, tape, checkpoints, progress),
        policies=PolicyEngine(
            config.policy,
            config.policy.model or settings.language_model.model,
            engines,
            folder.path / ADAPTERS,
            checkpoints,
        ),
        tape=tape,
        ledger=ledger,
        progress=progress,
        components=components,
        started=started,
    )


def _chosen_components(system: System, names: str) -> tuple[str, ...]:
    if names == "all":
        return system.tunable
    chosen = [name.strip() for name in names.split(",")]
    unknown = [name for name in chosen if name not in system.tunable]
    if unknown:
        raise ConfigError(
            f"config.optimize.components names {', '.join(map(repr, unknown))}; tunable are {', '.join(system.tunable)}"
        )
    return tuple(name for name in system.tunable if name in chosen)
