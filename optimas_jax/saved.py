"""Saved programs: a configuration from a run's folder, put into the program that it belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.modules import SystemConfig
from optimas_jax.core import event_loop
from optimas_jax.core.component import ComponentFailure
from optimas_jax.core.schema import from_dict, to_dict
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome, freeze, thaw
from optimas_jax.core.values import Configuration
from optimas_jax.llm.base import Completer
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.journal import config_json, load_best
from optimas_jax.presets import EMBEDDED_MODEL, local
from optimas_jax.programs.plain import from_fields
from optimas_jax.programs.program import OUTPUT, Program
from optimas_jax.programs.program import program as declare


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
    configuration, answers, saved = read_saved(folder, model)
    assert configuration is not None  # of a folder
    declared = dataclasses.replace(declare(program), on_error="stop")  # its exceptions are the caller's
    system = declared.system(lambda outputs: 0.0, (), answers)
    system.check(configuration)
    completer = completer_of(declared.name, answers, saved, folder)
    return Optimized(configuration, system.using(completer), declared.returns, saved.get("seed", 0))


def read_saved(
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


def completer_of(name: str, answers: LanguageModel, saved: Mapping[str, Any], folder: Path) -> Completer:
    """A completer for the models of a program, local or on the servers of its run; loads none yet."""
    from optimas_jax.engine.pool import Engines
    from optimas_jax.loop.completers import make_completer
    from optimas_jax.report.console import ConsoleProgress

    quiet = ConsoleProgress(quiet=True)
    config = local(name, SystemConfig(answers), DataConfig())
    servers = {part: saved[part] for part in ("server", "anthropic", "prices") if part in saved}
    config = from_dict(RunConfig, {**to_dict(config), **servers})
    return make_completer(config, folder, quiet.line, Engines(config.mesh, quiet).sampler)


def language_model(model: str | LanguageModel | None) -> LanguageModel:
    """A language model by its spec; by default the embedded one."""
    if isinstance(model, LanguageModel):
        return model
    return EMBEDDED_MODEL if model is None else LanguageModel(model)
