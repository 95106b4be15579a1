"""Settings of the stages around the search."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from optimas_jax.core.schema import NonNegativeInt, PositiveInt, Range, Share
from optimas_jax.rewards.split import Shares


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of the evaluate stage.

    Attributes:
      folder: a saved ``best/`` folder; empty for the run's own.
      split: ``val`` or ``test``.
      repeats: runs of every example, each with fresh sampling seeds.
      changes: also runs the system after each accepted change, to measure the gain of each.
    """

    folder: str = ""
    split: Literal["val", "test"] = "test"
    repeats: PositiveInt = 1
    changes: bool = True


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """Collecting of groups before the search, and the split of inputs for local rewards.

    Attributes:
      inputs: training examples at most, in random order.
      groups: informative groups (candidates with different rewards) per component; 0 collects none.
      calls: component calls after which a component takes no more inputs: a candidate costs a call of its component
        and of each descendant; 0 for no limit.
      share: largest share of ``optimize.max_tokens``, and of the part of ``budget`` beside the measurements.
      stop: share of the inputs on which the epoch of a local reward is chosen.
      report: share of the inputs for alignment.
    """

    inputs: PositiveInt = 50
    groups: NonNegativeInt = 12
    calls: NonNegativeInt = 0
    share: Share = 0.2
    stop: Share = 0.15
    report: Share = 0.25

    def __post_init__(self) -> None:
        _ = self.shares  # checks them

    @property
    def shares(self) -> Shares:
        """Shares of the inputs that are not for training."""
        return Shares(self.stop, self.report)


@dataclasses.dataclass(frozen=True)
class AlignConfig:
    """Settings of the align stage.

    Attributes:
      inputs: informative inputs per component; local rewards are trained on none of them.
      tokens: prompt and completion tokens at most; 0 for no limit.
    """

    inputs: PositiveInt = 16
    tokens: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class RefreshConfig:
    """Settings of the refresh stage.

    Attributes:
      tokens: prompt and completion tokens at most.
      components: names to label, separated by commas; ``all`` for all tuned ones.
      samples: samples of the value in use on each input, and nothing else, as best-of-N draws them. 0 for the
        candidates that a search collects.
    """

    tokens: PositiveInt = 100_000
    components: str = "all"
    samples: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Settings of the probe stage.

    Attributes:
      random_values: most random values of each component.
      screen: most training inputs on which all of them are tried.
      test: further inputs on which the best values of two components are tested, at most: as many as tokens and
        training examples allow.
      tokens: prompt and completion tokens at most. Values and screening inputs are fewer where a run is expensive.
    """

    random_values: PositiveInt = 2
    screen: Annotated[int, Range(2)] = 4
    test: Annotated[int, Range(6)] = 32
    tokens: PositiveInt = 30_000
