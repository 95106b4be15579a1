"""The bridge to the sandbox: executions of programs are requests like those to a model.

An execution leaves the process, so it belongs on the tape (``llm.tape``): a program that was run against its tests is
not run again, whether it is deterministic or not, the same command says the same, and the ledger shows the seconds.
What the key holds is all that the verdict depends on: program, tests, limits and the version of Python.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from optimas_jax.core.system import RunContext
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.base import Completer, Completion, CompletionRequest, Message
from optimas_jax.sandbox.program import Limits, SandboxError
from optimas_jax.sandbox.unittests import Verdict, run_tests

PREFIX = "sandbox:"
MODEL = f"{PREFIX}python{sys.version_info.major}.{sys.version_info.minor}"


class SandboxStopped(StopRun):
    """The sandbox could not run a program."""


async def tested(program: str, tests: str, limits: Limits, case: str, context: RunContext) -> Verdict:
    """The verdict of tests on a program (``sandbox.unittests.run_tests``), as a component or a judge asks for it."""
    parts = {"program": program, "tests": tests, "case": case, "limits": json.dumps(dataclasses.asdict(limits))}
    request = CompletionRequest(
        model=MODEL,
        messages=tuple(Message(name, text) for name, text in parts.items()),
        max_tokens=0,
        role=context.component,
    )
    completion: Completion = await context.completer.complete(request)
    data = json.loads(completion.text)
    return Verdict(**{**data, "passed": tuple(data["passed"])}, seconds=completion.seconds)


class SandboxCompleter:
    """Answers requests for executions, and passes all others on; as many programs at once as there are processors."""

    def __init__(self, inner: Completer):
        self._inner = inner
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "sandbox")

    async def complete(self, request: CompletionRequest) -> Completion:
        """Raises ``SandboxStopped`` if the sandbox cannot run programs; what a program does wrong is in its verdict."""
        if not request.model.startswith(PREFIX):
            return await self._inner.complete(request)
        stop = threading.Event()
        try:
            verdict = await asyncio.get_running_loop().run_in_executor(self._pool, _execute, request, stop)
        except SandboxError as error:
            raise SandboxStopped(str(error)) from error
        finally:
            stop.set()  # a run that was cancelled does not wait for its programs
        text = json.dumps({name: getattr(verdict, name) for name in ("status", "passed", "failed")})
        return Completion(text, Outcome.OK, prompt_tokens=0, completion_tokens=0, seconds=verdict.seconds)


def _execute(request: CompletionRequest, stop: threading.Event) -> Verdict:
    parts = {message.role: message.content for message in request.messages}
    limits = Limits(**json.loads(parts["limits"]))
    return run_tests(parts["program"], parts["tests"], limits, parts["case"], stop)
