"""The jail for machines without bubblewrap: new namespaces, with their own file tree.

Users are mapped so that the command has an ordinary user's rights and can get no capability.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
from typing import Any

from .kernel import PR_SET_PDEATHSIG, libc, prctl

INSIDE_USER = 1000  # the command's user and group in the jail
TMP = "/tmp"  # noqa: S108 (the jail's own)
DEVICES = (
    "null",
    "full",
    "random",
    "urandom",
)  # without /dev/zero: a shared mapping of it is memory that counts in no process's size

# linux/sched.h, linux/mount.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 2, -100, 0x8000, 442
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def enter(user: int) -> None:
    """Returns as process 1 of new namespaces, while the caller's process waits for it and then exits.

    The command runs as this user. If this user is root, it runs as ``user``, because the kernel's limit of processes
    does not hold for root. Root stays mapped until the command starts, to reach an interpreter in root's home folder.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        users = groups = f"0 0 1\n{INSIDE_USER} {user} 1"
    else:
        users, groups = f"{INSIDE_USER} {os.geteuid()} 1", f"{INSIDE_USER} {os.getegid()} 1"
    read_end, write_end = os.pipe()
    mapper = os.fork()  # maps of other users can be written only from outside
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
    libc("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC)
    os.write(write_end, b"x")
    os.close(write_end)
    if os.waitpid(mapper, 0)[1] != 0:
        raise PermissionError("users cannot be mapped into a new namespace")
    inside = os.fork()
    if inside:
        os.waitpid(inside, 0)
        os._exit(0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.geteuid() != 0:  # the map of another user than root
        os.setresgid(INSIDE_USER, INSIDE_USER, INSIDE_USER)
        os.setresuid(INSIDE_USER, INSIDE_USER, INSIDE_USER)


def build_root(plan: dict[str, Any]) -> None:
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
    _mount(None, root + TMP, None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV)  # mounts below it stay as they are
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("tmpfs", f"{root}/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,mode=755")
    for name in DEVICES:
        _write(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, MS_BIND)
    for name, target in (("shm", TMP), ("fd", "/proc/self/fd")):
        os.symlink(target, f"{root}/dev/{name}")
    _mount(None, f"{root}/dev", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)
    os.chdir(root)
    libc("pivot_root", b".", b".")
    libc("umount2", b".", MNT_DETACH)
    os.chdir("/")
    for name in ("work", "home"):
        os.mkdir(f"{TMP}/{name}")
        os.chown(f"{TMP}/{name}", INSIDE_USER, INSIDE_USER)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind)]
    libc("mount", *texts, ctypes.c_ulong(flags), options.encode())


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
    libc("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))
