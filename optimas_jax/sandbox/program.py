"""Runs programs that a model wrote, in a child process with limits and isolation; removes all that they leave.

Two kinds of isolation, the stronger one first:

    jail     Linux (5.12 or newer) whose kernel lets this user create namespaces. No network. Visible files: the
             interpreter and the system's libraries, read-only; nothing of the user's home. A separate process tree.
             Files that the program writes are in memory, of limited size, and deleted at its end. See ``walls``.
    limits   elsewhere, or where a container forbids namespaces. Time, memory, file size and number of processes are
             limited, the environment is empty and the working folder is a scratch folder. But the program can reach the
             network and all files that this user can read and write. Started by root it runs as user 65534, with access
             to the interpreter's folders; if that user cannot enter the folders above them, the program cannot start
             another Python.

``wall_kind`` returns the kind; ``check_walls`` refuses the weaker one where a configuration asks for it. Neither
protects against errors of the kernel. Not for Windows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import selectors
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optimas_jax.sandbox import walls

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix", "/opt")
_GRACE = 10.0  # seconds that a supervisor may take longer than its time before it is ended itself


class SandboxError(RuntimeError):
    """Programs cannot be run here, or not with the isolation that the configuration asks for."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      seconds: wall-clock time of the program.
      cpu_seconds: CPU time of each process.
      memory_mb: address space of each process, and memory of all processes together.
      file_mb: size of a file.
      disk_mb: size of all files (in a jail).
      processes: number of processes and threads.
      output_bytes: bytes of standard output and error, together, that are kept; the rest is read and dropped.
    """

    seconds: float = 240.0
    cpu_seconds: int = 60
    memory_mb: int = 4096
    file_mb: int = 64
    disk_mb: int = 256
    processes: int = 64
    output_bytes: int = 20_000

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in dataclasses.asdict(self).items() if not value > 0}
        if wrong:
            raise ValueError(
                f"limits are above 0, got {', '.join(f'{name} = {value}' for name, value in wrong.items())}"
            )


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
) -> Ended:
    """Runs ``python ARGUMENTS`` in a new folder, with a fixed environment and empty standard input.

    Args:
      arguments: of the interpreter. ``{program}`` stands for the folder with ``files``, ``{message}`` and ``{report}``
        for file descriptors.
      files: text by name; read-only for the program.
      message: bytes that the program can read from the descriptor ``{message}``; they are gone once it is closed.
      jail: whether to use a jail; default: if one can be built.
      stop: ends the program when it is set.

    Raises:
      SandboxError: if the walls cannot be built, or the program was stopped.
    """
    jail = wall_kind() == "jail" if jail is None else jail
    with tempfile.TemporaryDirectory(prefix="optimas-sandbox-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)
        for name in ("program", "root", "work", "home", "tmp"):
            (scratch / name).mkdir()
        if os.geteuid() == 0 and not jail:
            for name in ("work", "home", "tmp"):
                os.chown(scratch / name, walls.NOBODY, walls.NOBODY)
        for name, text in files.items():
            (scratch / "program" / name).parent.mkdir(exist_ok=True)
            (scratch / "program" / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        with tempfile.TemporaryFile() as message_file:
            message_file.write(message)
            message_file.seek(0)
            return _run(arguments, scratch, limits, message_file.fileno(), jail, stop or threading.Event())


def _run(
    arguments: Sequence[str], scratch: Path, limits: Limits, message: int, jail: bool, stop: threading.Event
) -> Ended:
    pipes = {name: os.pipe() for name in ("output", "report", "status")}
    ends = {name: write_end for name, (_, write_end) in pipes.items()}
    started = time.monotonic()
    try:
        plan = _plan(arguments, scratch, limits, jail, message, ends["report"], ends["status"])
        process = subprocess.Popen(  # noqa: S603 (our own file, no shell)
            [sys.executable, "-I", "-S", walls.__file__, json.dumps(plan)],
            stdin=subprocess.DEVNULL,
            stdout=ends["output"],
            stderr=ends["output"],
            pass_fds=(message, ends["report"], ends["status"]),
            env={},
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"no process for the sandbox ({error})") from error
    finally:
        for write_end in ends.values():
            os.close(write_end)
    try:
        caps = {"output": limits.output_bytes, "report": 4_000_000, "status": 10_000}
        received = _drain({name: pipes[name][0] for name in pipes}, caps, started + limits.seconds + _GRACE, stop)
    finally:
        for read_end, _ in pipes.values():
            os.close(read_end)
        _end(process)
    seconds = time.monotonic() - started
    if stop.is_set():
        raise SandboxError("the program was stopped")
    ended: dict[str, Any] = json.loads((received["status"] or b"{}").splitlines()[0])
    if ended.get("how") == "walls" or (not ended and seconds < limits.seconds):
        output = received["output"].decode(errors="replace")
        raise SandboxError(f"the walls of the sandbox could not be built: {ended.get('detail') or output[-2000:]}")
    return Ended(
        how=ended.get("how", "timeout"),
        code=ended.get("code", -1),
        output=received["output"].decode(errors="replace"),
        report=received["report"],
        seconds=seconds,
    )


def _plan(
    arguments: Sequence[str], scratch: Path, limits: Limits, jail: bool, message: int, report: int, status: int
) -> dict[str, Any]:
    """The plan that ``walls`` reads, as plain data."""
    writable = walls.TMP if jail else str(scratch)
    program = "/program" if jail else f"{scratch}/program"
    marks = {"{program}": program, "{message}": str(message), "{report}": str(report)}
    filled = list(arguments)
    for mark, text in marks.items():
        filled = [argument.replace(mark, text) for argument in filled]
    mb = 1024 * 1024
    return {
        "jail": jail,
        "command": [sys.executable, *filled],
        "python": [_home(), *filter(os.path.isdir, site.getsitepackages())],
        "cwd": f"{writable}/work",
        "environment": {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": f"{writable}/home",
            "TMPDIR": writable if jail else str(scratch / "tmp"),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        "folder": str(scratch / "program"),
        "root": str(scratch / "root"),
        "visible": _visible(),
        "status": status,
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_mb * mb,
        "disk_bytes": limits.disk_mb * mb,
        "processes": limits.processes,
        "limits": {
            "CPU": limits.cpu_seconds,
            "AS": limits.memory_mb * mb,
            "FSIZE": limits.file_mb * mb,
            "CORE": 0,
            "NOFILE": 256,
        },
    }


def _home() -> str:
    """Installation folder of the interpreter; a virtual environment only links to it."""
    return str(Path(sys.executable).resolve().parents[1])


@functools.cache
def _visible() -> list[str]:
    """Paths that are visible in a jail: the system's libraries, and the interpreter with its packages."""
    interpreter = [sys.prefix, sys.base_prefix, _home(), *site.getsitepackages()]
    wanted = [*_SYSTEM, *interpreter, *map(os.path.realpath, interpreter)]
    paths: list[str] = []
    for path in sorted({os.path.abspath(path) for path in wanted}, key=len):
        inside = any(path == known or path.startswith(f"{known}/") for known in paths if not os.path.islink(known))
        if path != "/" and os.path.exists(path) and not inside:
            paths.append(path)
    return paths


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


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process of ``walls`` if it still runs, and with it all processes inside."""
    if process.poll() is None:
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@functools.cache
def _why_no_jail() -> str:
    """The reason that no jail can be built here; empty if one can."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    try:
        ended = run_program(("-I", "-S", "-c", "pass"), {}, Limits(seconds=20), jail=True)
    except SandboxError as error:
        return str(error)
    return "" if (ended.how, ended.code) == ("exited", 0) else f"a first program {ended.how}: {ended.output[-500:]}"


def wall_kind() -> Literal["jail", "limits"]:
    """The strongest kind of isolation here, determined by trying it once."""
    return "limits" if _why_no_jail() else "jail"


def check_walls(isolation: Literal["required", "preferred"]) -> str:
    """A warning if there is no isolation here, else "".

    Raises:
      SandboxError: if a jail is required and cannot be built, or no program can be run at all.
    """
    reason = _why_no_jail()
    if not reason:
        return ""
    if isolation == "required":
        raise SandboxError(
            f"model-written programs would run without isolation: {reason}. Allow user namespaces on this machine, run "
            "in a container that allows them, or accept limits without isolation (isolation=preferred)"
        )
    run_program(("-I", "-S", "-c", "pass"), {}, Limits(seconds=20), jail=False)
    return (
        "model-written programs run with limits but WITHOUT isolation: they can reach the network and this user's "
        f"files ({reason})"
    )
