"""The interface of all executors: the resources that they get, and the runner that they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

Runner = Callable[[str], Awaitable[tuple[int, str]]]  # name of a point -> exit code and error message
RETRIES = 2  # of a point that was killed, or whose machine was lost


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the points of a sweep get.

    Attributes:
      jobs: points that run at the same time; None for the executor's default.
      cpus: cores that a cluster reserves for each point.
      devices: accelerators of each point; None for the executor's default.
    """

    jobs: int | None = None
    cpus: int = 1
    devices: int | None = None


class Executor(Protocol):
    """Runs points somewhere. An executor is made before anything is read or checked: its constructor raises
    ``SweepError`` if it cannot be used."""

    @property
    def jobs(self) -> int | None:
        """Number of points that are started and awaited at the same time; None for all."""
        ...

    def open(self, folder: Path, names: Sequence[str], lock: int) -> AbstractContextManager[Runner]:
        """Yields a function that runs points until the end of the block.

        Args:
          folder: of the sweep, which holds the points' configurations.
          names: points that will be run.
          lock: descriptor of the folder's lock.

        Raises:
          SweepError: if they cannot be run.
        """
        ...
