"""Results shared by several processes, on one machine or on many with one file system, so that equal requests are paid
once.

Each run has a tape of its own. Results that are missing there are looked up here, in a folder that all runs share:

    process 1: its tape -> miss -> shared -> miss -> claim -> inner --> shared, tape 1
    process 2: its tape -> miss -> shared -> miss -> claimed: wait ---> shared, tape 2

The tape, ledger and budget of a run count a shared result as if the run had asked for it itself, whichever run paid. So
the behaviour of a run never depends on the runs beside it.

A result is a file. SQLite, which the tape uses, is for the processes of one machine: its log needs their common memory,
and if the locks of a file system do not hold between machines the database would be damaged. Files are then still
right, and a request may be paid once by each machine.

A claim is a lock on one byte of a file, which the end of its process releases: no claim outlives a killed process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from optimas_jax.core.text.json_text import parse_json
from optimas_jax.llm.base import Completion, CompletionRequest, Effect, Result, count_prompt
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.llm.tapes.tape import TapeError

R = TypeVar("R", bound=Result)

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 0.5  # seconds between two look-ups of another process's result
_BYTES = 2**62  # offsets in the file of claims, which stays empty
_THREADS = 8  # threads that read and write files: on a network file system each access takes milliseconds


class ResultFiles:
    """Results of effects, each in a file named by its key. Safe for use from several threads, processes, machines."""

    def __init__(self, folder: Path):
        self._folder = folder

    def get(self, effect: Effect[R], *, fresh: bool = False) -> R | None:
        """The result of an effect, or None; raises ``TapeError`` if it is damaged or cannot be read.

        Args:
          fresh: whether it must be found if another machine has written it before this call. A network file system
            caches for a while that a file is missing, but not past a listing of the folder.
        """
        path = self._path(effect.key)
        try:
            if fresh:
                os.listdir(self._folder)  # another machine may have created the folder of the next line
                os.listdir(path.parent)
            return effect.read(parse_json(path.read_bytes())["result"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise TapeError(
                f"the shared result {path} is damaged ({error}): delete it, and it is asked for, and paid for, again"
            ) from error
        except OSError as error:
            raise TapeError(f"cannot read {path} ({error}). The same command resumes") from error

    def put(self, effect: Effect[R], result: R) -> None:
        """Writes a result, whole or not at all, even if the machine loses its power."""
        data = {"kind": effect.kind, "request": effect.to_json(), "result": result.to_json()}
        path = self._path(effect.key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(suffix=".partial", dir=path.parent)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            raise TapeError(
                f"cannot write to {self._folder} ({error}). Everything recorded before is kept: make room on the disk, "
                "then run the same command again"
            ) from error

    def __len__(self) -> int:
        """Number of results."""
        return sum(1 for _ in self._folder.glob("??/*.json"))

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


class SharedCompleter:
    """Answers from shared results; asks ``inner`` for missing results that no other process is asking for."""

    def __init__(self, folder: Path, inner: Any):
        """``inner`` answers completions and executes programs (``llm.sandbox.SandboxCompleter``)."""
        folder.mkdir(parents=True, exist_ok=True)
        self._claims = os.open(folder / "claims", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._results = ResultFiles(folder)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shared-results")
        self._inner = inner

    async def complete(self, request: CompletionRequest) -> Completion:
        return await self._get(request, lambda: self._inner.complete(request))

    async def execute(self, request: ExecutionRequest) -> Execution:
        return await self._get(request, lambda: self._inner.execute(request))

    def prompt_tokens(self, request: CompletionRequest) -> int | None:
        return count_prompt(self._inner, request)

    def close(self) -> None:
        self._threads.shutdown()
        os.close(self._claims)

    async def _get(self, effect: Effect[R], perform: Callable[[], Awaitable[R]]) -> R:
        wait = _FIRST_WAIT
        while True:
            result = await self._in_thread(lambda: self._results.get(effect))
            if result is not None:
                return result
            with self._claim(effect.key) as claimed:
                if claimed:
                    # It may have been written between the look-up and the claim.
                    result = await self._in_thread(lambda: self._results.get(effect, fresh=True))
                    return await self._ask(effect, perform) if result is None else result
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    async def _ask(self, effect: Effect[R], perform: Callable[[], Awaitable[R]]) -> R:
        result = await perform()
        await self._in_thread(lambda: self._results.put(effect, result))
        return result

    async def _in_thread(self, action: Callable[[], Any]) -> Any:
        """Runs an action in a thread, to its end even if the caller is cancelled: the caller's claim must cover it."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, action)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise

    @contextlib.contextmanager
    def _claim(self, key: str) -> Iterator[bool]:
        """Yields whether this process may ask for the result of ``key``, until the end of the block. A lock does not
        tell the requests of one process apart, but ``llm.tapes.taped`` has merged equal ones already.

        Raises:
          TapeError: on a file system without locks.
        """
        offset = int(key[:16], 16) % _BYTES
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise TapeError(
                    f"the file system of the shared results has no locks ({error}), which keep equal requests from "
                    "being paid twice: use a --workdir on another one (a local disk, NFS 4, Lustre mounted with flock)"
                ) from error
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, offset)
