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
      folder: saved ``best/`` folder to evaluate; "" for the run's own.
      split: split to evaluate on: ``val`` or ``test``.
      repeats: number of runs of every example, each with fresh sampling seeds.
      changes: whether the system also runs after each accepted change, to measure the gain of each.
    """

    folder: str = ""
    split: Literal["val", "test"] = "test"
    repeats: PositiveInt = 1
    changes: bool = True


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """Collecting of groups before the search, and the split of inputs for local rewards.

    Attributes:
      inputs: largest number of training examples, in random order.
      groups: number of informative groups (candidates with different rewards) to collect per component; 0 collects
        none.
      calls: number of component calls after which a component takes no more inputs. A candidate costs a call of its
        component and of each descendant. 0 for no limit.
      share: largest share of ``optimize.max_tokens`` that collecting may use; also the largest share of ``budget``,
        after the measurements are set aside.
      stop: share of the inputs on which the epoch of a local reward is chosen.
      report: share of the inputs on which alignment is measured.
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
      inputs: number of informative inputs per component. Local rewards are trained on none of them.
      tokens: limit on prompt and completion tokens; 0 for no limit.
    """

    inputs: PositiveInt = 16
    tokens: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class RefreshConfig:
    """Settings of the refresh stage.

    Attributes:
      tokens: limit on prompt and completion tokens.
      components: names of the components to label, separated by commas; ``all`` for all tuned ones.
      samples: number of samples of the value in use to label on each input, as best-of-N draws them; nothing else is
        labelled then. 0 labels the candidates that a search collects.
    """

    tokens: PositiveInt = 100_000
    components: str = "all"
    samples: NonNegativeInt = 0


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Settings of the probe stage.

    Attributes:
      random_values: largest number of random values of each component.
      screen: largest number of training inputs on which all these values are tried.
      test: largest number of further inputs on which the best values of two components are tested. Tokens and training
        examples may allow fewer.
      tokens: limit on prompt and completion tokens. Where a run is expensive, fewer values and screening inputs are
        tried.
    """

    random_values: PositiveInt = 2
    screen: Annotated[int, Range(2)] = 4
    test: Annotated[int, Range(6)] = 32
    tokens: PositiveInt = 30_000
