"""Helpers for building the benchmarks' systems."""

from __future__ import annotations

from collections.abc import Sequence

from optimas_jax.llm.component import LanguageModel


def tuned_by_weights(weights: str, names: Sequence[str]) -> frozenset[str]:
    """The component names in ``weights``, which are separated by commas.

    Args:
      names: allowed names.

    Raises:
      ValueError: for another name.
    """
    tuned = frozenset(name.strip() for name in weights.split(",") if name.strip())
    unknown = sorted(tuned - set(names))
    if unknown:
        raise ValueError(
            f"weights of {', '.join(unknown)}: there is no such LLM component; there are {', '.join(names)}"
        )
    return tuned


def stops(language_model: LanguageModel, end: str) -> tuple[str, ...]:
    """Stop texts besides the end-of-sequence token: ``end`` for plain texts, because small models do not end them by
    themselves; none for chats."""
    return (end,) if language_model.style == "text" else ()
