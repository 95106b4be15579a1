"""Runs attacks in the sandbox and looks at what they did outside; ``test_attacks`` starts it, as root or another user.

KEY=... python attacked.py '{"walls": "limits", "names": [...]}'        prints one line of JSON: problems by attack
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import attacks

from optimas_jax.sandbox import program as sandbox
from optimas_jax.sandbox.inside import watch

LIMITS = sandbox.Limits(seconds=4, cpu_seconds=4, memory_mb=512, file_mb=64, disk_mb=64, processes=48)
MEMORY = LIMITS.memory_mb << 20
BUSY = 1.0  # seconds above the limit; on an idle machine it is 0.3
PUBLIC = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/dev/mqueue", "/")


class Outside:
    """What attacks try to reach."""

    def __init__(self):
        self.mark = f"optimas-attack-{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
        self.folder.chmod(0o755)
        project = self.folder / "project"
        project.mkdir(0o700)
        self.files = {self.folder / "secret": 0o600, self.folder / "open": 0o644, project / ".env": 0o644}
        for path, mode in self.files.items():
            path.write_text(os.environ["KEY"])
            path.chmod(mode)
            os.utime(path, (1e9, 1e9))
        self.other = subprocess.Popen(["sleep", "600"])
        self.sockets = [
            socket.socket(),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            socket.socket(socket.AF_UNIX),
        ]
        self.sockets += [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)]
        places = [("127.0.0.1", 0), ("127.0.0.1", 0), str(self.folder / "socket"), f"\0{self.mark}", f"\0{self.mark}-d"]
        for one, place in zip(self.sockets, places, strict=True):
            one.bind(place)
            one.setblocking(False)
            if one.type == socket.SOCK_STREAM:
                one.listen()
        (self.folder / "socket").chmod(0o777)
        self.segment = ctypes.CDLL(None).shmget(0, 4096, 0o1600)
        self.objects = self._objects()

    def fill(self, source):
        marks = {
            "KEY": os.environ["KEY"],
            "MARK": self.mark,
            "TCP": self.sockets[0].getsockname()[1],
            "UDP": self.sockets[1].getsockname()[1],
            "UNIX": self.folder / "socket",
            "ABSTRACT": self.mark,
            "OTHER": self.other.pid,
            "PRODUCT": os.getpid(),
            "SECRET": self.folder / "secret",
            "OPEN": self.folder / "open",
            "ENV": self.folder / "project" / ".env",
            "FOLDER": self.folder,
            "SEGMENT": self.segment,
        }
        for name, value in marks.items():
            source = source.replace(f"@{name}@", str(value))
        return source + f"\n# {self.mark}"

    def _objects(self):
        """System V objects that everybody may use, as attacks make them."""
        tables = {kind: Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:] for kind in ("shm", "sem", "msg")}
        return {kind: sum(row.split()[2].endswith("666") for row in rows) for kind, rows in tables.items()}

    def problems(self):
        """What is not as it was."""
        if self.other.poll() is not None:
            yield "a process outside ended"
        elif (state := Path(f"/proc/{self.other.pid}/stat").read_text().split()[2]) not in "SR":
            yield f"a process outside is in state {state}"
        elif os.getpriority(os.PRIO_PROCESS, self.other.pid) != os.getpriority(os.PRIO_PROCESS, 0):
            yield "a process outside has another priority"
        elif os.sched_getaffinity(self.other.pid) != os.sched_getaffinity(0):
            yield "a process outside has other processors"
        elif resource.prlimit(self.other.pid, resource.RLIMIT_NOFILE) != resource.getrlimit(resource.RLIMIT_NOFILE):
            yield "a process outside has other limits"
        if {*os.listdir(self.folder)} != {
            "secret",
            "open",
            "project",
            "socket",
        } or self.folder.stat().st_mode & 0o777 != 0o755:
            yield "the folder outside changed"
        for path, mode in self.files.items():
            status = path.stat()
            if (status.st_mode & 0o777, status.st_mtime, status.st_size) != (mode, 1e9, len(os.environ["KEY"])):
                yield f"{path} changed"
            if os.listxattr(path):
                yield f"{path} has attributes"
        for one in self.sockets:
            with contextlib.suppress(BlockingIOError):
                reached = one.accept()[0] if one.type == socket.SOCK_STREAM else one.recv(100)
                yield f"a socket was reached: {reached}"
        if self._objects() != self.objects:
            yield f"System V objects: {self._objects()}"
        for folder in PUBLIC:
            with contextlib.suppress(OSError):
                yield from (f"left {folder}/{name}" for name in os.listdir(folder) if self.mark in name)
        yield from (f"a process lives on: {line}" for line in self._survivors())

    def _survivors(self):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                if self.mark in line and int(pid) != os.getpid():
                    yield f"{pid} {line[-60:]!r}"

    def close(self):
        self.other.kill()
        self.other.wait()
        ctypes.CDLL(None).shmctl(self.segment, 0, 0)
        for one in self.sockets:
            one.close()
        shutil.rmtree(self.folder)


class Meter:
    """Memory of this process's descendants, shared memory of the machine and of its kernel, every few milliseconds."""

    def __init__(self):
        self.most, self.over, self._done = 0, 0.0, threading.Event()
        self._before = self._shared()
        self._thread = threading.Thread(target=self._look)

    def _shared(self):
        rows = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
        return sum(int(row[1]) * 1024 for row in rows if row[0] in ("Shmem:", "SUnreclaim:"))

    def _look(self):
        since = None
        while not self._done.wait(0.02):
            used = sum(map(watch._shared_out, watch.descendants(os.getpid()))) + max(0, self._shared() - self._before)
            self.most = max(self.most, used)
            since = (since or time.monotonic()) if used > MEMORY else None
            self.over = max(self.over, time.monotonic() - since if since else 0.0)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()


def attack(outside, walls, name):
    """Problems, how the program ended, and what it used."""
    program = outside.fill(attacks.ATTACKS[name])
    with contextlib.ExitStack() as stack:
        if name in attacks.MEMORY:  # the machine's memory is measured: no other of these runs now
            fcntl.flock(stack.enter_context(open(__file__)), fcntl.LOCK_EX)
        meter, started = stack.enter_context(Meter()), time.monotonic()
        try:
            ended = sandbox._run_in(walls, ("-s", "-P", "-c", program), {}, LIMITS)
            problems, how = [], f"{ended.how} {ended.code}: {ended.output[-300:]}"
            problems += [line for line in ended.output.splitlines() if "BREACH" in line][:3]
        except BaseException as error:
            problems, how = [f"the run ends: {type(error).__name__}: {str(error)[:300]}"], "raised"
    seconds = time.monotonic() - started
    problems += [*outside.problems()]
    problems += [f"left {name} of the scratch folder" for name in os.listdir(tempfile.gettempdir())]
    if meter.most > 1.2 * MEMORY and meter.over > BUSY:
        problems.append(f"memory: {meter.most >> 20} MB, {meter.over:.2f} s above the limit")
    if seconds > LIMITS.seconds + 10:
        problems.append(f"ended after {seconds:.1f} s")
    return {"problems": problems, "how": how, "seconds": round(seconds, 2), "mb": meter.most >> 20}


def main():
    spec = json.loads(sys.argv[1])
    results = {}
    tempfile.tempdir = tempfile.mkdtemp(dir="/var/tmp")  # nobody else's
    os.chmod(tempfile.tempdir, 0o711)
    outside = Outside()
    try:
        for name in spec["names"]:
            results[name] = attack(outside, spec["walls"], name)
            if outside.other.poll() is not None:
                outside.close()
                outside = Outside()
    finally:
        outside.close()
        shutil.rmtree(tempfile.tempdir)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
