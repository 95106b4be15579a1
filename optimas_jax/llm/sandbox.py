"""Executions of programs in the sandbox, as effects: recorded on the tape like completions.

A program that was run against its tests is not run again, even if it is not deterministic: the same command gives the
same verdicts. The key covers everything that a verdict depends on: program, tests, limits and the version of Python.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

from optimas_jax.core.component import RunContext
from optimas_jax.core.text.json_text import check_record, shown
from optimas_jax.core.types import StopRun, digest
from optimas_jax.core.usage import Usage
from optimas_jax.llm.base import Completer, Completion, CompletionRequest, count_prompt
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.program import SandboxError
from optimas_jax.sandbox.unittests import Status, Verdict, run_tests

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class SandboxStopped(StopRun):
    """The sandbox could not run a program."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """The result of an ``ExecutionRequest``."""

    verdict: Verdict

    @property
    def usage(self) -> Usage:
        return Usage(calls=1, seconds=self.verdict.seconds)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self.verdict)


@dataclasses.dataclass(frozen=True)
class ExecutionRequest:
    """Tests to run against a program (``sandbox.unittests.run_tests``); an effect (``llm.base``).

    Attributes:
      program, tests: Python source.
      case: class of the tests; "" for all tests.
      limits: of time, memory and output.
      role: the component that asks; for the ledger, not part of the key.
      python: version of Python that runs them.
      weak: whether they run even where protections of the sandbox are missing (``sandbox.program.lacking``); not part
        of the key.
    """

    program: str
    tests: str
    case: str
    limits: Limits
    role: str = ""
    python: str = PYTHON
    weak: bool = False

    @property
    def kind(self) -> str:
        return "execution"

    @property
    def model(self) -> str:
        return ""

    @property
    def key(self) -> str:
        """Content address: equal requests have equal keys."""
        return digest(self.kind, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The part that affects the verdict, as plain data."""
        data = dataclasses.asdict(self)
        del data["role"], data["weak"]
        return data

    def most(self) -> Usage:
        return Usage(calls=1)

    def read(self, data: Mapping[str, Any]) -> Execution:
        """The verdict in recorded data; raises ``TypeError`` or ``ValueError`` for other data."""
        check_record(data, {"status": str, "passed": list, "failed": dict, "seconds": float})
        texts = (*data["passed"], *data["failed"].values())
        if data["status"] not in get_args(Status) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"no verdict: {shown(data)}")
        return Execution(Verdict(**{**data, "passed": tuple(data["passed"])}))


async def execute_tests(
    program: str, tests: str, limits: Limits, case: str, context: RunContext, weak: bool = False
) -> Verdict:
    """Runs tests against a program on behalf of a component or a judge, and returns the verdict."""
    request = ExecutionRequest(program, tests, case, limits, context.component, weak=weak)
    execution: Execution = await context.completer.execute(request)
    return execution.verdict


class SandboxCompleter:
    """A completer that also executes programs, as many at once as there are processors."""

    def __init__(self, inner: Completer):
        self._inner = inner
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "sandbox")

    async def complete(self, request: CompletionRequest) -> Completion:
        return await self._inner.complete(request)

    def prompt_tokens(self, request: CompletionRequest) -> int | None:
        return count_prompt(self._inner, request)

    async def execute(self, request: ExecutionRequest) -> Execution:
        """Runs the tests; raises ``SandboxStopped`` if the sandbox cannot run programs. Faults of a program are part of
        its verdict."""
        stop = threading.Event()
        arguments = (request.program, request.tests, request.limits, request.case, stop, request.weak)
        try:
            return Execution(await asyncio.get_running_loop().run_in_executor(self._pool, run_tests, *arguments))
        except SandboxError as error:
            raise SandboxStopped(str(error)) from error
        finally:
            stop.set()  # a run that was cancelled does not wait for its programs
