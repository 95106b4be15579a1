"""Where the program and the metric of a run are, so that another process can import them."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from optimas_jax.benchmarks.modules import import_file, importing
from optimas_jax.core.folder.files import read_file, write_json
from optimas_jax.programs.declared import DeclarationError
from optimas_jax.programs.program import Program
from optimas_jax.programs.program import program as declare

SOURCE = "program.json"  # in a run folder
PROGRAM, METRIC, LOCAL_REWARD = "program", "metric", "local_reward"
DECLARATIONS = "declarations"  # files other than the program's that declare components of it


class SourceError(ValueError):
    """A program or metric that cannot be imported; the message has the reason and the way out."""


def record_source(
    folder: Path,
    program: Program | Callable[..., Any],
    metric: Callable[..., Any],
    local_reward: Callable[..., Any] | None = None,
) -> None:
    """Writes into a run folder where program, metric and the user's own local reward can be imported from, or why they
    cannot; and which other files declare components of the program."""
    source = _program_source(program)
    where: dict[str, Any] = {PROGRAM: _seen_from(folder, source), METRIC: _seen_from(folder, source_of(metric))}
    if local_reward is not None:
        where[LOCAL_REWARD] = _seen_from(folder, source_of(local_reward))
    declared = declare(program)
    if others := [other for other in _declaring_files(declared) if other["file"] != source.get("file")]:
        files = [_seen_from(folder, other) for other in others]
        where[DECLARATIONS] = {"components": _names(declared), "files": files}
    if read_file(folder / SOURCE) != where:
        write_json(folder / SOURCE, where)


def has_source(folder: Path) -> bool:
    """Whether a run folder records where its program is."""
    return (folder / SOURCE).is_file()


def import_program(folder: Path) -> Program:
    """The program of the run in a folder. Other files that declared its components are imported, too, if its own file
    does not import them.

    Raises:
      SourceError: it cannot be imported, nothing is known of it, or it has no components.
    """
    declarations = (read_file(folder / SOURCE) or {}).get(DECLARATIONS)
    function = import_source(folder, PROGRAM)
    with contextlib.suppress(DeclarationError):
        program = declare(function)
        if declarations is None or set(declarations["components"]) <= set(_names(program)):
            return program
    for where in () if declarations is None else declarations["files"]:
        _import_recorded(folder, where, "module with declarations")
    try:
        return declare(import_source(folder, PROGRAM))  # with the declarations; it may now be another module's
    except DeclarationError as error:
        raise SourceError(
            f"the components of the program of {folder} were declared elsewhere: {_way_out(PROGRAM)} ({error})"
        ) from error


def import_source(folder: Path, what: str) -> Any:
    """The program, the metric or the user's own local reward of the run in a folder.

    Raises:
      SourceError: it cannot be imported, or nothing is known of it.
    """
    where = (read_file(folder / SOURCE) or {}).get(what)
    if where is None:
        raise SourceError(f"{folder} does not say where its {what} is: {_way_out(what)}")
    if reason := where.get("reason"):
        raise SourceError(f"the {what} of {folder} cannot be imported, as {reason}: {_way_out(what)}")
    module = _import_recorded(folder, where, what)
    if not hasattr(module, where["name"]):
        raise SourceError(
            f"{module.__file__} has no {where['name']!r} any more, which was the {what} of {folder}: {_way_out(what)}"
        )
    return getattr(module, where["name"])


def _way_out(what: str) -> str:
    if what == LOCAL_REWARD:
        return "define it in a module file, as a variable of its own"
    return "use a metric of a module file" if what == METRIC else "pass the program: load(folder, program)"


def _import_recorded(folder: Path, where: Mapping[str, str], what: str) -> ModuleType:
    """The module of a file that a run folder names.

    Raises:
      SourceError: it is in the run folder, or there is no such file.
    """
    file = (folder.resolve() / (where.get("file") or where["relative"])).resolve()  # "file": of an earlier version
    if file.is_relative_to(folder.resolve()):  # otherwise loading another user's folder would run code in it
        raise SourceError(
            f"the {what} of {folder} is in the run folder, {file}, which is not imported: {_way_out(what)}"
        )
    if not file.is_file():
        raise SourceError(f"the {what} of {folder} was in {file}, where there is no file now: {_way_out(what)}")
    return _import(file, where["module"], _way_out(what))


def source_of(value: Any) -> dict[str, str]:
    """The file and the variable of a function, program or other callable; or the ``reason`` why it has none."""
    function = value.function if isinstance(value, Program) else value
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    where = _file_of(module)
    if module is None or where is None:
        return {"reason": "it was defined in a notebook or a prompt, not in a file"}
    holders = [name for name, held in vars(module).items() if held is value]
    holders += [name for name, held in vars(module).items() if held is function]
    if not holders:
        name = getattr(function, "__qualname__", type(function).__name__)
        return {"reason": f"{name} is no variable of the module {module.__file__}"}
    return {**where, "name": holders[0]}


def _file_of(module: ModuleType | None) -> dict[str, str] | None:
    """The file of a module and the name to import it by; None for the module of a notebook or a prompt."""
    file = getattr(module, "__file__", None)
    if module is None or file is None or not Path(file).is_file():
        return None
    spec = getattr(module, "__spec__", None)
    name = spec.name if module.__name__ == "__main__" and spec is not None else module.__name__  # python -m
    return {"file": str(Path(file).resolve()), "module": name}


def _declaring_files(program: Program) -> list[dict[str, str]]:
    """The files whose code declares the components of a program."""
    modules = dict.fromkeys(component.module for component in program.components)
    return [where for name in modules if (where := _file_of(sys.modules.get(name))) is not None]


def _seen_from(folder: Path, where: dict[str, str]) -> dict[str, str]:
    """A source whose file is relative to the run folder, so that both can be moved together."""
    if "file" not in where:
        return where
    others = {key: value for key, value in where.items() if key != "file"}
    return {"relative": os.path.relpath(where["file"], folder.resolve()), **others}


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
    return [component.name for component in program.components]


def _import(file: Path, name: str, way_out: str) -> ModuleType:
    """The module of a file: loaded already, imported by its name from its package, or imported alone.

    Raises:
      SourceError: the module of another file has the name, such as the same file of another checkout.
    """
    for module_name in (name, "__main__"):
        loaded = sys.modules.get(module_name)
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
    loaded_file = getattr(module, "__file__", None)
    if loaded_file is None or Path(loaded_file).resolve() != file:
        raise SourceError(
            f"{name} is {loaded_file} in this process, and {file} is needed: load each in a process of its own, or "
            f"{way_out}"
        )
    return module
