"""What completions cost: the one table of prices, in US dollars per million tokens.

The table is as of November 2026: list prices of ordinary requests, from genai-prices 0.2.3 (pydantic, MIT), which
follows https://developers.openai.com/api/docs/pricing and https://platform.claude.com/docs/en/about-claude/pricing.
Prices move. ``config.prices`` replaces or adds any of them: ``openai:NAME=0.15/0.60, anthropic:NAME=3/15``. A model
that is neither here nor there has no price, which is not the same as costing nothing.

Discounts for cached prompts and batches are left out, so that a bill is at most what is counted here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from optimas_jax.llm.specs import provider

_SNAPSHOT = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)$")  # names one version of a model at the model's price


@dataclasses.dataclass(frozen=True)
class Price:
    """Of one model, in US dollars per million tokens.

    Attributes:
      prompt, completion: what is read, and what is written (thinking included).
      long: prompts of more tokens than this cost ``long_prompt``, and their answers ``long_completion``; 0 for none.
    """

    prompt: float
    completion: float
    long: int = 0
    long_prompt: float = 0.0
    long_completion: float = 0.0

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars of one call."""
        if self.long and prompt_tokens > self.long:
            return (prompt_tokens * self.long_prompt + completion_tokens * self.long_completion) / 1e6
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


FREE = Price(0.0, 0.0)

PRICES: Mapping[str, Price] = {
    "openai:gpt-3.5-turbo": Price(0.5, 1.5),
    "openai:gpt-3.5-turbo-0125": Price(0.5, 1.5),
    "openai:gpt-4": Price(30, 60),
    "openai:gpt-4-turbo": Price(10, 30),
    "openai:gpt-4.1": Price(2, 8),
    "openai:gpt-4.1-mini": Price(0.4, 1.6),
    "openai:gpt-4.1-nano": Price(0.1, 0.4),
    "openai:gpt-4o": Price(2.5, 10),
    "openai:gpt-4o-2024-05-13": Price(5, 15),
    "openai:gpt-4o-mini": Price(0.15, 0.6),
    "openai:gpt-5": Price(1.25, 10),
    "openai:gpt-5-mini": Price(0.25, 2),
    "openai:gpt-5-nano": Price(0.05, 0.4),
    "openai:gpt-5.1": Price(1.25, 10),
    "openai:gpt-5.2": Price(1.75, 14),
    "openai:gpt-5.4": Price(2.5, 15, 272_000, 5, 22.5),
    "openai:gpt-5.4-mini": Price(0.75, 4.5),
    "openai:gpt-5.4-nano": Price(0.2, 1.25),
    "openai:gpt-5.5": Price(5, 30, 272_000, 10, 45),
    "openai:gpt-5.6-luna": Price(0.2, 1.2, 272_000, 0.4, 1.8),
    "openai:gpt-5.6-sol": Price(4, 20, 272_000, 8, 30),
    "openai:gpt-5.6-terra": Price(2, 12, 272_000, 4, 18),
    "openai:gpt-6-luna": Price(0.1, 0.5, 272_000, 0.2, 0.75),
    "openai:gpt-6-sol": Price(2, 10, 272_000, 4, 15),
    "openai:gpt-6.1-sol": Price(2, 10, 272_000, 4, 15),
    "openai:gpt-6.1-terra": Price(1, 5, 272_000, 2, 7.5),
    "openai:o1": Price(15, 60),
    "openai:o3": Price(2, 8),
    "openai:o3-mini": Price(1.1, 4.4),
    "openai:o4-mini": Price(1.1, 4.4),
    "anthropic:claude-3-haiku": Price(0.25, 1.25),
    "anthropic:claude-3-5-haiku": Price(0.8, 4),
    "anthropic:claude-3-5-sonnet": Price(3, 15),
    "anthropic:claude-3-7-sonnet": Price(3, 15),
    "anthropic:claude-haiku-4-5": Price(1, 5),
    "anthropic:claude-haiku-5-5": Price(0.1, 0.5, 100_000, 0.5, 2.5),
    "anthropic:claude-sonnet-4-5": Price(3, 15, 200_000, 6, 22.5),
    "anthropic:claude-sonnet-4-6": Price(3, 15),
    "anthropic:claude-sonnet-5": Price(2, 10),
    "anthropic:claude-sonnet-5-5": Price(2, 10),
    "anthropic:claude-opus-4-1": Price(15, 75),
    "anthropic:claude-opus-4-5": Price(5, 25),
    "anthropic:claude-opus-4-6": Price(5, 25),
    "anthropic:claude-opus-4-7": Price(5, 25),
    "anthropic:claude-opus-4-8": Price(5, 25),
    "anthropic:claude-opus-5": Price(5, 25),
    "anthropic:claude-opus-5-5": Price(4, 20),
}


def price_of(spec: str, own: Mapping[str, Price]) -> Price | None:
    """The price of a model: free for a local one, ``own`` before the table, None for one that is in neither.

    Dated versions (``gpt-4o-mini-2024-07-18``) cost what the model costs, unless they are listed themselves.
    """
    if not provider(spec):
        return FREE
    names = (spec, _SNAPSHOT.sub("", spec))
    return next((prices[name] for prices in (own, PRICES) for name in names if name in prices), None)


def parse_prices(text: str) -> dict[str, Price]:
    """Reads ``MODEL=PROMPT/COMPLETION, ...``, US dollars per million tokens.

    Raises:
      ValueError: for anything else; says what was seen.
    """
    prices = {}
    for part in filter(None, map(str.strip, text.split(","))):
        spec, _, numbers = part.rpartition("=")
        try:
            prompt, completion = (float(number) for number in numbers.split("/"))
            if not (provider(spec) and 0 <= prompt < float("inf") and 0 <= completion < float("inf")):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"a price is {part!r}, expected MODEL=PROMPT/COMPLETION in US dollars per million tokens, for example "
                "openai:gpt-4o-mini=0.15/0.60"
            ) from None
        prices[spec] = Price(prompt, completion)
    return prices
