"""Stop texts that cross tokens: where an answer first holds one, and which part of an unfinished answer is final.

A token that contains a whole stop text ends an answer on the device (``engine.sampling``). The host looks for the other
stop texts in the text of the newest tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from optimas_jax.checkpoints.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class StopTexts:
    """The stop texts of a request.

    Attributes:
      texts: at least one, of at least one byte each.
      tokenizer: of the model that answers.
    """

    texts: tuple[str, ...]
    tokenizer: Tokenizer

    def stopped_at(self, ids: Sequence[int], checked: int) -> int | None:
        """Number of tokens after which the text of an answer first holds a stop text; None if it never does.

        Args:
          ids: the answer so far.
          checked: number of first tokens that are known to hold no stop text.
        """
        # A stop text that ends in an unchecked token crosses at most as many tokens with text as it has bytes.
        first, needed = checked, max(len(text.encode()) for text in self.texts)
        while first > 0 and needed > 0:
            first -= 1
            needed -= self._has_text(ids[first])
        if not self._held(self.tokenizer.decode(ids[first:])):
            return None
        return next(
            (n for n in range(checked + 1, len(ids) + 1) if self._held(answer_text(self.tokenizer, ids[:n]))), None
        )

    def _has_text(self, token: int) -> bool:
        texts = self.tokenizer.token_texts
        return token < len(texts) and texts[token] != ""

    def _held(self, text: str) -> bool:
        return any(stop in text for stop in self.texts)


def crossing(stops: Sequence[str]) -> tuple[str, ...]:
    """Stop texts that may be spread over several tokens: all with more than one byte."""
    return tuple(stop for stop in stops if len(stop.encode()) > 1)


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of the tokens of an answer, without leading white space."""
    return tokenizer.decode(ids).lstrip()


def cut(text: str, stops: Sequence[str]) -> str:
    """An answer up to its first stop text."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def certain(text: str, stops: Sequence[str]) -> str:
    """The part of an unfinished answer that no later token can change. It ends before a stop text, before an end that
    may be the beginning of one, and before an incomplete character."""
    text = text.rstrip("\ufffd")
    if (before_stop := cut(text, stops)) != text:
        return before_stop
    pending = max((size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
    return text[: len(text) - pending]
