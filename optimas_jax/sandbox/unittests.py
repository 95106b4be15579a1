"""Runs a program against unit tests in the sandbox, and returns which tests passed.

The verdict does not depend on the program's output or exit status. The names of the tests are read from the tests'
source beforehand, and each must be reported as passed, exactly once, with a secret that only this process and the
``runner`` know; then the runner must have reached its end.

Tests that call the program's functions and compare plain data run in a process of their own (``split``,
``inside.apart``), which the program's process sends data and no code: there a program passes only by returning what the
tests expect. Other tests (mocks, streams, results that are more than plain data) share the program's process
(``inside.together``). There no program passes by exiting early, printing ``OK``, replacing or patching ``unittest``,
its assertions or what it stands on, import hooks, built-in functions or the tests' methods, by threads or within a
call, nor by skipping. But it passes if it searches the interpreter's memory (frames, ``gc``, subclasses, globals of
functions, ``ctypes``) for the tests or the runner's secret, if its results claim to be equal to everything, or if it
replaces functions of libraries with which the tests look at results. Only a program that is written to cheat does this.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import json
import secrets
import threading
from pathlib import Path
from typing import Any, Literal

from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.program import Ended, run_program
from optimas_jax.sandbox.source import parse
from optimas_jax.sandbox.split import split

INSIDE = Path(__file__).with_name("inside")
RUNNER = ("__init__.py", "apart.py", "kernel.py", "outcomes.py", "plain.py", "runner.py", "together.py")
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside import runner; del sys.path[0]; runner.main()"
Status = Literal["passed", "failed", "timeout", "memory", "crashed"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of running tests against a program.

    Attributes:
      status: ``passed`` if every test passed; ``failed`` if one did not; ``timeout`` and ``memory`` if the program
        exceeded that limit; ``crashed`` if it exited or did not load.
      passed: names of the tests that passed, in their order.
      failed: error text by name of the test; an error outside of tests has the name "".
      seconds: wall-clock time.
    """

    status: Status
    passed: tuple[str, ...]
    failed: dict[str, str]
    seconds: float = 0.0

    def summary(self, characters: int = 1500) -> str:
        """A report for readers: how many tests passed, and the failures, each cut to its share of ``characters``."""
        total = len(self.passed) + sum(1 for name in self.failed if name)
        head = f"{len(self.passed)} of {total} tests passed."
        share = max(80, characters // max(1, len(self.failed)))
        parts = [f"{name or self.status}: {_cut(text.strip(), share)}" for name, text in self.failed.items()]
        return "\n".join([head, *parts])[:characters]


def _cut(text: str, characters: int) -> str:
    """The last ``characters`` of a text: the error message is at its end."""
    return text if len(text) <= characters else f"...{text[3 - characters :]}"


def test_names(tests: str, case: str = "TestCases") -> tuple[str, ...]:
    """Names of the test methods of class ``case`` and of its base classes in the same source, in their order.

    Raises:
      SyntaxError: for tests that are not Python.
    """
    classes = {node.name: node for node in parse(tests).body if isinstance(node, ast.ClassDef)}

    def names(name: str, seen: frozenset[str]) -> list[str]:
        if name not in classes or name in seen:
            return []
        inherited = [method for base in classes[name].bases for method in names(ast.unparse(base), seen | {name})]
        functions = [n.name for n in classes[name].body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        return [*inherited, *(method for method in functions if method.startswith("test"))]

    return tuple(dict.fromkeys(names(case, frozenset())))


def run_tests(
    program: str,
    tests: str,
    limits: Limits,
    case: str = "TestCases",
    stop: threading.Event | None = None,
    weak: bool = False,
) -> Verdict:
    """Runs the tests of class ``case`` against the program; with ``case=""`` all tests.

    Args:
      stop, weak: as in ``run_program``.

    Raises:
      SandboxError: if the sandbox cannot be built. Errors of program and tests are part of the verdict.
    """
    try:
        expected = test_names(tests, case)
    except SyntaxError as error:
        return Verdict("crashed", (), {"": f"the tests are no Python: {error}"})
    if case and not expected:
        return Verdict("crashed", (), {"": f"the tests have no class {case} with a test"})
    work = {"program": program, "tests": tests, "case": case}
    if parts := split(program, tests):
        ended, lines = _run(work | dataclasses.asdict(parts), "apart", limits, stop, weak)
        if not any(outcome == "together" for _, outcome, _ in lines):
            return _verdict(expected, lines, ended)
    ended, lines = _run(work, "together", limits, stop, weak)
    return _verdict(expected, lines, ended)


def _run(
    work: dict[str, Any], how: Literal["apart", "together"], limits: Limits, stop: threading.Event | None, weak: bool
) -> tuple[Ended, list[tuple[str, str, str]]]:
    """Runs the tests once; returns how the runner ended, and its report."""
    secret = secrets.token_hex(16)
    ended = run_program(
        ("-s", "-P", "-c", START, "{program}", "{message}", "{report}", how),
        {f"inside/{name}": (INSIDE / name).read_text(encoding="utf-8") for name in RUNNER},
        limits,
        message=json.dumps(work | {"secret": secret}).encode(),
        stop=stop,
        weak=weak,
    )
    return ended, _read(ended.report, secret)


def _read(report: bytes, secret: str) -> list[tuple[str, str, str]]:
    """The outcomes in a report, as (test, outcome, detail): lines that begin with the secret. Other lines are left
    out."""
    lines = report.decode(errors="replace").splitlines()
    return [outcome for line in lines if line.startswith(f"{secret} ") and (outcome := _outcome(line[len(secret) :]))]


def _outcome(line: str) -> tuple[str, str, str] | None:
    try:
        test, outcome, detail = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    valid = isinstance(test, str) and isinstance(outcome, str) and isinstance(detail, str)
    return (test, outcome, _clean(detail)) if valid else None


def _clean(text: str) -> str:
    """The text without lone surrogates, which no file can hold."""
    return text.encode(errors="replace").decode()


def _verdict(expected: tuple[str, ...], lines: list[tuple[str, str, str]], ended: Ended) -> Verdict:
    failed = {name: detail for name, outcome, detail in reversed(lines) if outcome == "failed"}
    counts = collections.Counter(name for name, outcome, _ in lines if outcome == "passed")
    names = dict.fromkeys([*expected, *(name for name in counts if not expected)])
    passed = tuple(name for name in names if counts[name] and name not in failed)
    not_run = {name: "was not run" for name in expected if not counts[name] and name not in failed}
    if ended.how in ("timeout", "memory"):
        limit = {"timeout": "time", "memory": "memory"}[ended.how]
        return Verdict(ended.how, passed, {"": f"ended for using too much {limit}", **failed, **not_run}, ended.seconds)
    if ("", "done", "") not in lines:
        how = f"signal {ended.code}" if ended.how == "killed" else f"exit status {ended.code}"
        detail = failed.get("") or f"ended before its tests did ({how})\n{ended.output[-500:]}"
        return Verdict("crashed", passed, {**failed, "": detail, **not_run}, ended.seconds)
    failed |= not_run | {name: "was reported more than once" for name in expected if counts[name] > 1}
    if not names and not failed:
        failed[""] = "there is no test"
    return Verdict("failed" if failed else "passed", passed, failed, ended.seconds)
