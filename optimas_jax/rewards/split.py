"""Split of the inputs of local rewards into training, early stopping and report: the one rule against leakage."""

from __future__ import annotations

import dataclasses
from typing import Literal

from optimas_jax.core.schema import Share
from optimas_jax.core.types import derive_seed

Part = Literal["train", "stop", "report"]


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of the inputs that are not for training.

    Attributes:
      stop: share of inputs on which the epoch is chosen.
      report: share of inputs for alignment.
    """

    stop: Share = 0.1
    report: Share = 0.2

    def __post_init__(self) -> None:
        if self.stop + self.report > 1:
            raise ValueError(
                f"stop = {self.stop} and report = {self.report} are shares of the inputs: together at most 1"
            )


def part_of(example_id: str, shares: Shares) -> Part:
    """The part of an input, by a hash of its name: the same in every round, process and run, and for all components,
    whose heads share one backbone."""
    position = derive_seed("held-out", example_id) / 2**32
    if position < shares.report:
        return "report"
    return "stop" if position < shares.report + shares.stop else "train"
