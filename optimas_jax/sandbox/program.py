"""Runs programs that a model wrote, in isolated child processes, and removes everything that they leave.

Two kinds of isolation, the stronger one first:

    jail    Linux whose kernel lets this user create namespaces, by bubblewrap where ``bwrap`` is installed (0.8 or
            newer), else by our own walls (Linux 5.12).
    limits  where namespaces are forbidden, as in most containers. By Landlock and seccomp, and as a user of its own for
            every program if root starts it.

These promises hold in both, and are tested by ``tests/sandbox/test_attacks.py`` (effects outside, leftovers, memory),
``test_sandbox.py``:

- Limited are time; memory of all processes, counted every 40 ms (what forked processes share counts once, up to twice
  the limit; sockets with their buffers; no other shared memory can be made); processes and threads; the size of a file,
  of all files and of the output.
- Visible files: the interpreter with its packages and the system's libraries, read-only; nothing of any home, project,
  key or other program. The environment is stated here. No descriptor is inherited but the program's own channels.
- Files are written to a scratch folder that is removed, however it is nested. No System V objects, queues, keys.
- No network. No signal to, no limit, memory or environment of a process that is not the program's own.
- No process of the program lives on after it, also if this process is killed.
- Whatever a program does, it ends as ``Ended``; ``SandboxError`` means that it was not run.

Where they differ:

                        jail                                  limits
    network             a loopback of its own                 none: no sockets but pairs
    /tmp, /dev/shm      its own                               not to be written; TMPDIR names a folder in the scratch
    processes seen      its own                               names of all of this machine
    disk_mb             the kernel refuses more               ended within a second
    modes, times        as set                                as set for root's programs; else calls have no effect
    needs               namespaces                            as root Linux 6.2, else 6.12, for Landlock; seccomp

So ``multiprocessing``'s locks, queues and pools work in a jail only; and where the program's user cannot enter the
folders above the interpreter (root's home), limits mode cannot start another Python.

Where limits mode cannot hold these promises, nothing runs unless weak isolation is asked for by name
(``isolation=weak``, ``check_walls``); ``lacking`` tells what is missing. Neither kind protects against errors of the
kernel. Not for Windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optimas_jax.sandbox import plan as plans
from optimas_jax.sandbox.inside import landlock, seccomp
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.plan import Walls

Isolation = Literal["required", "preferred", "weak"]
_GRACE = 10.0  # seconds beyond its time limit after which a supervisor is killed
_NOTHING = ("-I", "-S", "-c", "pass")


class SandboxError(RuntimeError):
    """Programs cannot be run here, or not with the isolation that the configuration asks for."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """The end of a program.

    Attributes:
      how: ``exited``; ``killed`` by a signal (sent by itself or by a limit); ``timeout`` or ``memory`` for a limit that
        was exceeded.
      code: exit status, or number of the signal.
      output: beginning of its standard output and error.
      report: bytes that it wrote to its report channel.
      seconds: wall-clock time.
    """

    how: Literal["exited", "killed", "timeout", "memory"]
    code: int
    output: str
    report: bytes
    seconds: float


def run_program(
    arguments: Sequence[str],
    files: Mapping[str, str],
    limits: Limits,
    message: bytes = b"",
    jail: bool | None = None,
    stop: threading.Event | None = None,
    weak: bool = False,
) -> Ended:
    """Runs ``python ARGUMENTS`` in a new folder, with a fixed environment and empty standard input.

    Args:
      arguments: of the interpreter. ``{program}`` stands for the folder with ``files``, ``{message}`` and ``{report}``
        for file descriptors.
      files: text by name; read-only for the program.
      message: bytes that the program can read from the descriptor ``{message}``; they are gone once it is closed.
      jail: whether to use a jail; default: if one can be built.
      stop: ends the program when it is set.
      weak: without a jail, run even where ``lacking`` names missing walls.

    Raises:
      SandboxError: the walls cannot be built, or the program was stopped. Nothing that the program does raises it.
    """
    jail = wall_kind() == "jail" if jail is None else jail
    if not jail and not weak and (missing := lacking()):
        raise SandboxError(f"programs would run with weak walls: {missing}. {_WAY_OUT}")
    walls: Walls = "limits" if not jail else "bubblewrap" if _has_bubblewrap() else "namespaces"
    return _run_in(walls, arguments, files, limits, message, stop or threading.Event(), weak)


def _run_in(
    walls: Walls,
    arguments: Sequence[str],
    files: Mapping[str, str],
    limits: Limits,
    message: bytes = b"",
    stop: threading.Event | None = None,
    weak: bool = False,
) -> Ended:
    try:
        with _scratch(files) as scratch, plans.user_of_its_own() as user, tempfile.TemporaryFile() as message_file:
            if user and walls == "limits":
                for name in ("work", "home", "tmp"):
                    os.chown(scratch / name, user, user)
            message_file.write(message)
            message_file.seek(0)
            pipes = {name: os.pipe() for name in ("output", "report", "status")}
            ends = {name: write_end for name, (_, write_end) in pipes.items()}
            descriptors = {"message": message_file.fileno(), "report": ends["report"], "status": ends["status"]}
            plan = plans.make(arguments, scratch, limits, walls, user, weak, descriptors)
            return _run(plan, limits, pipes, stop or threading.Event())
    except OSError as error:
        raise SandboxError(f"no place or process for the sandbox ({error})") from error


@contextlib.contextmanager
def _scratch(files: Mapping[str, str]) -> Iterator[Path]:
    """A folder for one program, with its files; removed afterwards with everything in it."""
    scratch = Path(tempfile.mkdtemp(prefix="optimas-sandbox-"))
    try:
        scratch.chmod(0o755)
        for name in ("program", "root", "work", "home", "tmp"):
            (scratch / name).mkdir()
        for name, text in files.items():
            (scratch / "program" / name).parent.mkdir(exist_ok=True)
            (scratch / "program" / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        yield scratch
    finally:
        _remove(scratch)


def _remove(folder: Path) -> None:
    """Removes a folder, however deep and whatever its rights. The system's commands remove what Python cannot (at 1,000
    levels it raises ``RecursionError``)."""
    for words in ((), ("rm", "-rf", "--"), ("chmod", "-R", "u+rwx", "--"), ("rm", "-rf", "--")):
        if not words:
            with contextlib.suppress(OSError, RecursionError):
                shutil.rmtree(folder)
        elif folder.exists():
            subprocess.run([*words, folder], capture_output=True, check=False)  # noqa: S603


def _run(plan: dict[str, Any], limits: Limits, pipes: Mapping[str, tuple[int, int]], stop: threading.Event) -> Ended:
    """Runs the supervisor with its plan, and reads the output of the supervisor and the program."""
    started = time.monotonic()
    ends = {name: write_end for name, (_, write_end) in pipes.items()}
    try:
        process = subprocess.Popen(  # noqa: S603 (our own command, no shell)
            plans.command(plan),
            stdin=subprocess.DEVNULL,
            stdout=ends["output"],
            stderr=ends["output"],
            pass_fds=(int(plan["message"]), ends["report"], ends["status"]),
            env={},
            start_new_session=True,
        )
    except BaseException:
        for read_end, _ in pipes.values():
            os.close(read_end)
        raise
    finally:
        for write_end in ends.values():
            os.close(write_end)
    try:
        caps = {"output": limits.output_bytes, "report": 4_000_000, "status": 10_000}
        received = _drain({name: pipes[name][0] for name in pipes}, caps, started + limits.seconds + _GRACE, stop)
    finally:
        for read_end, _ in pipes.values():
            os.close(read_end)
        _end(process, walls=plan["walls"])
    if stop.is_set():
        raise SandboxError("the program was stopped")
    return _ended(received, time.monotonic() - started, limits)


def _ended(received: Mapping[str, bytes], seconds: float, limits: Limits) -> Ended:
    output = received["output"].decode(errors="replace")
    lines: dict[str, dict[str, Any]] = {line["how"]: line for line in map(json.loads, received["status"].splitlines())}
    if "walls" in lines or "started" not in lines:
        detail = lines.get("walls", {}).get("detail") or output[-2000:]
        raise SandboxError(f"the walls of the sandbox could not be built: {detail}")
    del lines["started"]
    lost = {"how": "timeout" if seconds >= limits.seconds else "killed", "code": signal.SIGKILL}
    end = next(iter(lines.values()), lost)  # a supervisor that reported no end was killed
    return Ended(end["how"], end["code"], output, received["report"], seconds)


def _drain(
    pipes: Mapping[str, int], caps: Mapping[str, int], deadline: float, stop: threading.Event
) -> dict[str, bytes]:
    """Reads all pipes to their end, or until the deadline or ``stop``; returns the beginning of each (``caps``)."""
    received = {name: bytearray() for name in pipes}
    with selectors.DefaultSelector() as selector:
        for name, pipe in pipes.items():
            selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map() and time.monotonic() < deadline and not stop.is_set():
            for key, _ in selector.select(0.2):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fd)
                received[key.data] += data[: caps[key.data] - len(received[key.data])]
    return {name: bytes(data) for name, data in received.items()}


def _end(process: subprocess.Popen[bytes], walls: Walls) -> None:
    """Ends the supervisor if it is still running, and with it all processes inside."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
        return
    if walls == "limits":  # it ends the program's processes first
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(_GRACE)
            return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# Which walls there are

_WAY_OUT = (
    "Allow user namespaces on this machine, or run in a container that allows them; isolation=weak runs programs all "
    "the same"
)


@functools.cache
def _has_bubblewrap() -> bool:
    """Whether bubblewrap is installed, knows our options and is allowed to work."""
    return bool(plans.bubblewrap()) and not _why_not("bubblewrap")


@functools.cache
def _why_no_jail() -> str:
    """The reason that no jail can be built here; empty if one can."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    return "" if _has_bubblewrap() else _why_not("namespaces")


def _why_not(walls: Walls) -> str:
    try:
        ended = _run_in(walls, _NOTHING, {}, Limits(seconds=20))
    except SandboxError as error:
        return str(error)
    return "" if (ended.how, ended.code) == ("exited", 0) else f"a first program {ended.how}: {ended.output[-500:]}"


def wall_kind() -> Literal["jail", "limits"]:
    """The strongest kind of isolation here, determined by trying it once."""
    return "limits" if _why_no_jail() else "jail"


def lacking() -> str:
    """Promises that limits mode cannot keep here, and the reason; "" if it keeps all."""
    since = landlock.TRUNCATE_SINCE if os.geteuid() == 0 else landlock.SCOPES_SINCE
    if not seccomp.available():
        return "network, shared memory and other processes are open without seccomp"
    if landlock.version() < since:
        reason = f"this kernel has version {landlock.version()} of Landlock, {since} is needed"
        return (
            f"files of this machine are open ({reason})"
            if os.geteuid() == 0
            else f"files and processes of this user are open ({reason})"
        )
    return ""


def check_walls(isolation: Isolation) -> str:
    """Checks the isolation that is possible here; returns "" for a jail, else a warning.

    Args:
      isolation: ``required`` asks for a jail, ``preferred`` for a jail or limits that hold what they promise; ``weak``
        accepts any isolation.

    Raises:
      SandboxError: this isolation is not possible here, or no program can be run at all.
    """
    reason = _why_no_jail()
    if not reason:
        return ""
    if isolation == "required":
        raise SandboxError(f"model-written programs would run without a jail: {reason}. {_WAY_OUT}")
    missing = lacking()
    if missing and isolation == "preferred":
        raise SandboxError(
            f"model-written programs would run with weak walls: {missing}; no jail: {reason}. {_WAY_OUT}"
        )
    run_program(_NOTHING, {}, Limits(seconds=20), jail=False, weak=True)
    if missing:
        return f"model-written programs run with WEAK walls: {missing}; no jail: {reason}"
    return f"model-written programs run without a jail, in limits mode: no sockets, pools or /tmp for them ({reason})"
