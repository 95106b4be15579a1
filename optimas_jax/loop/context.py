"""What a run consists of: built once from its configuration, handed to every stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.core.plain import ConfigError
from optimas_jax.core.system import Meter, System
from optimas_jax.core.types import Example
from optimas_jax.core.values import Grid, LoraSpace, Models, nothing_to_tune
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.base import Completer
from optimas_jax.llm.ledger import Ledger
from optimas_jax.llm.providers import models_named
from optimas_jax.llm.sandbox import SandboxCompleter
from optimas_jax.llm.tape import Tape, TapedCompleter
from optimas_jax.loop.completers import check_completers, make_completer, own_prices, without_price
from optimas_jax.loop.config import OptimizeConfig, RunConfig
from optimas_jax.loop.journal import ADAPTERS, CHECKPOINTS, TAPE, RunFolder, load_best
from optimas_jax.loop.progress import ConsoleProgress
from optimas_jax.policy.engine import PolicyEngine
from optimas_jax.rewards.engine import RewardEngine, reward_engine
from optimas_jax.rewards.scorer import InstanceScorer
from optimas_jax.search.choices import GRID_LIMIT, check_tpe


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
      config: its configuration.
      folder: where it leaves its files.
      system: with its requests going to the tape.
      completer: the same completer, for proposers.
      data: examples by split, and their chance level.
      engines: local models.
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
    data: Dataset
    engines: Engines
    engine: RewardEngine
    policies: PolicyEngine
    tape: Tape
    ledger: Ledger
    progress: ConsoleProgress
    components: tuple[str, ...]
    started: float

    @property
    def splits(self) -> Mapping[str, tuple[Example, ...]]:
        """Examples by split."""
        return self.data.splits


def build_run(config: RunConfig, workdir: Path, progress: ConsoleProgress, completer: Completer | None = None) -> Run:
    """Checks the configuration, reads the data, and puts the parts together. Loads no model.

    ``completer`` answers the requests of the system and of proposers; by default the
    servers and local engines of the models that they name.

    Raises:
      ValueError: for an unknown benchmark or component, models that nothing here can serve, or unusable data, before
        anything is spent.
      FolderError: for a folder of another configuration.
    """
    started = time.monotonic()
    benchmark = find_benchmark(config.benchmark)
    if config.evaluate.folder:
        load_best(Path(config.evaluate.folder))  # one that is missing is said before anything is paid for
    engines = Engines(config.mesh, progress)
    if completer is None:
        check_completers(config, workdir)
    data = benchmark.load(config.data).check()
    bare = benchmark.build(data, config.system)
    if completer is None:
        choices = models_named(bare)
        check_completers(config, workdir, choices)
        for spec in without_price(config, choices):
            progress.line(
                f"[yellow]warning[/yellow]: no price of {spec} is known, and its dollars are not counted: set "
                f"config.prices to {spec}=PROMPT/COMPLETION"
            )
        completer = make_completer(config, workdir, progress.line, engines.sampler)
    components = _chosen_components(bare, config.optimize, progress)
    folder = RunFolder(workdir, config)
    checkpoints = CheckpointStore(folder.path / CHECKPOINTS)
    tape = Tape(folder.path / TAPE)
    ledger = Ledger(config.budget, tape.cost(), own_prices(config))
    taped = TapedCompleter(tape, ledger, SandboxCompleter(completer))
    engine = reward_engine(config.reward, bare.tunable, engines, tape, checkpoints, progress)
    return Run(
        config=config,
        folder=folder,
        system=dataclasses.replace(bare, completer=taped, scorer=InstanceScorer(engine.scorer, bare), meter=Meter()),
        completer=taped,
        data=data,
        engines=engines,
        engine=engine,
        policies=PolicyEngine(
            config.policy,
            config.policy.model or _tuned_model(config),
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


def _tuned_model(config: RunConfig) -> str:
    """The model whose weights may be tuned: that of the components which name no other."""
    own = getattr(config.system, "language_model", None)
    return own.model if own is not None else ""


def _chosen_components(system: System, config: OptimizeConfig, progress: ConsoleProgress) -> tuple[str, ...]:
    """Names of the components to tune. One that has nothing to tune is an error where it is named, and left out of
    ``all``.

    Raises:
      ConfigError: if a name is not that of a tunable component, or none is left.
      StopRun: if a large space needs a library that is not installed.
    """
    every = config.components == "all"
    chosen = system.tunable if every else [name.strip() for name in config.components.split(",")]
    unknown = [name for name in chosen if name not in system.tunable]
    if unknown:
        raise ConfigError(
            f"config.optimize.components names {', '.join(map(repr, unknown))}; tunable are {', '.join(system.tunable)}"
        )
    names = []
    for name in (name for name in system.tunable if name in chosen):
        why = _not_tunable(system, name, config)
        if why and not every:
            raise ConfigError(f"config.optimize.components names {name!r}, {why}: leave it out")
        if why:
            progress.line(f"{name} stays as it is, {why}")
            continue
        names.append(name)
        space = system.by_name[name].space
        if isinstance(space, Grid | Models) and len(space) > GRID_LIMIT:
            check_tpe(f"{name} has {len(space)} values; more than {GRID_LIMIT} are searched")
    if not names:
        raise ConfigError("config.optimize.components is 'all', and no component has anything to tune")
    if "mipro" in config.proposers:
        check_tpe("config.optimize.proposers names mipro, which searches")
    return tuple(names)


def _not_tunable(system: System, name: str, config: OptimizeConfig) -> str:
    """Why a component has nothing to tune, or ""."""
    component = system.by_name[name]
    if nothing_to_tune(component.space):
        return f"which has one value to choose from, {component.default!r}, and so nothing to tune"
    if isinstance(component.space, LoraSpace) and config.score == "global":
        return "whose weights are tuned against local rewards only (config.optimize.score is 'global')"
    return ""
