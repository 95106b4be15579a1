"""Names of trackers, and the calls of language models that trackers get in addition to events."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from optimas_jax.core.text.json_text import shown
from optimas_jax.core.text.nearest import did_you_mean

TRACKERS = ("tensorboard", "wandb", "mlflow", "otel")


def tracker_names(text: str) -> tuple[str, ...]:
    """Names of trackers, separated by commas.

    Raises:
      ValueError: one is unknown, or named twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in TRACKERS or names.count(name) > 1:
            why = "named twice" if name in TRACKERS else "unknown"
            near = did_you_mean(name, TRACKERS) if name not in TRACKERS else ""
            raise ValueError(f"tracker {shown(name)} is {why}{near or ';'} known: {', '.join(TRACKERS)}")
    return names


@dataclasses.dataclass(frozen=True)
class ModelCall:
    """A call of a language model. An answer from the tape is no such call.

    Attributes:
      component: the component that made it, or ``proposer``.
      phase: phase of the run, such as ``optimize``.
      provider: ``openai``, ``anthropic``, or "" for a local model.
      model: the provider's name of the model.
      messages: the conversation: ``role``, ``content``, and where there are some ``calls`` (id, name, arguments) and
        ``call_id``. A role ``text`` has a text to continue.
      max_tokens, temperature, top_p, stop, seed: of the request; ``seed`` is None where nothing is drawn.
      json: whether the answer had to be JSON.
      answer: its text; "" without one.
      outcome: ``ok``, ``truncated``, ``refused``, ``timeout``, ``rate_limited``; or the type of the exception.
      prompt_tokens, completion_tokens, usd: of the answer; 0 without one.
      began, ended: seconds since the epoch, all attempts included.
    """

    component: str
    phase: str
    provider: str
    model: str
    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None
    json: bool
    answer: str
    outcome: str
    prompt_tokens: int
    completion_tokens: int
    usd: float
    began: float
    ended: float
