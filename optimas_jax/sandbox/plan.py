"""The plan for the supervisor inside the sandbox, as plain data, and the command that starts the supervisor."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import site
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optimas_jax.sandbox.inside import landlock, namespaces, watch
from optimas_jax.sandbox.limits import Limits

Walls = Literal["bubblewrap", "namespaces", "limits"]
INSIDE = Path(__file__).with_name("inside")
TMP = namespaces.TMP
START = "import sys; sys.path.insert(0, sys.argv[1]); from inside import walls; walls.main(sys.argv[2])"

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix", "/opt")
_LINKS = ("--symlink", TMP, "/dev/shm", "--symlink", "/proc/self/fd", "/dev/fd")  # noqa: S108 (the jail's own)
_USERS = 1000  # most programs of root that run at once, each as its own user


def command(plan: Mapping[str, Any]) -> list[str]:
    """The command that starts the supervisor with a plan."""
    jailed = plan["walls"] == "bubblewrap"
    folder = "/walls" if jailed else str(INSIDE.parent)
    supervisor = [sys.executable, "-I", "-S", "-c", START, folder, json.dumps(plan)]
    return [*_bubblewrap(plan), *supervisor] if jailed else supervisor


def make(
    arguments: Sequence[str],
    scratch: Path,
    limits: Limits,
    walls: Walls,
    user: int,
    weak: bool,
    descriptors: Mapping[str, int],
) -> dict[str, Any]:
    """The plan that ``inside.walls`` reads.

    Args:
      arguments: of the interpreter, with the marks ``{program}``, ``{message}`` and ``{report}``.
      scratch: folder with ``program``, and ``work``, ``home`` and ``tmp`` for the program.
      user: number of the program's user if root starts it, else 0.
      weak: whether the program runs even where Landlock and seccomp are not available.
      descriptors: file descriptors of ``message``, ``report`` and ``status``.
    """
    jail = walls != "limits"
    writable = TMP if jail else str(scratch)
    program = "/program" if jail else f"{scratch}/program"
    marks = {"{program}": program, **{f"{{{name}}}": str(number) for name, number in descriptors.items()}}
    filled = list(arguments)
    for mark, text in marks.items():
        filled = [argument.replace(mark, text) for argument in filled]
    folders = [] if jail else [str(scratch / name) for name in ("work", "home", "tmp")]
    mb = 1024 * 1024
    return {
        "walls": walls,
        "user": user,
        "weak": weak,
        "command": [sys.executable, *filled],
        "python": [_home(), *filter(os.path.isdir, site.getsitepackages())],
        "cwd": f"{writable}/work",
        "environment": _environment(f"{writable}/home", writable if jail else str(scratch / "tmp")),
        "folder": str(scratch / "program"),
        "root": str(scratch / "root"),
        "visible": _visible(),
        "writable": folders,
        "paths": _paths(program, folders),
        "message": descriptors["message"],
        "status": descriptors["status"],
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_mb * mb,
        "disk_bytes": limits.disk_mb * mb,
        "processes": limits.processes,
        "limits": {
            "CPU": limits.cpu_seconds,
            "AS": limits.memory_mb * mb,
            "FSIZE": limits.file_mb * mb,
            "CORE": 0,
            "NOFILE": watch.DESCRIPTORS,
        },
    }


def _environment(home: str, temporary: str) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": temporary,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def _home() -> str:
    """Installation folder of the interpreter; a virtual environment only links to it."""
    return str(Path(sys.executable).resolve().parents[1])


@functools.cache
def _visible() -> list[str]:
    """Paths that a program can read: the system's libraries, and the interpreter with its packages."""
    interpreter = [sys.prefix, sys.base_prefix, _home(), *site.getsitepackages()]
    wanted = [*_SYSTEM, *interpreter, *map(os.path.realpath, interpreter)]
    paths: list[str] = []
    for path in sorted({os.path.abspath(path) for path in wanted}, key=len):
        inside = any(path == known or path.startswith(f"{known}/") for known in paths if not os.path.islink(known))
        if path != "/" and os.path.exists(path) and not inside:
            paths.append(path)
    return paths


def _paths(program: str, folders: Sequence[str]) -> list[tuple[str, int]]:
    """Paths and their rights for Landlock, for programs without a jail."""
    read, write = landlock.READ, landlock.READ_FILE | landlock.WRITE_FILE
    devices = [(f"/dev/{name}", write) for name in namespaces.DEVICES]
    readable = [(path, read) for path in (*_visible(), program)]
    processes = ("/proc", landlock.READ_FILE | landlock.READ_DIR)
    everything = landlock.ALL & ~landlock.SPECIAL
    return [*readable, processes, *devices, *((path, everything) for path in folders)]


def _bubblewrap(plan: Mapping[str, Any]) -> list[str]:
    """bubblewrap's command for the jail that ``namespaces`` describes.

    Started by root, the supervisor keeps the rights that it needs to become the program's user. Other users are mapped
    to an ordinary user.
    """
    rights = ("CAP_SETUID", "CAP_SETGID", "CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")  # it reads /proc
    as_root = ["--cap-drop", "ALL", *(word for right in rights for word in ("--cap-add", right))]
    mapped = ["--unshare-user", "--uid", str(namespaces.INSIDE_USER), "--gid", str(namespaces.INSIDE_USER)]
    words = [str(bubblewrap()), *(as_root if plan["user"] else mapped)]
    words += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--as-pid-1"]
    words += ["--perms", "1777", "--size", str(plan["disk_bytes"]), "--tmpfs", TMP]
    for path in plan["visible"]:
        for parent in reversed(Path(path).parents[:-1]):
            words += ["--perms", "0755", "--dir", str(parent)]
        words += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    words += ["--ro-bind", plan["folder"], "/program", "--ro-bind", str(INSIDE), "/walls/inside"]
    words += ["--proc", "/proc", "--tmpfs", "/dev"]
    for name in namespaces.DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    words += [*_LINKS, "--remount-ro", "/dev"]
    for name in ("work", "home"):
        words += ["--perms", "0777", "--dir", f"{TMP}/{name}"]
    return [*words, "--remount-ro", "/", "--chdir", "/", "--"]


@functools.cache
def bubblewrap() -> str | None:
    """Path of the program ``bwrap``; None if it is not installed."""
    return shutil.which("bwrap") if sys.platform == "linux" else None


@contextlib.contextmanager
def user_of_its_own() -> Iterator[int]:
    """Number of a user who runs nothing else on this machine, for the time of one program; 0 if this process does not
    run as root.

    The number is claimed by binding a socket's name: no two processes can bind the same name, and the kernel frees it
    when they end.
    """
    if os.geteuid() != 0:
        yield 0
        return
    if sys.platform != "linux":
        yield 65534
        return
    highest = _highest_user()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        for number in range(highest, highest - _USERS, -1):
            with contextlib.suppress(OSError):
                claim.bind(f"\0optimas-sandbox-user-{number}")
                break
        else:
            raise OSError(f"{_USERS} programs run on this machine already")
        yield number


def _highest_user() -> int:
    """The highest number that a user can have here, without the last few, which have special meanings."""
    with open("/proc/self/uid_map") as file:
        ranges = [list(map(int, line.split())) for line in file]
    return min(2_000_000_000, max(first + count for first, _, count in ranges)) - 10
