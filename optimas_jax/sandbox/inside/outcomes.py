"""Reports outcomes of a test suite, and loads source text as a module."""

from __future__ import annotations

import builtins
import json
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

MODULE, PROGRAM, TESTS = "__test__", "program.py", "tests.py"
Report = Callable[[str, str, str], None]


def reporter(descriptor: int, secret: str) -> Report:
    """A function that writes one line (secret, JSON of test, outcome, detail); in child processes it does nothing."""
    write, encode, process, getpid = os.write, json.dumps, os.getpid(), os.getpid

    def report(test: str, outcome: str, detail: str) -> None:
        if getpid() == process:
            line = f"{secret} {encode([test, outcome, detail[-2000:]])}\n".encode()
            while line:
                line = line[write(descriptor, line) :]

    return report


def names_of(module: str) -> dict[str, Any]:
    """The initial names of a module, as in BigCodeBench's evaluation."""
    file = f"{module}.py"
    return {"__name__": module, "__file__": file, "__builtins__": builtins, "sys": sys, "os": os, "environ": os.environ}


def show(source: str, name: str) -> None:
    """Makes tracebacks show the lines of a source text."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)


def load(source: str, name: str, names: dict[str, Any]) -> None:
    """Runs source text with these global names; tracebacks show its lines."""
    show(source, name)
    exec(compile(source, name, "exec"), names)  # noqa: S102 (in the sandbox)


def result(unit: types.ModuleType, report: Report, may_skip: Callable[[Any], bool], intact: Callable[[], str]) -> Any:
    """A ``TestResult`` of the ``unittest`` module ``unit`` that reports each outcome at once.

    Args:
      may_skip: whether a skipped test passes.
      intact: returns the name of an object that tests rely on and the program changed, or "".
    """

    def passed(self: Any, test: Any, err: Any = None) -> None:
        changed = intact()
        report(_name(test), "failed" if changed else "passed", f"the program changed {changed}" if changed else "")

    def failed(self: Any, test: Any, err: Any) -> None:
        report(_name(test), "failed", text_of(*err))

    def subtest(self: Any, test: Any, part: Any, err: Any) -> None:
        if err is not None:
            failed(self, test, err)

    def skipped(self: Any, test: Any, reason: str) -> None:
        report(_name(test), "passed" if may_skip(test) else "failed", f"skipped: {reason}")

    methods = {"addSuccess": passed, "addExpectedFailure": passed, "addUnexpectedSuccess": passed}  # as officially
    methods |= {"addFailure": failed, "addError": failed, "addSubTest": subtest, "addSkip": skipped}
    return type("Outcomes", (unit.TestResult,), methods)()


def suite(unit: types.ModuleType, names: dict[str, Any], case: str) -> Any:
    """The tests of class ``case``; if that is empty, all test classes and functions named ``test...``."""

    def is_case(value: Any) -> bool:
        return isinstance(value, type) and issubclass(value, unit.TestCase) and value.__module__ == MODULE

    cases = [names[case]] if case else [value for value in names.values() if is_case(value)]
    made = unit.TestSuite(unit.TestLoader().loadTestsFromTestCase(case) for case in cases)
    if not case:
        plain = [f for name, f in names.items() if name.startswith("test") and isinstance(f, types.FunctionType)]
        made.addTests(unit.FunctionTestCase(function, description=function.__name__) for function in plain)
    return made


def _name(test: Any) -> str:
    """Name of the method or function, or of a fixture such as ``setUpClass``."""
    return test.id().partition(" ")[0].rpartition(".")[2]


def text_of(kind: Any, error: Any, trace: Any) -> str:
    """Traceback without frames of the runner and of unittest, and with the frames that the program's process
    reported."""
    shown = traceback.TracebackException(kind, error, trace)
    frames = [frame for frame in shown.stack if frame.filename in (PROGRAM, TESTS)]
    frames += [traceback.FrameSummary(*frame, lookup_line=False) for frame in getattr(error, "program_frames", ())]
    shown.stack = traceback.StackSummary.from_list(frames or shown.stack)
    return "".join(shown.format(chain=False))
