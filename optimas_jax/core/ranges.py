"""Ranges of numbers in a configuration, declared with the field: ``epochs: PositiveInt = 4``."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, ``low`` itself only if ``closed``; no number is NaN."""

    low: float = -math.inf
    high: float = math.inf
    closed: bool = True

    def __contains__(self, value: float) -> bool:
        return (self.low <= value if self.closed else self.low < value) and value <= self.high

    def __str__(self) -> str:
        low = f"at least {self.low:g}" if self.closed else f"above {self.low:g}"
        return low if self.high == math.inf else f"{low} and at most {self.high:g}"


NonNegativeInt = Annotated[int, Range(0)]
PositiveInt = Annotated[int, Range(1)]
NonNegativeFloat = Annotated[float, Range(0)]
PositiveFloat = Annotated[float, Range(0, closed=False)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, closed=False)]
