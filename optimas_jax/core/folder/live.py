"""``live.json``: what a run is doing now. It is in the folder while a command runs, and after one that was killed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from optimas_jax.core.folder.files import read_file
from optimas_jax.core.progress import Bar
from optimas_jax.core.usage import Usage

LIVE = "live.json"
State = Literal["running", "pausing", "paused", "stopping"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """What a run is doing.

    Attributes:
      id: id of the running command; every command has a new one.
      title: of the run.
      state: ``pausing`` while calls in flight end, ``stopping`` while paid results are written.
      step: ``PHASE: PART``, or the phase alone (``llm.accounts.bill``).
      iteration, iterations: number of iterations that were begun, and of all.
      component: of the iteration; "" outside of one.
      proposal: what is proposed or tried, as text.
      score, start: validation score of the configuration in use, and of the default; None before they are known.
      spent: what all commands in the run folder paid.
      steps: costs by step, answers from the tape included.
      seconds: since the command began, pauses left out.
      left: seconds until the end of the run; None while they cannot be estimated.
      bars: the open progress bars.
    """

    id: str
    title: str
    state: State = "running"
    step: str = ""
    iteration: int = 0
    iterations: int = 0
    component: str = ""
    proposal: str = ""
    score: float | None = None
    start: float | None = None
    spent: Usage = Usage()
    steps: Mapping[str, Usage] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    left: float | None = None
    bars: tuple[Bar, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "spent": self.spent.to_json(),
            "steps": {step: usage.to_json() for step, usage in self.steps.items()},
            "bars": [dataclasses.asdict(bar) for bar in self.bars],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Status:
        """Reads ``to_json``; fields that this version does not know are ignored."""
        names = [field.name for field in dataclasses.fields(cls)]
        known = {name: data[name] for name in names if name in data}
        return cls(
            **{
                **known,
                "spent": Usage.from_json(data["spent"]),
                "steps": {step: Usage.from_json(row) for step, row in data["steps"].items()},
                "bars": tuple(Bar(row["label"], row["done"], row["total"], row["seconds"]) for row in data["bars"]),
            }
        )


def read_status(folder: Path) -> Status | None:
    """What the run in a folder is doing; None where no command runs or was killed.

    Raises:
      FolderError: the file cannot be read, or is damaged.
    """
    data = read_file(folder / LIVE)
    return None if data is None else Status.from_json(data)


@runtime_checkable
class ShowsStatus(Protocol):
    """Progress that also shows what a run is doing."""

    def show(self, status: Status | None) -> None:
        """Receives the state of the run, about twice a second; None at the run's end."""
        ...
