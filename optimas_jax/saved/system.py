"""The program of a saved configuration as a system: given, found by the name of its benchmark, or imported."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from optimas_jax.benchmarks.data import DataConfig, Dataset
from optimas_jax.benchmarks.modules import BENCHMARKS, find_benchmark, settings_class, title
from optimas_jax.core.folder.files import read_file
from optimas_jax.core.schema import from_dict
from optimas_jax.core.scoring import name_of
from optimas_jax.core.system import System
from optimas_jax.core.types import freeze
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.setup.same_program import edited_since
from optimas_jax.loop.steps.fields import OBSERVED, with_fields
from optimas_jax.programs.program import Program
from optimas_jax.programs.program import program as declare
from optimas_jax.saved.folder import Saved
from optimas_jax.saved.source import METRIC, has_source, import_program, import_source


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a program reads.

    Attributes:
      required, optional: names of fields.
      others: whether it takes any other field.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    others: bool = False

    def of(self, given: Mapping[str, Any], what: str = "the program") -> Mapping[str, Any]:
        """Fields for one run, frozen.

        Raises:
          ValueError: a field is missing, or unknown.
        """
        self.columns(given, what)
        unknown = [name for name in given if name not in (*self.required, *self.optional)]
        if unknown and not self.others:
            raise ValueError(f"{what} does not read {', '.join(unknown)}; it reads {self}")
        return freeze(given)

    def columns(self, columns: Collection[str], what: str = "the program") -> tuple[str, ...]:
        """The fields among ``columns``.

        Raises:
          ValueError: a required field is missing.
        """
        missing = [name for name in self.required if name not in columns]
        if missing:
            given = ", ".join(columns) or "nothing"
            raise ValueError(f"{what} reads {self}, and {', '.join(missing)} is missing; given is {given}")
        return tuple(name for name in (*self.required, *self.optional) if name in columns)

    def __str__(self) -> str:
        return ", ".join([*self.required, *(f"{name} (optional)" for name in self.optional)]) or "nothing"


@dataclasses.dataclass(frozen=True)
class Built:
    """The program of a saved configuration.

    Attributes:
      name: of the program.
      system: without a completer; its metric is the metric of the run if that was asked for, and 0 otherwise.
      inputs: what it reads.
      returns: type of what the program returns, if it is a dataclass or a pydantic model.
      metric: name of the metric.
      data: of the benchmark, if the run has one.
      edited: parts of the program that changed since the run.
    """

    name: str
    system: System
    inputs: Inputs
    returns: Any = None
    metric: str = ""
    data: Dataset | None = None
    edited: tuple[str, ...] = ()


def build(
    saved: Saved,
    program: Program | System | Callable[..., Any] | None = None,
    model: str | LanguageModel | None = None,
    *,
    metric: bool = False,
) -> Built:
    """The program of a saved configuration.

    Args:
      program: in place of the run's own.
      model: in place of the model of the run.
      metric: whether the run's metric is needed.

    Raises:
      SourceError: no program is given, and the run's cannot be imported; or a needed metric cannot be imported.
      ValueError: the configuration does not fit the program; names the values that have no component.
    """
    benchmark = saved.settings.get("benchmark", "")
    if isinstance(program, System):
        built = Built("the system", program, Inputs(program.input_fields), metric=name_of(program.metric))
    elif program is None and not has_source(saved.run) and (benchmark in BENCHMARKS or benchmark.endswith(".py")):
        built = _of_benchmark(saved, benchmark, model)
    else:
        built = _of_program(saved, program, model, metric=metric)
    built = dataclasses.replace(built, system=as_observed(saved, built.system))
    built = dataclasses.replace(built, edited=edited_since(saved.run, built.system))
    if not metric:
        built = dataclasses.replace(built, system=dataclasses.replace(built.system, metric=_no_metric))
    check(saved, built.name, built.system)
    return built


def as_observed(saved: Saved, system: System) -> System:
    """A program whose components have the fields that the run saw them read and return."""
    seen = observed_fields(saved)
    return with_fields(system, seen) if seen and system.program is not None else system


def observed_fields(saved: Saved) -> dict[str, Any]:
    """The fields of components that the run saw, components that are called last at the end; for a lone ``best/``
    folder, the fields that it carries. {} where nothing was seen."""
    return read_file(saved.run / OBSERVED) or read_file(saved.folder / OBSERVED) or {}


def check(saved: Saved, name: str, system: System) -> None:
    """Raises ``ValueError`` if a saved configuration does not fit a system."""
    unknown = [component for component in saved.configuration if component not in system.tunable]
    if unknown:
        raise ValueError(
            f"{saved.folder} has values for {', '.join(saved.configuration)}, and {name} has nothing to tune called "
            f"{', '.join(unknown)}; it has {', '.join(system.tunable) or 'nothing to tune'}. Pass the program that was "
            "optimised, its components called as they were"
        )
    system.check(saved.configuration)


def _of_benchmark(saved: Saved, name: str, model: str | LanguageModel | None) -> Built:
    """The system of a benchmark, on the data of the run, which may be searched."""
    benchmark = find_benchmark(name)
    settings = from_dict(settings_class(benchmark), saved.settings["system"], "config.system")
    if model is not None:
        if not hasattr(settings, "language_model"):
            raise ValueError(f"{name} names its models component by component: none can be put in the place of all")
        settings = dataclasses.replace(settings, language_model=saved.language_model(model))
    data = benchmark.load(from_dict(DataConfig, saved.settings["data"], "config.data"))
    system = benchmark.build(data, settings)
    return Built(title(name), system, Inputs(system.input_fields), metric=benchmark.METRIC, data=data)


def _of_program(
    saved: Saved, given: Program | Callable[..., Any] | None, model: str | LanguageModel | None, *, metric: bool
) -> Built:
    program = import_program(saved.run) if given is None else declare(given)
    scored = import_source(saved.run, METRIC) if metric else _no_metric
    inputs = inputs_of(program)
    program = dataclasses.replace(program, on_error="stop")  # its exceptions are the caller's
    system = program.system(scored, (*inputs.required, *inputs.optional), saved.language_model(model))
    return Built(program.name, system, inputs, program.returns, name_of(scored))


def inputs_of(program: Program) -> Inputs:
    """What a program reads: the arguments of its function."""
    arguments = inspect.signature(program.function).parameters.values()
    named = [argument for argument in arguments if argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)]
    return Inputs(
        tuple(argument.name for argument in named if argument.default is argument.empty),
        tuple(argument.name for argument in named if argument.default is not argument.empty),
        others=any(argument.kind is argument.VAR_KEYWORD for argument in arguments),
    )


def _no_metric() -> float:
    """Score of runs without a metric."""
    return 0.0
