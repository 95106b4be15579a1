"""Several processes of one program on this machine, each with fake devices of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(devices: int) -> dict[str, str]:
    """For a process with so many devices. XLA's pool of threads is as large as it says: devices wait for each other."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    own = {"JAX_NUM_CPU_DEVICES": str(devices), "NPROC": "16", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **own, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "JAX_PLATFORMS": "cpu"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Processes:
    """A command in several processes; whatever still runs is killed at the end of the block."""

    def __init__(self, command: Sequence[str], count: int, folder: Path, devices: int = 4):
        """``devices``: of all processes together. ``folder`` gets what each of them prints."""
        self._folder, self._together = folder, []
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        for index in range(count):
            joined = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={index}"]
            with self.path(index).open("wb") as printed:
                self._together.append(
                    subprocess.Popen(
                        [sys.executable, *command, *(joined if count > 1 else [])],
                        cwd=ROOT,
                        env=environment(devices // count),
                        stdout=printed,
                        stderr=subprocess.STDOUT,
                    )
                )

    def path(self, index: int) -> Path:
        return self._folder / f"{index}.txt"

    def printed(self, index: int) -> str:
        return self.path(index).read_text(errors="replace")

    def wait(self, seconds: float = 3600) -> list[int]:
        """Exit codes."""
        until = time.monotonic() + seconds
        return [one.wait(max(until - time.monotonic(), 0.1)) for one in self._together]

    def wait_for(self, index: int, text: str, seconds: float = 3600) -> None:
        """Returns when a process has printed a text."""
        until = time.monotonic() + seconds
        while text not in self.printed(index):
            assert self._together[index].poll() is None, self.printed(index)
            assert time.monotonic() < until, self.printed(index)
            time.sleep(0.2)

    def send(self, index: int, number: int = signal.SIGKILL) -> None:
        self._together[index].send_signal(number)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._together:
            one.kill()
            one.wait()
