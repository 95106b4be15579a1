"""Screen: what values are worth, from local rewards on all inputs and global rewards on some.

Local rewards order outputs; they have no unit, and are right more or less often. Global rewards that are known of a few
outputs say how much a local reward is worth here, and correct what it says of those very outputs: it is a control
variate, as in prediction-powered inference (Angelopoulos et al., 2023), and one that is wrong gets little weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_PRIOR = 0.25  # global reward that a sure local win is worth before anything is known
_STRENGTH = 1.0  # sure wins that would say as much as the prior
_SHRINK = 2.0  # known rewards that would say as much as the belief that there is nothing to correct


@dataclasses.dataclass(frozen=True)
class Change:
    """Another output of a component on one input.

    Attributes:
      local: difference of local rewards, new minus old.
      known: difference of global rewards, where it is known.
    """

    local: float
    known: float | None = None

    @property
    def win(self) -> float:
        """Chance that the new output is better minus chance that it is worse (Bradley-Terry): 2 sigmoid(local) - 1."""
        return math.tanh(self.local / 2)


def expected_gains(values: Sequence[Sequence[Change | None]]) -> list[float]:
    """Mean gain of the global reward over the inputs of each value.

    Args:
      values: by value and input; None where the output is the current one, and so is the reward.
    """
    known = [change for changes in values for change in changes if change is not None and change.known is not None]
    worth = (_STRENGTH * _PRIOR + sum(c.win * c.known for c in known if c.known is not None)) / (
        _STRENGTH + sum(c.win**2 for c in known)
    )
    return [_expected_gain(changes, max(0.0, worth)) for changes in values]


def _expected_gain(changes: Sequence[Change | None], worth: float) -> float:
    made = [change for change in changes if change is not None]
    if not made:
        return 0.0
    missed = [change.known - worth * change.win for change in made if change.known is not None]
    correction = sum(missed) / (len(missed) + _SHRINK)
    return sum(worth * change.win + correction for change in made) / len(changes)


def rounds(inputs: int, count: int) -> list[int]:
    """Of a race (successive halving; Jamieson and Talwalkar, 2016): the number of inputs that values are tried on after
    each round, twice as many as after the one before, and all of them at last."""
    return sorted({-(-inputs // 2**left) for left in range(count)})


def survivors(values: int, least: int) -> int:
    """How many values go on to the next round: the better half, but at least ``least`` of them."""
    return min(values, max(-(-values // 2), least))
