"""The models that answer the requests of a saved program. No model is loaded before its first request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.modules import SystemConfig
from optimas_jax.core.schema import from_dict, to_dict
from optimas_jax.llm.attempts import Persistent
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.sandbox import SandboxCompleter
from optimas_jax.loop.config import RunConfig
from optimas_jax.presets import EMBEDDED_MODEL, local

if TYPE_CHECKING:
    from optimas_jax.engine.pool import Engines


def language_model(model: str | LanguageModel | None) -> LanguageModel:
    """A language model by its spec; by default the embedded model."""
    if isinstance(model, LanguageModel):
        return model
    return EMBEDDED_MODEL if model is None else LanguageModel(model)


def serving_config(name: str, answers: LanguageModel, settings: Mapping[str, Any]) -> RunConfig:
    """A configuration with the servers and prices of a run; its other settings are not used."""
    config = local(name, SystemConfig(answers), DataConfig())
    servers = {part: settings[part] for part in ("server", "anthropic", "prices") if part in settings}
    return from_dict(RunConfig, {**to_dict(config), **servers})


def make_engines() -> Engines:
    """Local models, which are loaded on first use."""
    from optimas_jax.engine.pool import Engines
    from optimas_jax.parallel.mesh import MeshConfig
    from optimas_jax.report.console import ConsoleProgress

    return Engines(MeshConfig(), ConsoleProgress(quiet=True))


def completer_of(
    name: str, answers: LanguageModel, settings: Mapping[str, Any], folder: Path, engines: Engines | None = None
) -> SandboxCompleter:
    """A completer for the models of a program, local or on the servers of its run, which also runs programs.

    Args:
      folder: holds the adapters that requests name.
    """
    from optimas_jax.loop.setup.completers import make_completer
    from optimas_jax.report.console import ConsoleProgress

    config = serving_config(name, answers, settings)
    load = (engines or make_engines()).sampler
    say = ConsoleProgress(stderr=True).line  # of servers that do not answer, or refuse a setting
    return SandboxCompleter(Persistent(make_completer(config, folder, say, load)))
