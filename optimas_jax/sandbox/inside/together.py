"""Runs tests and program in one process, as BigCodeBench does (bigcode-project/bigcodebench: eval/__init__.py): for
tests that patch the program's surroundings, or examine results that are more than plain data.

Modules that decide the verdict are loaded before the program, which cannot import them: the tests have their own copies
of ``unittest`` and of the modules beneath it, and this runner is hidden. The tests are loaded before the program as
well, if they load without it. A function of the program must not change built-in functions and trace functions.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from importlib import machinery
from typing import Any, NoReturn

from . import outcomes

BENEATH = ("contextlib", "difflib", "pprint", "traceback")  # Python modules on which verdicts of unittest depend


def run(work: dict[str, Any], report: outcomes.Report) -> None:
    """Runs the tests of ``work``, which ``sandbox.unittests`` makes."""
    public, private = _copies(["unittest", *(["unittest.mock"] if "mock" in work["tests"] else [])])
    module = types.ModuleType(outcomes.MODULE)
    program = vars(module)
    program.update(outcomes.names_of(outcomes.MODULE))
    sys.modules[outcomes.MODULE] = module
    _forget_the_runner()

    def altered(what: str) -> NoReturn:
        report("", "failed", f"the program changed {what}")
        os._exit(0)

    names = TestNames(program, altered)
    names.update(outcomes.names_of(outcomes.MODULE))
    loaded = _load_first(work["tests"], names, public, private)
    before = _surroundings()
    outcomes.load(work["program"], outcomes.PROGRAM, program)
    if what := _changed(before):
        altered(what)
    if not loaded:
        names.update({name: names[name] for name in program.keys() - names.keys()})  # class bodies ignore __missing__
        with _instead(public, private):
            outcomes.load(work["tests"], outcomes.TESTS, names)
    unit = private["unittest"]
    program.update({name: value for name, value in names.items() if not _decides(value, unit)})
    suite = outcomes.suite(unit, names, work["case"])
    before = _surroundings()
    suite.run(outcomes.result(unit, report, _skips(work["tests"], private), lambda: _changed(before)))


def _decides(value: Any, unit: types.ModuleType) -> bool:
    """Whether a value of the tests is part of the verdict, a test or a part of ``unittest``, which the program must not
    get."""
    is_test = isinstance(value, type) and issubclass(value, unit.TestCase)
    home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return is_test or str(home).split(".")[0] == "unittest"


class TestNames(dict[str, Any]):
    """The tests' global names; a missing name is looked up in the program."""

    def __init__(self, program: dict[str, Any], altered: Callable[[str], NoReturn]):
        super().__init__()
        self._program, self._altered = program, altered

    def __missing__(self, name: str) -> Any:
        value = self._program[name]  # after a KeyError Python tries the built-in names
        return _watched(value, self._altered) if isinstance(value, types.FunctionType) else value


def _watched(function: Any, altered: Callable[[str], NoReturn]) -> Any:
    """Wraps a function, so that the run ends if the function changes what tests rely on."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = _surroundings()
        try:
            return function(*args, **kwargs)
        finally:
            if what := _changed(before):
                altered(what)

    return call


def _surroundings() -> dict[str, Any]:
    """Objects that tests rely on and a program can change, by name."""
    traces = {"sys.settrace": sys.gettrace(), "sys.setprofile": sys.getprofile()}
    return {**vars(builtins), **traces}


def _changed(before: dict[str, Any]) -> str:
    """Name of the first object that changed, or ""."""
    now = _surroundings()
    return next((name for name in before if name != "_" and now.get(name) is not before[name]), "")


# Copies that the program cannot import


def _copies(wanted: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The modules of ``unittest`` as the program imports them, and copies of them for the tests alone."""
    for name in wanted:  # first, so that their imports use the modules that the program imports, not the copies
        importlib.import_module(name)
    names = [name for name in sys.modules if name.split(".")[0] == "unittest"]
    beneath = {name: sys.modules.pop(name) for name in BENEATH if name in sys.modules}
    public = {name: sys.modules.pop(name) for name in names}
    sys.meta_path.insert(0, _Copies())
    for name in names:
        importlib.import_module(name)
    del sys.meta_path[0]
    private = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "unittest"}
    for name in BENEATH:
        sys.modules.pop(name, None)
    sys.modules.update(beneath | public)
    return public, private


class _Copies:
    """A finder of modules that get their own copy of the built-in functions."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        spec = machinery.PathFinder.find_spec(name, path, target)
        if (
            spec
            and spec.origin
            and spec.origin.endswith(".py")
            and name.split(".", maxsplit=1)[0] in ("unittest", *BENEATH)
        ):
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(machinery.SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        vars(module)["__builtins__"] = dict(vars(builtins))
        super().exec_module(module)


class _instead:  # noqa: N801 (contextlib is the program's)
    """While entered, tests import their own ``unittest``."""

    def __init__(self, public: dict[str, Any], private: dict[str, Any]):
        self._public, self._private = public, private

    def __enter__(self) -> None:
        sys.modules.update(self._private)

    def __exit__(self, *error: object) -> None:
        for name in self._private:
            sys.modules.pop(name, None)
        sys.modules.update(self._public)


def _forget_the_runner() -> None:
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in [name for name in sys.modules if name.split(".")[0] == __name__.split(".")[0]]:
        del sys.modules[name]


def _load_first(tests: str, names: dict[str, Any], public: dict[str, Any], private: dict[str, Any]) -> bool:
    """Loads the tests before the program; False if they do not load without it."""
    fresh = dict(names)
    try:
        with _instead(public, private):
            outcomes.load(tests, outcomes.TESTS, names)
    except Exception:
        names.clear()
        names.update(fresh)
        return False
    return True


# Skipping


def _skips(tests: str, private: dict[str, Any]) -> Callable[[Any], bool]:
    """A function that decides whether a skipped test passes: it does if the tests skip it, and not the program."""
    of_unittest = private["unittest"].TestCase.skipTest.__code__

    def may_skip(test: Any) -> bool:
        codes = list(_codes(sys.exc_info()[2]))
        if not codes:  # a decorator, evaluated while the tests loaded
            return "skip" in tests
        names = {code.co_filename for code in codes} - {of_unittest.co_filename}
        return names <= {outcomes.TESTS} and (codes[-1] is of_unittest or "SkipTest" in codes[-1].co_names)

    return may_skip


def _codes(trace: Any) -> Iterator[types.CodeType]:
    while trace is not None:
        yield trace.tb_frame.f_code
        trace = trace.tb_next
