"""Plan of a race: the sizes of its rounds, and the number of proposals that enter the next one.

Proposals are tried on a few inputs, and the better half of them on more (successive halving; Jamieson and Talwalkar,
2016). One order of the inputs serves all proposals: each round takes the first inputs of it, and so do the labels.
"""

from __future__ import annotations


def rounds(inputs: int, count: int) -> list[int]:
    """Number of inputs that proposals have been tried on after each round; each round doubles it, the last has all."""
    return sorted({-(-inputs // 2**left) for left in range(count)})


def survivors(values: int, least: int) -> int:
    """Number of proposals that enter the next round: the better half, but at least ``least``."""
    return min(values, max(-(-values // 2), least))
