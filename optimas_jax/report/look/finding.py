"""Findings of rules on a run, and which claims hold when many are tested together."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

Anchor = Literal["head", "system", "changes", "score", "proposals", "rewards", "flips", "kinds", "failures", "bill"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One or two sentences on something that a person should look at.

    Attributes:
      kind: of the finding, one name for each rule: ``answer_type``.
      sentence: plain text with its numbers, which may hold texts of the run: a page escapes it.
      anchor: section of the page that shows more.
      rank: from 1, the most important ones; findings of the same rank are in the order of the rules.
    """

    kind: str
    sentence: str
    anchor: Anchor
    rank: int


@dataclasses.dataclass(frozen=True)
class Claim:
    """A finding that is true only if chance would rarely show as much.

    Attributes:
      p_value: one-sided, of the harm.
      least: smallest p-value that the test could have had, whatever the signs: ``0.5 ** n`` for n differences.
      finding: makes the finding, if the p-value is small enough; None where the effect is too small to be worth a line.
      about: subject of the claim; of several claims on a subject with mostly the same ``examples``, the first is kept.
      examples: indices of the examples that it is about.
    """

    p_value: float
    least: float
    finding: Callable[[], Finding] | None
    about: str = ""
    examples: frozenset[int] = frozenset()


def significant(tests: Sequence[Claim], level: float) -> list[Finding]:
    """Findings of the claims that hold at ``level`` for all of them together.

    Bonferroni's correction by the number of tests that could reach the level at all (Tarone 1990, "A modified
    Bonferroni method for discrete data"): an answer type that no answer has costs nothing.
    """
    bound = level / _attainable([test.least for test in tests], level)
    reported: list[Claim] = []
    for test in tests:
        if test.finding is not None and test.p_value <= bound and not any(_same(test, other) for other in reported):
            reported.append(test)
    return [test.finding() for test in reported if test.finding is not None]


def _same(test: Claim, other: Claim) -> bool:
    """Whether two claims have the same subject, and most examples of ``test`` are also examples of ``other``."""
    return test.about == other.about and len(test.examples & other.examples) >= 0.7 * len(test.examples)


def _attainable(least: Sequence[float], level: float) -> int:
    """The smallest k for which at most k tests can have a p-value of ``level / k``."""
    return next(k for k in range(1, len(least) + 2) if sum(value <= level / k for value in least) <= k)


def quoted(text: str, most: int = 60) -> str:
    """A text of the run inside a sentence: one line without control characters, cut, in quotes."""
    return f'"{plain(text, most)}"'


def plain(text: str, most: int = 60) -> str:
    """A text of the run inside a sentence as ``quoted`` writes it, but without quotes: for names."""
    text = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text[: 4 * most])).strip()
    return text if len(text) <= most else f"{text[: most - 3]}..."
