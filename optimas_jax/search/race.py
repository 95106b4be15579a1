"""Plan of a race: the sizes of its rounds, and the number of proposals that enter the next one.

Proposals are tried on a few inputs, and the better half of them on more (successive halving; Jamieson and Talwalkar,
2016). All proposals share one order of the inputs: each round takes the first of them, and so do the labels.
"""

from __future__ import annotations


def rounds(inputs: int, count: int) -> list[int]:
    """Number of inputs on which proposals were tried after each round; each round doubles it, the last one has all."""
    return sorted({-(-inputs // 2**left) for left in range(count)})


def survivors(values: int, least: int) -> int:
    """Number of proposals that enter the next round: the better half, but at least ``least``."""
    return min(values, max(-(-values // 2), least))
