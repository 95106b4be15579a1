"""What a run consists of: built once from its configuration, handed to every stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.benchmarks.modules import find_benchmark, models_of
from optimas_jax.core.system import System
from optimas_jax.core.types import Example
from optimas_jax.learn.checkpoint import CheckpointStore
from optimas_jax.llm.base import Completer
from optimas_jax.llm.ledger import Ledger
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.llm.openai import PREFIX, OpenAICompleter
from optimas_jax.llm.sandbox import SandboxCompleter
from optimas_jax.llm.tape import Tape, TapedCompleter
from optimas_jax.loop.config import ConfigError, RunConfig
from optimas_jax.loop.engines import Engines
from optimas_jax.loop.journal import ADAPTERS, RunFolder
from optimas_jax.loop.local_reward import RewardEngine
from optimas_jax.loop.policy import PolicyEngine
from optimas_jax.loop.progress import Progress

_API_PROVIDERS = ("openai", "anthropic")  # without config.server.base_url


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
      config: its configuration.
      folder: where it leaves its files.
      system: with its requests going to the tape.
      completer: the same completer, for proposers.
      data: examples by split, and their chance level.
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
    engine: RewardEngine
    policies: PolicyEngine
    tape: Tape
    ledger: Ledger
    progress: Progress
    components: tuple[str, ...]
    started: float

    @property
    def splits(self) -> Mapping[str, tuple[Example, ...]]:
        """Examples by split."""
        return self.data.splits


def build_run(config: RunConfig, workdir: Path, progress: Progress, completer: Completer | None = None) -> Run:
    """Checks the configuration, reads the data, and puts the parts together. Loads no model.

    ``completer`` answers the requests of the system and of proposers; by default the local engine does.

    Raises:
      ValueError: for an unknown benchmark or component, models that nothing here can serve, or unusable data.
      FolderError: for a folder of another configuration.
    """
    started = time.monotonic()
    benchmark = find_benchmark(config.benchmark)
    engines = Engines(config.mesh, progress)
    completer = completer or _completer(config, engines, workdir / ADAPTERS)
    data = benchmark.load(config.data).check()
    bare = benchmark.build(data, config.system)
    components = _chosen_components(bare, config.optimize.components)
    folder = RunFolder(workdir, config)
    checkpoints = CheckpointStore(folder.path / "checkpoints")
    tape, ledger = Tape(folder.path / "tape.sqlite"), Ledger()
    taped = TapedCompleter(tape, ledger, SandboxCompleter(completer))
    return Run(
        config=config,
        folder=folder,
        system=bare.using(taped),
        completer=taped,
        data=data,
        engine=RewardEngine(config.reward, bare.tunable, engines, tape, checkpoints, progress),
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


def _completer(config: RunConfig, engines: Engines, adapters: Path) -> Completer:
    models = sorted({*models_of(config.system), config.proposer.model})
    if config.server.base_url and all(model.startswith(PREFIX) for model in models):
        weights = getattr(config.system, "weights", "")
        if weights and not config.policy.model:
            raise ConfigError(
                f"config.system.weights is {weights!r} and {models[0]} answers: set config.policy.model "
                "to the spec of the weights behind it, which are tuned here"
            )
        return OpenAICompleter(config.server, adapters)
    remote = [model for model in models if model.partition(":")[0] in _API_PROVIDERS]
    if remote:
        raise ConfigError(
            f"{', '.join(remote)}: paid APIs wait for the clients of a later version. Name a local model "
            "(config.system.language_model.model, config.proposer.model), or for openai:NAME the address of a server "
            "of your own (config.server.base_url), or use another variant of this config"
        )
    if len(models) > 1:
        raise ConfigError(
            f"config.system asks {', '.join(models_of(config.system))} and config.proposer.model is "
            f"{config.proposer.model!r}: the local engine serves one model, set all alike"
        )
    return LocalCompleter(models[0], lambda: engines.sampler(models[0]), adapters)


def _tuned_model(config: RunConfig) -> str:
    """The model whose weights may be tuned: that of the components which name no other."""
    own = getattr(config.system, "language_model", None)
    return own.model if own is not None else ""


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
