"""Prices of completions in US dollars: ``config.prices`` first, then the list prices of ``genai-prices``.

``config.prices`` replaces or adds prices: ``openai:NAME=0.15/0.60, anthropic:NAME=3/15``, US dollars per million
tokens. The price of a model that is in neither is unknown, not zero.

Discounts for cached prompts and batches are left out, so that the bill is at most the dollars counted here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Protocol

from optimas_jax.core.schema import ConfigError
from optimas_jax.core.text.json_text import shown
from optimas_jax.llm.specs import model_name, provider

_SNAPSHOT = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2}|latest)$")  # names one version of a model


class Price(Protocol):
    """The price of one model."""

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars of one call."""
        ...


@dataclasses.dataclass(frozen=True)
class FlatPrice:
    """US dollars per million tokens read and written (thinking included)."""

    prompt: float
    completion: float

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclasses.dataclass(frozen=True)
class ListPrice:
    """Today's price by ``genai-prices``; long prompts may cost more per token."""

    provider: str
    name: str

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Raises ``LookupError`` for a model that is not listed."""
        import genai_prices

        usage = genai_prices.Usage(input_tokens=prompt_tokens, output_tokens=completion_tokens)
        return float(genai_prices.calc_price(usage, self.name, provider_id=self.provider).total_price)


FREE = FlatPrice(0.0, 0.0)


def price_of(spec: str, overrides: Mapping[str, Price]) -> Price | None:
    """The price of a model: free if it is local, else from ``overrides``, else from the list, else None. Dated versions
    (``gpt-4o-mini-2024-07-18``) have the price of the model, unless they are listed themselves."""
    kind = provider(spec)
    if not kind:
        return FREE
    for name in (spec, _SNAPSHOT.sub("", spec)):
        if name in overrides:
            return overrides[name]
    return _listed(kind, model_name(spec))


@functools.cache
def _listed(kind: str, name: str) -> ListPrice | None:
    """The list price of a model, or None. Cached: every call needs it, and the look-up of an unlisted model is slow."""
    listed = ListPrice(kind, name)
    try:
        listed.usd(0, 0)
    except LookupError:
        return None
    return listed


def parse_prices(text: str) -> dict[str, Price]:
    """Reads ``MODEL=PROMPT/COMPLETION, ...``, US dollars per million tokens.

    Raises:
      ConfigError: for anything else; names the text.
    """
    prices: dict[str, Price] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        spec, _, numbers = entry.rpartition("=")
        try:
            prompt, completion = (float(number) for number in numbers.split("/"))
            if not (provider(spec) and 0 <= prompt < float("inf") and 0 <= completion < float("inf")):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"a price is {shown(entry)}, expected MODEL=PROMPT/COMPLETION in US dollars per million tokens, for "
                "example openai:gpt-4o-mini=0.15/0.60"
            ) from None
        prices[spec] = FlatPrice(prompt, completion)
    return prices
