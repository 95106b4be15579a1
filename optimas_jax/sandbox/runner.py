"""The program inside the sandbox that runs unit tests against a program; ``unittests`` is the other side.

    python -s -P runner.py MESSAGE REPORT      file descriptors: the work to do, and the channel for outcomes

The program and its tests are one module, as BigCodeBench runs them (bigcode-project/bigcodebench: eval/__init__.py).
Every outcome is reported at once, with a secret that is part of the work, so that a program cannot take back a failure,
and cannot report without reading this file's memory. A test also fails if the program changed ``unittest``, a built-in
function or the test class.

Standard library only, and nothing of this package, which is not visible in the sandbox.
"""

from __future__ import annotations

import builtins
import json
import linecache
import os
import sys
import traceback
import types
import unittest
import unittest.case
import unittest.loader
import unittest.result
import unittest.suite
from collections.abc import Callable
from typing import Any

MODULE, PROGRAM, TESTS = "__test__", "program.py", "tests.py"
Report = Callable[[str, str, str], None]
Snapshot = list[tuple[Any, dict[str, Any]]]


def reporter(descriptor: int, secret: str) -> Report:
    """A function that writes one line (secret, JSON of test, outcome, detail); in child processes it does nothing."""
    write, encode, process, getpid = os.write, json.dumps, os.getpid(), os.getpid

    def report(test: str, outcome: str, detail: str) -> None:
        if getpid() == process:
            line = f"{secret} {encode([test, outcome, detail[-2000:]])}\n".encode()
            while line:
                line = line[write(descriptor, line) :]

    return report


def functions(owner: Any) -> dict[str, Any]:
    """The callable attributes of a class or module."""
    return {name: value for name, value in vars(owner).items() if callable(value) or hasattr(value, "__func__")}


def changed(snapshot: Snapshot) -> str:
    """Name of a function that was replaced since the snapshot, or ""."""
    for owner, before in snapshot:
        now = functions(owner)
        for name in before.keys() | (now.keys() if isinstance(owner, type) else ()):
            if now.get(name) is not before.get(name):
                return f"{owner.__name__}.{name}"
    return ""


class Outcomes(unittest.TestResult):
    """Reports each outcome at once."""

    def __init__(self, report: Report, snapshot: Snapshot):
        super().__init__()
        self._report, self._snapshot = report, snapshot

    def addSuccess(self, test: Any) -> None:  # noqa: N802 (unittest's name)
        name = changed(self._snapshot)
        self._report(_name(test), "failed" if name else "passed", f"the program changed {name}" if name else "")

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._report(_name(test), "failed", _text(err))

    addError = addFailure  # noqa: N815

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is not None:
            self._report(_name(test), "failed", _text(err))

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        by_program = any(frame.filename == PROGRAM for frame in traceback.extract_tb(sys.exc_info()[2]))
        self._report(_name(test), "failed" if by_program else "passed", f"skipped: {reason}")

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._report(_name(test), "passed", "")

    addUnexpectedSuccess = addSuccess  # noqa: N815 (no issue in the official evaluation)


def _name(test: Any) -> str:
    """Name of the method or function, or of a fixture such as ``setUpClass``."""
    return test.id().partition(" ")[0].rpartition(".")[2]


def _text(err: Any) -> str:
    """Traceback without frames of this file and of unittest."""
    error = traceback.TracebackException(*err)
    frames = [frame for frame in error.stack if frame.filename in (PROGRAM, TESTS)]
    error.stack = traceback.StackSummary.from_list(frames or error.stack)
    return "".join(error.format(chain=False))


def load(source: str, name: str, module: types.ModuleType) -> None:
    """Runs source text in the module; tracebacks show its lines."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), vars(module))  # noqa: S102 (in the sandbox)


def run(work: dict[str, Any], report: Report) -> None:
    """Runs the tests of class ``work["case"]``; if that is empty, all test classes and functions named ``test...``."""
    module = types.ModuleType(MODULE)
    vars(module).update(__builtins__=builtins, __file__=f"{MODULE}.py", sys=sys, os=os, environ=os.environ)
    sys.modules[MODULE] = module
    parts = (unittest.case, unittest.suite, unittest.loader, unittest.result, builtins)
    classes = (unittest.TestCase, unittest.TestResult, unittest.TestSuite, unittest.TestLoader, Outcomes)
    inner = [value for name, value in vars(unittest.case).items() if isinstance(value, type) and name.startswith("_")]
    snapshot: Snapshot = [(owner, functions(owner)) for owner in (*parts, *classes, unittest.BaseTestSuite, *inner)]
    loader, result = unittest.TestLoader(), Outcomes(report, snapshot)
    load(work["program"], PROGRAM, module)
    load(work["tests"], TESTS, module)
    if name := changed(snapshot):
        raise RuntimeError(f"the program changed {name}")
    cases = [getattr(module, work["case"])] if work["case"] else [c for c in vars(module).values() if _is_case(c)]
    suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in cases)
    if not work["case"]:
        plain = [f for name, f in vars(module).items() if name.startswith("test") and isinstance(f, types.FunctionType)]
        suite.addTests(unittest.FunctionTestCase(function, description=function.__name__) for function in plain)
    snapshot += [(base, functions(base)) for case in cases for base in case.__mro__ if base.__module__ == MODULE]
    suite.run(result)


def _is_case(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, unittest.TestCase) and value.__module__ == MODULE


def main() -> None:
    """Reads the work, runs its tests, reports ``done`` at the end, and exits without running exit handlers."""
    message, descriptor = int(sys.argv[1]), int(sys.argv[2])
    leave = os._exit
    with open(message, "rb") as file:
        work = json.loads(file.read())
    os.set_inheritable(descriptor, False)
    report = reporter(descriptor, work.pop("secret"))
    try:
        run(work, report)
        report("", "done", "")
    except BaseException:
        report("", "failed", _text(sys.exc_info()))
    finally:
        leave(0)


if __name__ == "__main__":
    main()
