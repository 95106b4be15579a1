"""Position of a search, read from its events."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from optimas_jax.core.folder import events
from optimas_jax.core.values import Choice, Hyperparameters, PerInstance, Prompt, Value

_LONGEST = 200  # characters of a proposal
_DOING = {
    "base runs": "runs as it is",
    "propose": "proposals are written",
    "label": "proposals are labelled",
    "race": "proposals are ranked",
    "adapt": "local rewards are adapted",
    "validation": "the default is validated",
}


@dataclasses.dataclass(frozen=True)
class Where:
    """The position of a search, from its events.

    Attributes:
      iteration: number of the current iteration, from 1; 0 before the first one.
      component: component of the current iteration.
      waiting: its proposals that the gate has not tested yet: a line of text by id.
      score, start: validation score now, and of the default.
      began: seconds from the start of the command to the start of the iteration.
      ends: start and end of the iterations that this command paid for, in seconds from the start of the command.
      paid: completions that this command had paid for at the start of the iteration.
    """

    iteration: int = 0
    component: str = ""
    waiting: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score: float | None = None
    start: float | None = None
    began: float = 0.0
    ends: tuple[tuple[float, float], ...] = ()
    paid: int = 0

    def after(self, event: events.Event, seconds: float, paid: int) -> Where:
        """The position after one more event, ``seconds`` after the start of the command."""
        replace = dataclasses.replace
        match event:
            case events.Pick():
                return replace(
                    self,
                    iteration=event.iteration + 1,
                    component=event.component,
                    waiting={},
                    began=seconds,
                    paid=paid,
                )
            case events.Proposal():
                words = f"{event.kind}: {in_words(event.value)}"[:_LONGEST]
                return replace(self, waiting={**self.waiting, event.id: words})
            case events.Gate():
                rest = {name: words for name, words in self.waiting.items() if name != event.id}
                return replace(self, waiting=rest)
            case events.Curve():
                start = event.val_score if event.at == "start" else self.start
                ends = self.ends
                if event.at == "iteration" and paid > self.paid:
                    ends = (*ends, (self.began, seconds))
                return replace(self, score=event.val_score, start=start, ends=ends)
        return self

    def doing(self, part: str) -> str:
        """Text on the current work in a part of an iteration."""
        if part == "gate":
            return next(iter(self.waiting.values()), "")
        return _DOING.get(part, "")


def in_words(value: Value) -> str:
    """A value in one line."""
    match value:
        case Prompt():
            shown = f" (and {len(value.demos)} demonstrations)" if value.demos else ""
            return value.instruction[:_LONGEST] + shown
        case Hyperparameters():
            return ", ".join(f"{name} = {setting}" for name, setting in value.settings.items())
        case Choice():
            return value.name
        case PerInstance():
            return "the best for each input"
    return type(value).__name__.lower()
