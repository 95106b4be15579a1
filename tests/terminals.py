"""A terminal by tmux, for tests that look at what it shows."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_NAMES = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV")


class Terminal:
    """A tmux server of its own with one window."""

    def __init__(self, width: int, height: int = 30, variables: Mapping[str, str] | None = None):
        if shutil.which("tmux") is None:
            pytest.skip("tmux is not installed: apt install tmux")
        self._server = f"optimas-{uuid.uuid4().hex[:8]}"
        kept = {name: os.environ[name] for name in _NAMES if name in os.environ}
        setting = {
            **kept,
            "TRANSFORMERS_VERBOSITY": "error",
            "LC_ALL": "C.UTF-8",
            "PS1": "ready> ",
            **(variables or {}),
        }
        shell = shlex.join(["env", "-i", "TERM=screen-256color", *(f"{k}={v}" for k, v in setting.items()), "sh"])
        size = ["-x", str(width), "-y", str(height)]
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, shell)

    def run(self, *command: str) -> None:
        """Types a command of Python."""
        self.type(f"cd {HERE}; clear; {shlex.quote(sys.executable)} {shlex.join(command)}; echo ended $?", "Enter")

    def type(self, *keys: str) -> None:
        """Presses keys."""
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int = 30) -> None:
        """Makes the window another size."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def lines(self) -> list[str]:
        """All lines from the beginning on, as the screen and what scrolled off it have them."""
        text = self._tmux("capture-pane", "-p", "-S", "-").rstrip("\n")
        return [line.rstrip() for line in text.split("\n")]

    def screen(self) -> list[str]:
        """The lines of the screen alone."""
        return [line.rstrip() for line in self._tmux("capture-pane", "-p").split("\n")]

    def wrapped(self) -> list[str]:
        """Lines that are longer than the terminal is wide."""
        split, joined = ("capture-pane", "-p", "-S", "-"), ("capture-pane", "-p", "-J", "-S", "-")
        both = self._tmux(*split, ";", "display-message", "-p", "=====", ";", *joined)  # of one moment
        lines, whole = ([line.rstrip() for line in part.split("\n")] for part in both.split("=====\n"))
        return [line for line in whole if line not in lines and not line.startswith("ready> ")]

    def cursor_is_shown(self) -> bool:
        return self._tmux("display-message", "-p", "#{cursor_flag}").strip() == "1"

    def wait(self, condition: Callable[[list[str]], bool], seconds: float = 240) -> list[str]:
        """The lines when they fulfil a condition."""
        end = time.monotonic() + seconds
        while not condition(lines := self.lines()):
            assert time.monotonic() < end, "\n".join(lines)
            time.sleep(0.1)
        return lines

    def close(self) -> None:
        self._tmux("kill-server")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._server, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
