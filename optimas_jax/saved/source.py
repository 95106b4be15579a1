"""Where the program and the metric of a run are, so that another process can import them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from optimas_jax.benchmarks.modules import import_file, importing
from optimas_jax.loop.journal import read_json, write_json
from optimas_jax.programs.declared import DeclarationError
from optimas_jax.programs.program import Program
from optimas_jax.programs.program import program as declare

SOURCE = "program.json"  # in a run folder
PROGRAM, METRIC = "program", "metric"


class SourceError(ValueError):
    """A program or metric that cannot be imported; the message has the reason and the way out."""


def record_source(folder: Path, program: Program | Callable[..., Any], metric: Callable[..., Any]) -> None:
    """Writes into a run folder where program and metric can be imported from, or why they cannot."""
    where = {PROGRAM: _seen_from(folder, _program_source(program)), METRIC: _seen_from(folder, source_of(metric))}
    if read_json(folder / SOURCE) != where:
        write_json(folder / SOURCE, where)


def has_source(folder: Path) -> bool:
    """Whether a run folder says where its program is."""
    return (folder / SOURCE).is_file()


def import_source(folder: Path, what: str) -> Any:
    """The program, or the metric, of the run in a folder.

    Raises:
      SourceError: it cannot be imported, or nothing is known of it.
    """
    way_out = "pass the program: load(folder, program)" if what == PROGRAM else "use a metric of a module file"
    where = (read_json(folder / SOURCE) or {}).get(what)
    if where is None:
        raise SourceError(f"{folder} does not say where its {what} is: {way_out}")
    if reason := where.get("reason"):
        raise SourceError(f"the {what} of {folder} cannot be imported, as {reason}: {way_out}")
    file = (folder.resolve() / (where.get("file") or where["relative"])).resolve()  # "file": of an earlier version
    if file.is_relative_to(folder.resolve()):  # or loading a folder of somebody else's would run what it brings
        raise SourceError(f"the {what} of {folder} is in the run folder, {file}, which is not imported: {way_out}")
    if not file.is_file():
        raise SourceError(f"the {what} of {folder} was in {file}, where there is no file now: {way_out}")
    module = _import(file, where["module"], way_out)
    if not hasattr(module, where["name"]):
        raise SourceError(f"{file} has no {where['name']!r} any more, which was the {what} of {folder}: {way_out}")
    return getattr(module, where["name"])


def source_of(value: Any) -> dict[str, str]:
    """The file and the variable of a function, program or other callable; or the ``reason`` why it has none."""
    function = value.function if isinstance(value, Program) else value
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    file = getattr(module, "__file__", None)
    if module is None or file is None or not Path(file).is_file():
        return {"reason": "it was defined in a notebook or a prompt, not in a file"}
    holders = [name for name, one in vars(module).items() if one is value]
    holders += [name for name, one in vars(module).items() if one is function]
    if not holders:
        name = getattr(function, "__qualname__", type(function).__name__)
        return {"reason": f"{name} is no variable of the module {file}"}
    spec = getattr(module, "__spec__", None)
    known = spec.name if module.__name__ == "__main__" and spec is not None else module.__name__  # python -m
    return {"file": str(Path(file).resolve()), "module": known, "name": holders[0]}


def _seen_from(folder: Path, where: dict[str, str]) -> dict[str, str]:
    """A source with the path of its file from the run folder, so that both can be moved together."""
    if "file" not in where:
        return where
    relative = os.path.relpath(where["file"], folder.resolve())
    return {"relative": relative, "module": where["module"], "name": where["name"]}


def _program_source(program: Program | Callable[..., Any]) -> dict[str, str]:
    """``source_of`` of a program, if its variable has the same components."""
    where = source_of(program)
    if isinstance(program, Program) and "name" in where:
        module = sys.modules[program.function.__module__]
        try:
            same = _names(declare(getattr(module, where["name"]))) == _names(program)
        except DeclarationError:
            same = False
        if not same:
            return {"reason": f"program(components=...) is no variable of {where['file']}: give it a name there"}
    return where


def _names(program: Program) -> list[str]:
    return [one.name for one in program.components]


def _import(file: Path, name: str, way_out: str) -> ModuleType:
    """The module of a file: loaded already, imported by its name from its package, or imported alone.

    Raises:
      SourceError: the name is that of another file's module, such as the one of another checkout.
    """
    for known in (name, "__main__"):
        loaded = sys.modules.get(known)
        if loaded is not None and getattr(loaded, "__file__", None) and Path(str(loaded.__file__)).resolve() == file:
            return loaded
    above = name.count(".") + (file.name == "__init__.py")  # folders of the package around the file
    if not above:
        return import_file(file)
    root = str(file.parents[above])
    if root not in sys.path:
        sys.path.append(root)
    with importing(file):
        module = importlib.import_module(name)
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != file:
        raise SourceError(
            f"{name} is {found} in this process, and {file} is needed: load each in a process of its own, or {way_out}"
        )
    return module
