"""Nested types, and requests for answers of them, for tests with the embedded model."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from optimas_jax.core.values import Prompt
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.llm.forms.schemas import with_line
from optimas_jax.llm.render import render_text


class Tone(enum.Enum):
    KIND = "kind"
    HARSH = "harsh"
    NEUTRAL = "neutral"


@dataclasses.dataclass
class Source:
    title: str
    year: Annotated[int, Field(ge=1500, le=2030)]
    kind: Literal["book", "paper", "page"]
    score: float | None = None


class Part(BaseModel):
    claim: Annotated[str, Field(min_length=3, max_length=40)]
    sources: list[Source]
    true: bool


class Review(BaseModel):
    summary: str
    parts: Annotated[list[Part], Field(min_length=1)]
    tone: Tone
    confidence: Annotated[float, Field(ge=0, le=1)]
    author: str | None
    words: dict[str, int]


TYPES = (Review, Part, list[Source], {"answer": str, "tone": Tone, "best": Source | None})
TOPICS = ("the moon", "bread", "a city by the sea", "the number three", "old maps", "a cat", "rain", "iron")


def answer_request(sampler: Sampler, number: int, **changes: object) -> tuple[AnswerType, SampleRequest]:
    """A request of the embedded model for a typed answer, and its type; of a few kinds and limits."""
    answers = AnswerType("answer", TYPES[number % len(TYPES)])
    prompt = Prompt(with_line("Write a review of the topic.", answers.schema))
    fields = {"topic": TOPICS[number // len(TYPES) % len(TOPICS)]}
    [(_, text)] = render_text(prompt, fields, ("topic",), "answer")
    one = SampleRequest(
        tuple(sampler.tokenizer.encode(text)),
        max_tokens=(90, 120, 160)[number % 3],
        temperature=1.0,
        seed=number,
        schema=json.dumps(answers.schema),
    )
    return answers, dataclasses.replace(one, **changes)  # type: ignore[arg-type]
