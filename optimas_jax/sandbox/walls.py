"""The inside of the sandbox: a process that builds walls around itself and then runs one command in them.

    python -I -S walls.py PLAN          PLAN: JSON of ``program._plan``; started by ``program`` only

With ``jail`` the command runs in new namespaces: no network except a loopback, a separate process tree, only the files
of the interpreter and the system's libraries, read-only, and an empty ``/tmp`` of limited size that is deleted at the
end. Users are mapped so that the command has an ordinary user's rights and can get no capability. Without ``jail`` it
runs outside namespaces, in a scratch folder, as an ordinary user.

In both cases resource limits hold, and a supervisor, which the command cannot reach, watches time and memory of all its
processes and ends those that are left.

Standard library only, and nothing of this package: it runs before there are packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

INSIDE_USER = 1000  # the command's user and group in the jail
NOBODY = 65534  # the same user outside the jail, when root starts the sandbox
TMP = "/tmp"  # noqa: S108 (the jail's own)
DEVICES = ("null", "zero", "full", "random", "urandom")

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 2, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def main(plan: dict[str, Any]) -> None:
    """Runs the plan's command and writes its status to the plan's ``status`` descriptor, as one line of JSON."""
    try:
        os.set_inheritable(plan["status"], False)
        _die_with_parent()
        if plan["jail"]:
            _enter_namespaces()
            _build_root(plan)
        elif sys.platform == "linux":
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
        ended = _supervise(plan)
    except OSError as error:
        ended = {"how": "walls", "code": -1, "detail": f"{error}"}
    _report(plan, ended)
    os._exit(0)


def _report(plan: dict[str, Any], ended: dict[str, Any]) -> None:
    os.write(plan["status"], json.dumps(ended).encode() + b"\n")


# Namespaces


def _libc(name: str, *arguments: Any) -> int:
    """Calls a function of the C library; raises ``OSError`` where it fails."""
    result = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}{arguments}: {os.strerror(code)}")
    return result


def _prctl(option: int, value: int) -> None:
    _libc("prctl", option, value, 0, 0, 0)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _enter_namespaces() -> None:
    """Returns as process 1 of new namespaces, while the caller's process waits for it and then exits.

    The command runs as this user, or as user 65534 if this user is root, for whom the kernel's limit of processes does
    not hold. Root stays mapped until the command starts, to reach an interpreter in its home folder.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        users = f"0 0 1\n{INSIDE_USER} {NOBODY} 1"
        groups = users
    else:
        users, groups = f"{INSIDE_USER} {os.geteuid()} 1", f"{INSIDE_USER} {os.getegid()} 1"
    read_end, write_end = os.pipe()
    mapper = os.fork()  # maps may be written from outside only, for all but the writer's own user
    if mapper == 0:
        os.close(write_end)
        if os.read(read_end, 1):
            folder = f"/proc/{os.getppid()}"
            try:
                if os.geteuid() != 0:
                    _write(f"{folder}/setgroups", "deny")
                _write(f"{folder}/gid_map", groups)
                _write(f"{folder}/uid_map", users)
            except OSError:
                os._exit(1)
        os._exit(0)
    os.close(read_end)
    _libc("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC)
    os.write(write_end, b"x")
    os.close(write_end)
    if os.waitpid(mapper, 0)[1] != 0:
        raise PermissionError("users cannot be mapped into a new namespace")
    inside = os.fork()
    if inside:
        os.waitpid(inside, 0)
        os._exit(0)
    _die_with_parent()
    if os.geteuid() != 0:  # the map of another user than root
        os.setresgid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
        os.setresuid(INSIDE_USER, INSIDE_USER, INSIDE_USER)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


# The file tree


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    _libc("mount", *texts, ctypes.c_ulong(flags), options.encode())


def _build_root(plan: dict[str, Any]) -> None:
    """Replaces the file tree by the plan's ``visible`` paths and ``folder``, read-only, and a new ``/tmp``."""
    root = plan["root"]
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for name in ("dev", "proc", "tmp"):
        os.mkdir(f"{root}/{name}")
    _mount("tmpfs", root + TMP, "tmpfs", MS_NOSUID | MS_NODEV, f"size={plan['disk_bytes']},mode=1777")
    for path in plan["visible"]:  # an environment in the outer /tmp is visible in the inner one
        _show(path, root + path)
    _show(plan["folder"], f"{root}/program")
    _make_read_only(root)
    _mount(None, root + TMP, None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV)  # but not what is mounted below it
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,mode=755")
    for name in DEVICES:
        _write(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    for name, target in (("shm", TMP), ("fd", "/proc/self/fd")):
        os.symlink(target, f"{root}/dev/{name}")
    _mount(None, f"{root}/dev", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)
    os.chdir(root)
    _libc("pivot_root", b".", b".")
    _libc("umount2", b".", MNT_DETACH)
    os.chdir("/")
    for name in ("work", "home"):
        os.mkdir(f"{TMP}/{name}")
        os.chown(f"{TMP}/{name}", INSIDE_USER, INSIDE_USER)
    _write("/proc/sys/user/max_user_namespaces", "0")  # nor can the command become root of a namespace of its own
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _show(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    else:
        os.mkdir(target)
        _mount(source, target, None, MS_BIND | MS_REC)


def _make_read_only(path: str) -> None:
    """Makes a mount and all mounts below it read-only (mount_setattr, Linux 5.12)."""
    attributes = struct.pack("=QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    _libc("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))


# The command


def _supervise(plan: dict[str, Any]) -> dict[str, Any]:
    """Runs the command until it exits or exceeds a limit, then kills all processes that are left."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    command = os.fork()
    if command == 0:
        _start(plan)
    if sys.platform == "linux":
        _prctl(PR_SET_DUMPABLE, 0)  # a process of the same user may not look into this one
    started, how, status = time.monotonic(), "", None
    while status is None:
        left = plan["seconds"] - (time.monotonic() - started)
        if left <= 0 or _resident_bytes() > plan["memory_bytes"]:
            how = "timeout" if left <= 0 else "memory"
            break
        signal.sigtimedwait({signal.SIGCHLD}, min(0.1, left)) if hasattr(signal, "sigtimedwait") else time.sleep(0.01)
        status = _reap(command)
    if not plan["jail"]:  # in a jail all processes end with this one, which is their first
        _kill_all(command)
    if how:
        return {"how": how, "code": -1, "detail": ""}
    code = os.waitstatus_to_exitcode(status or 0)
    return {"how": "exited" if code >= 0 else "killed", "code": abs(code), "detail": ""}


def _start(plan: dict[str, Any]) -> NoReturn:
    """Replaces this process by the command, as an ordinary user with limited resources."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.setsid()
        command, environment = plan["command"], plan["environment"]
        if os.geteuid() == 0:
            user = INSIDE_USER if plan["jail"] else NOBODY
            folders = [] if plan["jail"] else [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in plan["python"]]
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            if folders and not os.access(command[0], os.X_OK):
                command, environment = _through(folders, command, environment)
        if sys.platform == "linux":
            _prctl(PR_SET_NO_NEW_PRIVS, 1)
        processes = plan["processes"] + (0 if plan["jail"] else _tasks_of_this_user())
        for name, wanted in (("NPROC", processes), *plan["limits"].items()):
            limit = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(limit)[1]
            value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            with contextlib.suppress(ValueError):  # a limit that this system does not have (AS on macOS)
                resource.setrlimit(limit, (value, value))
        os.chdir(plan["cwd"])
        os.execve(command[0], command, environment)  # noqa: S606 (that is the point)
    except OSError as error:
        _report(plan, {"how": "walls", "code": -1, "detail": f"{error} (as user {os.geteuid()})"})
    finally:
        os._exit(127)


def _through(folders: list[int], command: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment for a user without access to the folders above the interpreter, as in root's home.

    An open folder can be entered through /proc without access to its parents. ``folders``: descriptors of
    ``plan["python"]``, which only this command inherits.
    """
    for folder in folders:
        os.set_inheritable(folder, True)
    interpreter, *packages = (f"/proc/self/fd/{folder}" for folder in folders)
    command = [f"{interpreter}/bin/python{sys.version_info[0]}.{sys.version_info[1]}", *command[1:]]
    return command, environment | {"PYTHONPATH": ":".join(packages), "LD_LIBRARY_PATH": f"{interpreter}/lib"}


def _reap(command: int) -> int | None:
    """Status of the command if it has exited. Also reaps orphans, which become children of this process."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == command:
                status = ended[1]
    return status


def _kill_all(command: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(command, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while (pids := list(_descendants())) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(command)


def _stat(pid: str) -> list[str]:
    """Fields of /proc/PID/stat from the third on; empty for a process that has exited."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def _all_processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc/self") else []


def _descendants() -> set[int]:
    """Living descendants of this process; empty without /proc."""
    parents = {int(pid): int(stat[1]) for pid in _all_processes() if (stat := _stat(pid)) and stat[0] not in "ZX"}
    family, size = {os.getpid()}, 0
    while size < len(family):
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return family - {os.getpid()}


def _resident_bytes() -> int:
    """Resident memory of all descendants of this process, without pages of files."""
    pages = 0
    for pid in _descendants():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            pages += resident - shared
    return pages * resource.getpagesize()


def _tasks_of_this_user() -> int:
    """Threads of this user on the machine: the kernel's limit of processes counts them as well."""
    tasks = 0
    for pid in _all_processes():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                tasks += len(os.listdir(f"/proc/{pid}/task"))
    return tasks


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
