"""Link between the processes of a run: commands of process 0, signs of life, and the end of all processes.

It uses the key-value store of JAX's coordination service, which process 0 serves: no device takes part, and a value
stays until it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from optimas_jax.core.types import StopRun

SILENCE = 22  # seconds without a sign of life until a process is given up; JAX takes longer, and gives no reason
LAG = 45  # seconds that a process may be behind without working
_POLL = 1.0  # seconds between two signs of life
_WAIT = 1_000  # milliseconds of one wait for a command, which is repeated: a signal is handled between two waits
LOST = 75  # exit code of processes whose run cannot go on because one is lost; to start all of them again resumes it
_KEPT = 8  # number of latest commands that are not deleted


class ProcessLost(StopRun):
    """Process 0 has gone."""


@dataclasses.dataclass(frozen=True)
class Pulse:
    """Sign of life of a process, with its progress.

    Attributes:
      begun, ended: numbers of the last command that it began, and of the last command that it ended.
      error: of the command that ended last; "" for none.
      beat: number of this sign of life.
      cpu: seconds of CPU time so far.
      host: name of its machine.
    """

    begun: int = 0
    ended: int = 0
    error: str = ""
    beat: int = 0
    cpu: float = 0.0
    host: str = ""


@dataclasses.dataclass
class _Heard:
    """State of another process, in process 0.

    Attributes:
      pulse: its last sign of life.
      at: time at which the sign of life last changed.
      behind: since when it is behind, and its CPU time then; None if it is not behind.
    """

    pulse: Pulse
    at: float
    behind: tuple[float, float] | None = None


class Link:
    """One process's end of the link: commands of process 0, and signs of life.

    Attributes:
      index, count: index of this process, and number of processes.
      begun, ended, error: see ``Pulse``; of this process.
    """

    def __init__(self, client: Any, index: int, count: int):
        """``client``: of JAX's coordination service."""
        self.index, self.count = index, count
        self.begun, self.ended, self.error = 0, 0, ""
        self._client, self._closed, self._deleted = client, threading.Event(), 0
        self._heard = {index: _Heard(Pulse(), time.monotonic()) for index in range(1, count)}

    def send(self, command: bytes) -> None:
        """Sends the next command; it counts as begun."""
        self._client.key_value_set_bytes(f"command/{self.begun + 1}", command)
        self.begun += 1

    def receive(self) -> bytes:
        """Waits for the next command; it counts as begun. Raises ``ProcessLost`` if process 0 has gone."""
        key = f"command/{self.begun + 1}"
        while True:
            try:
                command = self._client.blocking_key_value_get_bytes(key, _WAIT)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                raise ProcessLost(_gone(error)) from error
            self.begun += 1
            return command

    def end_command(self, error: str = "") -> None:
        """Notes that the last command has ended, with an error or "" for none."""
        self.error, self.ended = error, self.begun

    def hear_all(self) -> None:
        """Returns in process 0 when every other process has given a sign of life after this call."""
        since = time.monotonic()
        while any(heard.at < since for heard in self._heard.values()):
            time.sleep(_POLL / 4)

    def wait_for_all(self, seconds: float) -> bool:
        """Waits, in process 0, until every other process has ended the last command; False after so many seconds."""
        until = time.monotonic() + seconds
        while any(heard.pulse.ended < self.begun for heard in self._heard.values()):
            if time.monotonic() > until:
                return False
            time.sleep(_POLL / 4)
        return True

    def wait_until_seen(self) -> None:
        """Waits in another process until process 0 has seen how its last command ended."""
        time.sleep(3 * _POLL)
        self.close()

    def watch(self) -> None:
        """Watches the other processes from now on, in a thread that ends this process when one is lost."""
        threading.Thread(target=self._watch, name="watch-processes", daemon=True).start()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def _watch(self) -> None:
        beat = 0
        while not self._closed.wait(_POLL):
            beat += 1
            try:
                cause = self._hear() if self.index == 0 else self._show(beat)
            except jax.errors.JaxRuntimeError as error:
                cause = _gone(error)
            if cause and not self._closed.is_set():
                self.end_all(cause)

    def _show(self, beat: int) -> str:
        """Gives a sign of life; returns why process 0 ended the run, or ""."""
        pulse = Pulse(self.begun, self.ended, self.error, beat, time.process_time(), socket.gethostname())
        text = json.dumps(dataclasses.asdict(pulse))
        self._client.key_value_set(f"pulse/{self.index}", text, allow_overwrite=True)
        return next((cause for _, cause in self._client.key_value_dir_get("end/")), "")

    def _hear(self) -> str:
        """Reads the signs of life; returns why the run cannot go on, or ""."""
        shown = {key.rpartition("/")[2]: json.loads(text) for key, text in self._client.key_value_dir_get("pulse/")}
        for index, heard in self._heard.items():
            pulse, now = Pulse(**shown.get(str(index), {})), time.monotonic()
            if pulse.beat != heard.pulse.beat:
                heard.at = now
            heard.pulse = pulse
            if why := _lost(heard, self, now):
                return f"process {index}{' on ' * bool(pulse.host)}{pulse.host} {why}"
        while self._deleted < min(heard.pulse.begun for heard in self._heard.values()) - _KEPT:
            self._deleted += 1
            self._client.key_value_delete(f"command/{self._deleted}")
        return ""

    def end_all(self, cause: str) -> NoReturn:
        """Ends this process at once with exit code ``LOST``, and from process 0 all others. Everything that the run has
        paid for is on disk. An orderly end is impossible: a thread that waits inside a collective would never return.
        """
        print(f"\nerror: {cause}. All processes end; the same command resumes", file=sys.stderr, flush=True)
        if self.index == 0:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set("end/cause", cause, allow_overwrite=True)
                time.sleep(3 * _POLL)
        os._exit(LOST)


def _lost(heard: _Heard, link: Link, now: float) -> str:
    """Why the run cannot go on with a process, or "" if it can."""
    pulse = heard.pulse
    if now - heard.at > SILENCE:
        return f"has given no sign of life for {SILENCE} s: it was killed, or its machine is not reached"
    if pulse.error and pulse.ended == link.begun == link.ended and not link.error:
        return f"failed where process 0 did not: {pulse.error}"
    failed = pulse.error if pulse.ended == link.begun else link.error if link.ended == link.begun else ""
    if pulse.begun == link.begun and not (failed and pulse.ended != link.ended):
        heard.behind = None
        return ""
    since, work = heard.behind or (now, pulse.cpu)
    if not failed and pulse.cpu - work > 1.0:  # it compiles, or reads files
        since, work = now, pulse.cpu
    heard.behind = since, work
    if now - since <= LAG:
        return ""
    if pulse.begun < link.begun:
        return f"has not begun command {link.begun} for {LAG} s, and does nothing: it hangs in command {pulse.begun}"
    return f"and process 0 are out of step: one failed in command {link.begun} ({failed}), the other is still in it"


def _gone(error: Exception) -> str:
    return f"process 0 has gone ({str(error).splitlines()[0]}): see its own last lines"
