"""Objective of a search: the metric minus weighted costs of a run, and limits on these costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from optimas_jax.core.cost import Cost
from optimas_jax.core.schema import NonNegativeFloat, NonNegativeInt
from optimas_jax.core.text.json_text import shown

MEASURES = ("dollars", "tokens", "seconds")  # of a run
_PER_TOKENS = 1000  # tokens to which the weight of tokens refers


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights and limits for the cost of one run of the system.

    Runs are compared by their score minus ``dollars`` times US dollars, ``tokens`` times 1,000 tokens and ``seconds``
    times seconds. Limits hold for the mean over the validation examples: the gate refuses a proposal that exceeds one.

    Attributes:
      dollars: weight of cost, in score per US dollar of a run; 0 ignores it.
      tokens: weight of tokens, in score per 1,000 tokens of a run; 0 ignores them.
      seconds: weight of time, in score per second of a run; 0 ignores it.
      max_dollars: limit on the mean cost of a run, in US dollars; 0 for no limit.
      max_tokens: limit on the mean number of tokens of a run; 0 for no limit.
      max_seconds: limit on the mean time of a run, in seconds; 0 for no limit.
      max_prompt_tokens: limit on what a component's model reads in one request, in tokens: instruction, demonstrations
        and inputs together; 0 for no limit. A local model's tokenizer counts them; for the model of a server, bytes of
        UTF-8 are counted instead. No longer request is sent.
      prompt_tokens_of: limits for single components, which replace ``max_prompt_tokens``: ``draft=800, answer=300``.
    """

    dollars: NonNegativeFloat = 0.0
    tokens: NonNegativeFloat = 0.0
    seconds: NonNegativeFloat = 0.0
    max_dollars: NonNegativeFloat = 0.0
    max_tokens: NonNegativeFloat = 0.0
    max_seconds: NonNegativeFloat = 0.0
    max_prompt_tokens: NonNegativeInt = 0
    prompt_tokens_of: str = ""

    def __post_init__(self) -> None:
        for name in (*MEASURES, *(f"max_{name}" for name in MEASURES)):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"objective.{name} is {getattr(self, name)}, expected a finite number, 0 for none")
        _ = self.caps

    @property
    def is_weighted(self) -> bool:
        """Whether costs are part of what runs are compared by."""
        return any(getattr(self, name) for name in MEASURES)

    @property
    def measured(self) -> tuple[str, ...]:
        """Costs that have a weight or a limit."""
        return tuple(name for name in MEASURES if getattr(self, name) or getattr(self, f"max_{name}"))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by measure."""
        return {name: limit for name in MEASURES if (limit := getattr(self, f"max_{name}"))}

    @property
    def caps(self) -> dict[str, int]:
        """``prompt_tokens_of`` by component.

        Raises:
          ValueError: for a text of another form.
        """
        caps: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in self.prompt_tokens_of.split(","))):
            name, _, number = (text.strip() for text in part.partition("="))
            if not name or not (number.isascii() and number.isdigit()) or not int(number[:18]) > 0 or name in caps:
                raise ValueError(
                    f"objective.prompt_tokens_of has {shown(part)}, expected COMPONENT=TOKENS, ..., every component "
                    "once, for example draft=800, answer=300"
                )
            caps[name] = int(number)
        return caps

    def cap(self, component: str) -> int:
        """Most tokens of a request of a component; 0 for no limit."""
        return self.caps.get(component, self.max_prompt_tokens)

    def penalty(self, cost: Cost) -> float:
        """Score that a cost is worth."""
        amounts = amounts_of(cost)
        per = {**amounts, "tokens": amounts["tokens"] / _PER_TOKENS}
        return sum(getattr(self, name) * per[name] for name in MEASURES if getattr(self, name))

    def exceeded(self, means: Mapping[str, float]) -> tuple[str, ...]:
        """Measures whose limit is exceeded by mean costs of a run, by measure."""
        return tuple(name for name, limit in self.limits.items() if means[name] > limit)


def amounts_of(cost: Cost) -> dict[str, float]:
    """A cost by measure."""
    return {"dollars": cost.usd, "tokens": cost.tokens, "seconds": cost.seconds}
