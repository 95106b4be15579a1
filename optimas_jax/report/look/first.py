"""Look here first: all rules on one run, the most important findings first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optimas_jax.report.look import scores
from optimas_jax.report.look.finding import Finding, Tested, significant
from optimas_jax.report.run_files import RunFiles

MOST = 5  # findings that are shown at first
Rule = Callable[[RunFiles], Sequence[Finding]]
Test = Callable[[RunFiles], Sequence[Tested]]

RULES: tuple[Rule, ...] = ()
TESTS: tuple[Test, ...] = (scores.whole_lost, scores.kinds_lost, scores.kinds_left_behind)


def look_first(run: RunFiles) -> list[Finding]:
    """What to look at first in a run, the most important first; none where nothing stands out.

    Rules that count or compare what is written speak whenever it is so. Rules that test differences between examples
    speak together at one level (``significant``), so that noise alone rarely does.
    """
    certain = [finding for rule in RULES for finding in rule(run)]
    tested = significant([test for rule in TESTS for test in rule(run)])
    return sorted([*tested, *certain], key=lambda finding: finding.rank)


def shown_first(findings: Sequence[Finding], most: int = MOST) -> tuple[Sequence[Finding], int]:
    """The findings to show, and how many more there are."""
    return findings[:most], max(0, len(findings) - most)
