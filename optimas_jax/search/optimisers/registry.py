"""The optimisers by their names in ``config.optimize.proposers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optimas_jax.core.text.json_text import shown
from optimas_jax.search.optimisers import copro, demos, feedback, mipro, opro, random_search, reflect
from optimas_jax.search.optimisers.task import Effort, Proposer

FEEDBACK, REFLECT = "feedback", "reflect"
PROPOSERS: Mapping[str, Proposer] = {
    "demos": demos.propose,
    "opro": opro.propose,
    "copro": copro.propose,
    "mipro": mipro.propose,
    REFLECT: reflect.propose,
    FEEDBACK: feedback.propose,
    "random": random_search.propose,
}
OWN = "own:"  # prefix of the name of an optimiser that is a function of the user's (``search.hooks``)
REWRITING = ("opro", "copro", REFLECT)  # optimisers that ask a language model for another instruction
SELECTORS = ("llmselector",)  # optimisers that choose models and write no prompts
# Settings that must all be positive for an optimiser to write any prompt; then settings of which one must be positive.
_NEEDS_ALL = {
    "demos": ("demo_sets", "demo_size"),
    "opro": ("instructions",),
    "copro": ("instructions", "depth"),
    "reflect": ("rewrites",),
}
_NEEDS_ONE = {"mipro": ("instructions", "demo_size"), "random": ("instructions", "demo_sets")}


def proposer_names(text: str) -> tuple[str, ...]:
    """Reads names of optimisers, separated by commas.

    Raises:
      ValueError: for an unknown name, a repeated one, or none. Whether there is a function of an ``own:NAME`` is
        checked where hooks are known (``loop.hooks.settings``).
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    known = (*PROPOSERS, *SELECTORS)
    if (
        not {name for name in names if not name.startswith(OWN)} <= set(known)
        or not names
        or len(set(names)) < len(names)
    ):
        raise ValueError(
            f"proposers is {shown(text)}: name one or more, separated by commas, each once; known: {', '.join(known)}, "
            f"and {OWN}NAME for an own proposer"
        )
    return names


def why_no_prompts(names: Sequence[str], effort: Effort) -> str:
    """Why none of the named optimisers can write a prompt, such as "opro needs instructions > 0"; "" if one can.
    ``feedback`` counts only if it is the single one: it can write prompts if the metric has feedback."""
    reasons = []
    for name in names:
        if name == FEEDBACK and len(names) > 1:
            continue
        if name == FEEDBACK or name.startswith(OWN):
            return ""
        if name in SELECTORS:
            reasons.append(f"{name} chooses models only")
            continue
        needed, enough = (_NEEDS_ALL[name], all) if name in _NEEDS_ALL else (_NEEDS_ONE[name], any)
        if enough(getattr(effort, setting) for setting in needed):
            return ""
        reasons.append(f"{name} needs {(' and ' if enough is all else ' or ').join(f'{s} > 0' for s in needed)}")
    return ", ".join(reasons)
