"""Results shared by several processes, so that equal requests are paid once.

Each run has a tape of its own. What is missing there is looked up here, in a second tape that all of them share:

    process 1: its tape -> miss -> shared tape -> miss -> claim -> inner --> shared tape, tape 1
    process 2: its tape -> miss -> shared tape -> miss -> claimed: wait ---> shared tape, tape 2

A run cannot tell who paid: its tape, ledger and budget count a shared result as if it had asked for it itself. So what
a run does never depends on the runs beside it.

A claim is a lock on one byte of a file, which the end of its process releases: no claim outlives a killed process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from optimas_jax.llm.base import Completion, CompletionRequest, Effect, Result, count_prompt
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.llm.tape import Tape, TapeError

R = TypeVar("R", bound=Result)

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 0.5  # seconds between two looks for another process's result
_BYTES = 2**62  # bytes of the file of claims, which stays empty


class SharedCompleter:
    """Answers from the shared tape; asks ``inner`` for what is missing there and no other process is asking for."""

    def __init__(self, folder: Path, inner: Any):
        """``inner`` answers completions and executes programs (``llm.sandbox.SandboxCompleter``). The folder is made.

        Raises:
          TapeError: its file system has no locks.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._claims = os.open(folder / "claims", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX, 1, _BYTES)  # SQLite does not wait where two make one file at once
        except OSError as error:
            os.close(self._claims)
            raise TapeError(
                f"{folder} is on a file system without locks ({error}), so that processes cannot share results there: "
                "use a folder on a local disk, or a file system with locks (Lustre: mounted with flock)"
            ) from error
        try:
            self._tape = Tape(folder / "tape.sqlite", shared=True)
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _BYTES)
        self._inner = inner

    async def complete(self, request: CompletionRequest) -> Completion:
        return await self._get(request, lambda: self._inner.complete(request))

    async def execute(self, request: ExecutionRequest) -> Execution:
        return await self._get(request, lambda: self._inner.execute(request))

    def prompt_tokens(self, request: CompletionRequest) -> int | None:
        return count_prompt(self._inner, request)

    def close(self) -> None:
        self._tape.close()
        os.close(self._claims)

    async def _get(self, effect: Effect[R], perform: Callable[[], Awaitable[R]]) -> R:
        key, wait = effect.key, _FIRST_WAIT
        while True:
            result = await self._tape.find(effect, key)
            if result is not None:
                return result
            with self._claim(key) as claimed:
                if claimed:
                    result = await self._tape.find(effect, key)  # it may have come between the look and the claim
                    if result is None:
                        result = await perform()
                        await self._tape.record(effect, key, result)
                    return result
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    @contextlib.contextmanager
    def _claim(self, key: str) -> Iterator[bool]:
        """Whether this process may ask for the result of ``key``, until the end of the block. Within a process equal
        requests are one already (``llm.taped``), and a lock does not tell them apart."""
        offset = int(key[:16], 16) % _BYTES
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, offset)
