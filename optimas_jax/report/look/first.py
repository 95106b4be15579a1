"""Look here first: all rules on one run, the most important findings first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from optimas_jax.core.text.frames import describe_error
from optimas_jax.report.look import answers, calls, changes, costs, learning, metrics, outcome, outputs, scores, search
from optimas_jax.report.look.finding import Claim, Finding, plain, significant
from optimas_jax.report.run_files import RunFiles

MOST = 5  # findings that are shown at first
LEVEL = 0.025  # of each family of tests: largest share of runs without any true change in which it has a finding
_LAST, _LONGEST = 9, 300  # rank of a rule that failed, and letters of its error
Rule = Callable[[RunFiles], Sequence[Finding]]
Test = Callable[[RunFiles], Sequence[Claim]]

RULES: tuple[Rule, ...] = (
    *(outcome.ended_without_results, outcome.not_confirmed, outcome.less_than_promised, outcome.without_effect),
    *(outcome.flat_scores, outcome.validation_fell),
    *(changes.examples_in_prompts, changes.prompts_say_nothing, changes.prompts_grew),
    *(calls.no_longer_called, calls.outcomes_failed),
    *(learning.nothing_to_learn_from, learning.at_chance, learning.behind_a_control, learning.cost_more_than_saved),
    learning.weights_learned_nothing,
    *(search.gate_never_tested, search.dropped_for_one_reason, search.budget_ended, search.gate_examples_too_few),
    *(costs.run_grew, costs.bill_above_plan, costs.bill_uncertain),
)
FAMILIES: tuple[tuple[Test, ...], ...] = (
    (scores.whole_lost, scores.kinds_lost, scores.kinds_left_behind, metrics.metrics_fell, metrics.parts_fell),
    (
        *(answers.answers_of_another_sort, calls.runs_failed, calls.calls_failed, calls.answers_unread),
        *(calls.calls_grew, outputs.outputs_say_nothing, outputs.outputs_constant, metrics.spread_grew),
    ),
)


def look_first(run: RunFiles) -> list[Finding]:
    """What to look at first in a run, the most important first; none where nothing stands out.

    Rules that count or compare recorded facts give a finding whenever these hold. Rules that test differences between
    examples share one level (``significant``), so that noise alone rarely gives a finding.

    A rule that raises becomes a finding of its own, the last one, and a warning; the other rules still apply.
    """
    failed: list[Finding] = []

    def apply(rule: Callable[..., Sequence[Any]], *arguments: Any) -> Sequence[Any]:
        try:
            return rule(*arguments)
        except Exception as error:
            sentence = f"The rule {rule.__name__} failed, and says nothing of this run: "
            sentence += plain(describe_error(error), _LONGEST)
            warnings.warn(sentence, stacklevel=2)
            failed.append(Finding("rule_failed", sentence, "head", _LAST))
            return ()

    certain = [finding for rule in RULES for finding in apply(rule, run)]
    tested = [
        finding
        for family in FAMILIES
        for finding in apply(significant, [test for rule in family for test in apply(rule, run)], LEVEL)
    ]
    return sorted([*tested, *certain, *failed], key=lambda finding: finding.rank)


def shown_first(findings: Sequence[Finding], most: int = MOST) -> tuple[Sequence[Finding], int]:
    """The findings to show, and how many more there are."""
    return findings[:most], max(0, len(findings) - most)
