"""The supervisor: a process that builds walls, runs one command in them, watches it and ends all processes that it
leaves.

    python -I -S -c "... walls.main(PLAN)"          PLAN: JSON of ``plan.make``; started by ``program`` only

``plan["walls"]``:

    bubblewrap  it runs inside the jail that ``bwrap`` has built
    namespaces  it builds a jail itself (``namespaces``)
    limits      there is none: the command runs in a scratch folder, confined by Landlock; as a user of its own if root
                starts it

In all three cases system calls are filtered (``seccomp``), resource limits hold, and the command cannot reach this
process. Uses only the standard library, and nothing of the package around this folder, because it runs before packages
can be imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

from . import landlock, namespaces, seccomp, watch
from .kernel import PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, hide, prctl

LOOK_EVERY = 0.04  # seconds between two checks of memory
DISK_EVERY = 0.25  # seconds between two checks of files
URGENT = -10  # priority (nice value) of the supervisor
ENDED = {signal.SIGCHLD, signal.SIGTERM}


def main(text: str) -> None:
    """Runs the plan's command and writes its status to the plan's ``status`` descriptor, in lines of JSON: ``walls`` if
    they could not be built, else how the command ended."""
    plan = json.loads(text)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDED)
    plan["signals"] = False
    try:
        os.set_inheritable(plan["status"], False)
        if plan["walls"] == "namespaces":
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            namespaces.enter(plan["user"])
            namespaces.build_root(plan)
        elif plan["walls"] == "limits":
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # remaining processes of the program are ended first
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            plan["signals"] = landlock.confine_signals()
        ended = _supervise(plan)
    except OSError as error:
        ended = {"how": "walls", "code": -1, "detail": f"{error}"}
    _report(plan, ended)
    os._exit(0)


def _report(plan: dict[str, Any], ended: dict[str, Any]) -> None:
    os.write(plan["status"], json.dumps(ended).encode() + b"\n")


def _supervise(plan: dict[str, Any]) -> dict[str, Any]:
    """Runs the command until it exits or exceeds a limit, then kills all processes that are left."""
    hide()
    # A fork bomb with a higher priority than the kernel's own threads keeps them from freeing memory.
    plan["nice"] = max(0, os.getpriority(os.PRIO_PROCESS, 0))
    with contextlib.suppress(PermissionError):  # as root it checks in time even on a busy machine
        os.setpriority(os.PRIO_PROCESS, 0, URGENT)
    command = os.fork()
    if command == 0:
        _start(plan)
    _report(plan, {"how": "started"})
    try:
        how, status = _wait(plan, command)
    except OSError:  # it cannot be watched, and is ended as if it exceeded a limit
        how, status = "killed", 0
    _end_all(plan, command)
    if how:
        return {"how": how, "code": signal.SIGXFSZ if how == "killed" else -1}
    code = os.waitstatus_to_exitcode(status)
    return {"how": "exited" if code >= 0 else "killed", "code": abs(code)}


def _wait(plan: dict[str, Any], command: int) -> tuple[str, int]:
    """The limit that the command exceeded, or "" and its status."""
    deadline = time.monotonic() + plan["seconds"]
    look = disk = time.monotonic()
    while True:
        now = time.monotonic()
        if now >= deadline:
            return "timeout", 0
        if now >= look:
            pids = watch.descendants(os.getpid())
            if watch.memory(pids, plan["memory_bytes"], plan["walls"] != "limits") > plan["memory_bytes"]:
                return "memory", 0
            if plan["writable"] and now >= disk:
                if watch.disk(plan["writable"], pids, plan["disk_bytes"]) > plan["disk_bytes"]:
                    return "killed", 0
                disk = time.monotonic() + max(DISK_EVERY, 5 * (time.monotonic() - now))
            look = time.monotonic() + max(LOOK_EVERY, 2 * (time.monotonic() - now))
        if _pause(min(look, deadline) - time.monotonic()) == signal.SIGTERM:
            return "stopped", 0
        status = _reap(command)
        if status is not None:
            return "", status


def _pause(seconds: float) -> int:
    """Waits for a signal and returns its number; 0 if none came in time."""
    if not hasattr(signal, "sigtimedwait"):  # macOS
        time.sleep(min(0.01, max(0, seconds)))
        return 0
    told = signal.sigtimedwait(ENDED, max(0, seconds))
    return told.si_signo if told else 0


def _reap(command: int) -> int | None:
    """Status of the command if it has exited. Also reaps orphans, which become children of this process."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == command:
                status = ended[1]
    return status


def _end_all(plan: dict[str, Any], command: int) -> None:
    """Ends all processes of the command; in a jail they end with this one, which is their first."""
    deadline = time.monotonic() + 5
    while plan["walls"] == "limits":
        if os.geteuid() == 0:
            watch.kill_user(plan["user"])
        elif plan["signals"]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(-1, signal.SIGKILL)  # all that this process may signal: only processes of the command
        else:
            watch.kill_each(watch.descendants(os.getpid()))
        _reap(command)
        if not watch.descendants(os.getpid()) or time.monotonic() > deadline:
            return


# The command


def _start(plan: dict[str, Any]) -> NoReturn:
    """Replaces this process by the command, as an ordinary user with limited resources."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDED)
        os.setsid()
        os.setpriority(os.PRIO_PROCESS, 0, plan["nice"])
        command, environment = plan["command"], plan["environment"]
        confined = plan["walls"] == "limits" and bool(landlock.version())
        paths = landlock.opened(plan["paths"]) if confined else []
        folders = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in plan["python"]] if confined else []
        if os.geteuid() == 0:
            user = namespaces.INSIDE_USER if plan["walls"] == "namespaces" else plan["user"]
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        if folders and not os.access(command[0], os.X_OK):
            command, environment = _through(folders, command, environment)
        _limit(plan)
        os.chdir(plan["cwd"])
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if confined:
            landlock.confine(paths)
        if seccomp.available() or not plan["weak"]:
            jailed = plan["walls"] != "limits"
            seccomp.install(sockets=jailed, attributes=jailed or bool(plan["user"]))
        os.execve(command[0], command, environment)  # noqa: S606 (that is the point)
    except OSError as error:
        _report(plan, {"how": "walls", "code": -1, "detail": f"{error} (as user {os.geteuid()})"})
    finally:
        os._exit(127)


def _limit(plan: dict[str, Any]) -> None:
    """Sets the limits of resources, as far as this system has them."""
    shared = plan["walls"] == "limits" and not plan["user"]
    processes = plan["processes"] + (watch.tasks_of(os.geteuid()) if shared else 0)
    for name, wanted in (("NPROC", processes), *plan["limits"].items()):
        limit = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(limit)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError):  # this system does not have the limit (AS on macOS)
            resource.setrlimit(limit, (value, value))


def _through(folders: list[int], command: list[str], environment: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment for a user without access to the folders above the interpreter, as in root's home.

    An open folder can be entered through /proc without access to its parents. ``folders``: descriptors of
    ``plan["python"]``, which only this command inherits; Landlock keeps it from what lies beside them.
    """
    for folder in folders:
        os.set_inheritable(folder, True)
    interpreter, *packages = (f"/proc/self/fd/{folder}" for folder in folders)
    command = [f"{interpreter}/bin/python{sys.version_info[0]}.{sys.version_info[1]}", *command[1:]]
    return command, environment | {"PYTHONPATH": ":".join(packages), "LD_LIBRARY_PATH": f"{interpreter}/lib"}
