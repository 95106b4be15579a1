"""Modules of this package that run in a process of their own, which ends with the process that started it."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.shipped import python_path

INTERRUPTED, TERMINATED = 130, 143  # exit codes of a process that was interrupted, or stopped by SIGTERM
STOPPED = (INTERRUPTED, TERMINATED)
LEAVE_SECONDS = 0.5  # that threads have to end; they may wait for answers that are no longer needed
_PARENT = "OPTIMAS_JAX_PARENT"  # variable that names the process of ``run_module``
_LOOK_SECONDS = 0.5  # between two checks whether the parent lives
_AGAIN_SECONDS = 0.05  # until a signal that was ignored is sent again
_END_SECONDS = 15.0  # that a process without parent has for an orderly end


async def run_module(
    module: str,
    arguments: Sequence[str],
    log: Path,
    *,
    inherit: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[int, str]:
    """Runs ``python -m module arguments`` and appends its output to ``log``.

    If the caller is cancelled, the process is terminated, and its end is awaited.

    Args:
      inherit: descriptors that stay open in the process, such as the descriptor of a lock.
      variables: added to the environment of this process.
      cwd: working folder of the process; by default the folder of this process.

    Returns:
      Exit code, and the error message (after ``error: ``) or the end of its output.
    """
    paths = python_path(os.environ.get("PYTHONPATH", ""))
    required = {"PYTHONPATH": os.pathsep.join(paths), _PARENT: str(os.getpid())}
    with log.open("ab") as sink:
        start = sink.tell()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdout=sink,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **(variables or {}), **required},
            cwd=cwd,
            pass_fds=tuple(inherit),
        )
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    with log.open("rb") as source:
        source.seek(start)
        output = source.read().decode(errors="replace")
    _, error, message = output.rpartition("\nerror: ")
    return code, message.strip() if error else output.strip()[-500:]


def end_with_parent() -> None:
    """Ends this process, as an interrupt does, once the process that started it by ``run_module`` is gone: a killed
    parent cannot end it. Does nothing in a process that was started otherwise."""
    parent = int(os.environ.pop(_PARENT, "0"))  # removed: processes that this one starts do not watch that parent
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_END_SECONDS)
        os._exit(INTERRUPTED)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class Terminated(KeyboardInterrupt):
    """Raised at SIGTERM, by which a scheduler stops a process."""


def interrupt_on_terminate() -> None:
    """Makes SIGTERM the same as an interrupt. Neither is lost in a callback of the garbage collector, where Python only
    prints what is raised: the signal is sent again soon after."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
        if getattr(sys.unraisablehook, "func", None) is not _send_again:
            sys.unraisablehook = functools.partial(_send_again, sys.unraisablehook)


def _send_again(report: Callable[[Any], Any], unraisable: Any) -> None:
    """Sends the signal of an ignored interrupt again; ``report`` gets all other ignored exceptions."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        report(unraisable)
        return
    number = signal.SIGTERM if issubclass(unraisable.exc_type, Terminated) else signal.SIGINT
    threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()


def end_on_signals(code: int) -> None:
    """From here on SIGTERM and an interrupt end the process at once, with its exit code: its work is done, and what
    Python still calls at the end would print their traceback."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(code))


def code_of(stopped: KeyboardInterrupt, seconds: float = LEAVE_SECONDS) -> int:
    """The exit code of a process that was stopped. The process ends after some seconds, even if its threads still wait:
    what was paid for is on disk."""
    code = TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED

    def leave() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=leave, name="leave", daemon=True).start()
    return code
