"""Client of a worker process (``bench.serve``), which stays alive between repeats so that sides can take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from optimas_jax.bench.work import Task
from optimas_jax.core.shipped import PACKAGE, python_path

ROOT = PACKAGE.parent
PEERS = ROOT / "third_party" / "peers"


class SideError(RuntimeError):
    """A side that failed, with its error output."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another system that does the same work.

    Attributes:
      name: value of ``--peer``.
      scripts: task -> script in ``third_party/peers``.
      exact: tasks in which it computes the same function of the same numbers, so that its answers must equal ours.
      tree: checkout of this project at another commit, which is the peer; None for scripts in the peers' environment.
    """

    name: str
    scripts: Mapping[Task, str]
    exact: tuple[Task, ...] = ()
    tree: Path | None = None

    def command(self, task: Task) -> list[str]:
        """The command that starts the peer; raises ``SideError`` if the peers' environment is not installed."""
        if self.tree:
            return OURS
        python = PEERS / ".venv" / "bin" / "python"
        if not python.is_file():
            raise SideError(
                f"the peers' environment is not there ({python}): make it with third_party/peers/install.sh of a "
                "checkout, and measure there"
            )
        return [str(python), str(PEERS / self.scripts[task])]


PEERS_BY_NAME = {
    peer.name: peer
    for peer in (
        Peer("torch", {"score": "torch_peer.py", "generate": "torch_peer.py"}, exact=("score", "generate")),
        Peer("trl", {"train": "trl_peer.py", "grpo": "grpo_peer.py", "ppo": "ppo_peer.py"}, exact=("train",)),
        Peer("llama.cpp", {"generate": "llamacpp_peer.py"}),
    )
}
OURS = [sys.executable, "-m", "optimas_jax.bench.ours"]


def baseline(commit: str, tree: Path) -> Peer:
    """Our own side as it was at ``commit``, checked out at ``tree``."""
    return Peer(commit, dict.fromkeys(get_args(Task), ""), exact=("score", "train", "generate"), tree=tree)


class Side:
    """A worker process, as a context manager that ends it."""

    def __init__(self, name: str, command: Sequence[str], tree: Path | None = None):
        """``tree``: the checkout whose package the worker imports; None for this one."""
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed on exit
        paths = [str(tree)] if tree else python_path(os.environ.get("PYTHONPATH", ""))
        self._process = subprocess.Popen(  # noqa: S603 - no shell, our own scripts
            command,
            cwd=tree,  # `python -m` imports from there first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends one message and waits for its answer.

        Raises:
          SideError: if the worker reports a failure, ends, or answers with anything but an object.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        what = next(iter(message))
        with contextlib.suppress(BrokenPipeError):  # it has exited; its error output follows
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SideError(
                f"{self.name} ended with exit code {code} when asked to {what}; it said:\n{self._error_output()}"
            )
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise SideError(f"{self.name} answered {what} with {line[:200]!r}, not with a JSON object")
        if "error" in answer:
            raise SideError(f"{self.name} failed to {what}:\n{answer['error']}")
        return answer

    def _error_output(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:] or "nothing"

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has exited
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=60 if error is None else 0)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()
