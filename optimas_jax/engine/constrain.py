"""Constrained decoding: answers that keep to a JSON Schema, and end within their limit.

A matcher (``llguidance``) knows which tokens may come next. From time to time a short way from the current token to the
end is planned (``engine.closing``). If the rest of the limit is too small for it, the tokens since the last plan are
taken back, and the last plan is followed. So every answer ends within its limit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from optimas_jax.checkpoints.tokenizer import Tokenizer
from optimas_jax.engine.closing import Path, close, start

_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps writes
_LARGEST = 1e15  # bound of numbers whose schema has none: otherwise a model may write 1e999, which is not finite
_SCHEMAS = 64  # most compiled schemas that are cached
_PART = 4  # a new plan is made when 1 / 4 of the room that the last one left is used


class SchemaError(ValueError):
    """A schema that the engine cannot enforce, or a limit too low for its shortest answer."""


@dataclasses.dataclass(frozen=True)
class Constrainer:
    """Makes constraints for a model.

    Attributes:
      tokenizer: of the model.
      vocab: V; may be larger than the tokenizer's vocabulary, or smaller by tokens that occur in no text.
    """

    tokenizer: Tokenizer
    vocab: int

    def start(self, schema: str, limit: int) -> Constraint:
        """The constraint of a new answer.

        Args:
          schema: JSON Schema, as text.
          limit: most tokens of the answer.

        Raises:
          SchemaError: the schema cannot be enforced, or the smallest answer that fits it is longer than ``limit``.
        """
        path, plan = self._known(schema)
        if len(plan) > limit:
            raise SchemaError(
                f"max_tokens is {limit}, and the smallest answer of the type that is asked for has {len(plan)} tokens "
                f"({self.tokenizer.decode(plan)}): raise max_tokens"
            )
        return Constraint(self, path, plan, limit)

    def _compiled(self, schema: str) -> tuple[Path, list[int]]:
        """The path at the start of an answer, and the plan of the smallest answer."""
        grammar = LLMatcher.grammar_from_json_schema(bounded(json.loads(schema)), overrides=_FORM)  # type: ignore[arg-type]
        is_wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._words)
        if is_wrong:
            reason = " ".join(messages[0].split())
            raise SchemaError(f"the engine cannot keep to the schema {schema} ({reason}): give the field another type")
        path = start(LLMatcher(self._words, grammar, log_level=0), self._byte_ids)
        plan = self.plan(path)
        if plan is None:
            raise SchemaError(f"the engine finds no answer that fits the schema {schema}")
        return path, plan

    def plan(self, path: Path) -> list[int] | None:
        """Tokens that complete an answer, the end-of-sequence token included; None if no way to its end was found."""
        ended = close(path)
        if ended is None:
            return None
        text, cut = ended.text, 0
        while cut < len(text) and text[cut] & 0xC0 == 0x80:  # the rest of a character that began before
            cut += 1
        ids = self._byte_ids[list(text[:cut])].tolist() + self._words.greedy_tokenize(text[cut:].decode())
        return [*ids, self.tokenizer.eos_ids[0]]

    def text_of(self, token: int) -> bytes:
        return self._words.decode_bytes([token])

    @cached_property
    def _known(self) -> Callable[[str], tuple[Path, list[int]]]:
        return lru_cache(_SCHEMAS)(self._compiled)

    @cached_property
    def _words(self) -> LLTokenizer:
        ends = list(self.tokenizer.eos_ids)
        most = max(self.vocab, len(self.tokenizer.backend))
        return llguidance.hf.from_tokenizer(self.tokenizer.backend, n_vocab=most, eos_token=ends)

    @cached_property
    def _byte_ids(self) -> np.ndarray:
        """[256] int32, the token of each single byte; -1 for a byte without one."""
        ids = np.full(256, -1, np.int32)
        for index in reversed(range(len(self.tokenizer.backend))):
            text = self.text_of(index)
            if len(text) == 1 and not self._words.is_special_token(index):
                ids[text[0]] = index
        if missing := [chr(byte) for byte in range(0x20, 0x7F) if ids[byte] < 0]:
            raise SchemaError(
                f"the tokenizer has no token for {''.join(missing)} alone: the model cannot write any JSON"
            )
        return ids


class Constraint:
    """The constraint of one answer, which grows token by token.

    Attributes:
      settled: number of tokens, from the first one on, that cannot be taken back any more.
    """

    def __init__(self, constrainer: Constrainer, path: Path, plan: list[int], limit: int):
        self._constrainer, self._limit = constrainer, limit
        self._path, self._ids = path.copy(), list[int]()
        self._settle(plan)

    def fill(self, allowed: np.ndarray) -> None:
        """Writes the tokens that may come next into ``allowed``: [ceil(V / 32)] int32, a bit for each token."""
        if not self._closing:
            mask = np.zeros((1, max(len(allowed), -(-len(self._constrainer.tokenizer.backend) // 32))), np.int32)
            llguidance.numpy.fill_next_token_bitmask(self._path.matcher, mask)
            allowed[:] = mask[0, : len(allowed)]
            return
        token = self._plan[len(self._ids) - self.settled]
        allowed[:] = 0
        allowed.view(np.uint32)[token // 32] = 1 << (token % 32)

    def append(self, token: int) -> int:
        """Adds a sampled token; returns how many of the latest tokens are taken back, most often 0."""
        self._ids.append(token)
        if self._closing or token in self._constrainer.tokenizer.eos_ids:
            return 0
        self._path = self._path.plus(self._constrainer.text_of(token), [token])
        if len(self._ids) < self._next_plan:
            return 0
        plan = self._constrainer.plan(self._path)
        if plan is not None and len(plan) <= self._limit - len(self._ids):
            self._settle(plan)
            return 0
        back = len(self._ids) - self.settled
        del self._ids[self.settled :]
        self._closing = True
        return back

    def _settle(self, plan: list[int]) -> None:
        self.settled, self._plan = len(self._ids), plan
        room = self._limit - self.settled - len(plan)
        self._closing = room == 0
        self._next_plan = self.settled + max(room // _PART, 1)


def bounded(schema: Any) -> Any:
    """A schema in which all numbers have bounds."""
    if isinstance(schema, list):
        return [bounded(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {key: value if key in ("enum", "const") else bounded(value) for key, value in schema.items()}
    if result.get("type") == "number":
        if not {"minimum", "exclusiveMinimum"} & set(result):
            result["minimum"] = -_LARGEST
        if not {"maximum", "exclusiveMaximum"} & set(result):
            result["maximum"] = _LARGEST
    return result
