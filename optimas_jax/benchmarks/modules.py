"""The interface of a benchmark module, and the lookup of benchmarks by name.

A benchmark is a module with

    METRIC         name of the metric that is optimised
    load           (DataConfig) -> Dataset
    build          (Dataset, settings) -> System

and, where it needs them,

    SystemConfig   frozen dataclass of the system's settings: ``language_model`` answers for the components that name no
                   other model, ``weights`` names the components that are tuned by LoRA weights instead of prompts
    SOURCES        allowed values of ``config.data.source``
    OFFLINE        sources whose rows need no download, for a forecast (``loop.forecast``)
    OTHER_METRICS  name -> (outputs, gold) -> score, reported beside the metric
    READ           component -> (outputs, example) -> whether its answer can be read; unreadable answers are counted
    HOOKS          user-defined steps of the search (``optimas_jax.Hooks``)
    CALLBACKS      list of functions that get every event (``optimas_jax.events``)
    SET_METRICS    name -> (outputs of all examples, golds) -> score, for metrics of a set of examples

Your own system is such a module too: a file, named by its path. If that file has a ``get_config``, it is also a
configuration for ``launch/run.py`` (``configs/own_system.py``).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from optimas_jax.benchmarks import amazon, bigcodebench, hotpotqa, pubmedqa, stark_prime
from optimas_jax.benchmarks.data import Dataset
from optimas_jax.core import shipped
from optimas_jax.core.system import System
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.text.nearest import did_you_mean
from optimas_jax.llm.component import LanguageModel

BENCHMARKS: Mapping[str, ModuleType] = {
    "amazon": amazon,
    "bigcodebench": bigcodebench,
    "hotpotqa": hotpotqa,
    "pubmedqa": pubmedqa,
    "stark_prime": stark_prime,
}
_NEEDED = ("METRIC", "load", "build")


class BenchmarkError(ValueError):
    """An unknown benchmark, or a file that does not define one."""


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """Settings of a benchmark without a ``SystemConfig``.

    Attributes:
      language_model: the model of the LLM components.
    """

    language_model: LanguageModel


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark that is no module, with the same names as attributes.

    Attributes:
      on_open: called with the folder of a run when it is opened.
      HOOKS, CALLBACKS: as in a module.
    """

    METRIC: str
    load: Callable[[Any], Dataset]
    build: Callable[[Dataset, Any], System]
    on_open: Callable[[Path], None] | None = None
    HOOKS: Any = None
    CALLBACKS: Any = ()


def find_benchmark(name: str) -> ModuleType:
    """The module of a benchmark: one of ``BENCHMARKS``, or a Python file.

    Raises:
      BenchmarkError: for an unknown name, a missing file, or a file without one of the needed attributes.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if not name.endswith(".py"):
        near = did_you_mean(name, BENCHMARKS) or ";"
        raise BenchmarkError(
            f"unknown benchmark {shown(name)}{near} known: {', '.join(BENCHMARKS)}, or the path of a .py file that "
            "defines one"
        )
    module = import_file(shipped.find(name))
    missing = [part for part in _NEEDED if not hasattr(module, part)]
    if missing:
        raise BenchmarkError(f"{name} lacks {', '.join(missing)}: a benchmark has {', '.join(_NEEDED)}")
    return module


def import_file(path: Path) -> ModuleType:
    """Imports a Python file as a module, once; modules beside it can be imported. Exceptions of the file are not
    caught.

    Raises:
      BenchmarkError: there is no such file.
    """
    if not os.path.isfile(path):  # unlike ``Path.is_file``, it never raises
        seen_from = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise BenchmarkError(f"config.benchmark: no file {shown(str(path))}{seen_from}")
    name = f"benchmark:{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None  # true for every .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        with importing(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


_IMPORTED: contextvars.ContextVar[str] = contextvars.ContextVar("optimas_jax_imported", default="")


@contextlib.contextmanager
def importing(file: Path) -> Iterator[None]:
    """Marks the import of a file for the program that it defines, which must start no run
    (``refuse_while_importing``)."""
    token = _IMPORTED.set(str(file))
    try:
        yield
    finally:
        _IMPORTED.reset(token)


def refuse_while_importing() -> None:
    """Raises ``BenchmarkError`` if the import of a file starts a run, because it would start one again whenever the
    program is loaded."""
    if file := _IMPORTED.get():
        raise BenchmarkError(
            f"{file} starts a run when it is imported, here for the program that it defines: put that below "
            'if __name__ == "__main__":'
        )


def settings_class(benchmark: ModuleType) -> type:
    """The class of a benchmark's settings."""
    return getattr(benchmark, "SystemConfig", SystemConfig)


def title(name: str) -> str:
    """A benchmark's name for banners and folders; for a file, its name without folder and suffix."""
    return Path(name).stem if name.endswith(".py") else name
