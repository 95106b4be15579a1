"""The confirmation: whether the final configuration beats the default one on examples that no gate has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from optimas_jax.core.stats import compare

FINAL_LEVEL = 0.04  # level of the test of the final configuration
EARLIER_LEVEL = 0.01  # level of all tests of earlier states together


@dataclasses.dataclass(frozen=True)
class StateTest:
    """The test of a state of the search against the default configuration.

    Attributes:
      changes: accepted changes that lead to this state; the default configuration has none.
      gain: mean difference of the scores.
      ci95: bootstrap interval of the gain over examples.
      p_value: one-sided, of the sign-flip test.
      level: level of the test (Holm's for an earlier state).
      confirmed: whether it is confirmed.
    """

    changes: int
    gain: float
    ci95: tuple[float, float]
    p_value: float
    level: float
    confirmed: bool


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Result of the confirmation.

    Attributes:
      n: examples of the ``confirm`` split.
      changes: accepted changes of the last confirmed state; None if no state is confirmed.
      verdict: one line for tables and the console.
      tests: tests of the final state and of earlier ones, the final one first.
    """

    n: int
    changes: int | None
    verdict: str
    tests: tuple[StateTest, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def confirm(default: Sequence[float], states: Sequence[Sequence[float] | None]) -> Confirmation:
    """Tests the final configuration at level 0.04 and, if it is not confirmed, earlier ones by Holm within 0.01.

    If no state has a gain, the probability that any is confirmed is at most 0.05.

    Args:
      default: [n] scores of the default configuration on the ``confirm`` examples.
      states: [n] scores after each accepted change on the same examples, the final configuration last; None for an
        earlier state that was not run. If the final state is confirmed, earlier ones are not tested.

    Raises:
      ValueError: no scores of the final state, or numbers of scores that differ.
    """
    n, last = len(default), len(states)
    if not states:
        return Confirmation(n, None, "nothing to confirm: no change was accepted")
    if 0.5**n > FINAL_LEVEL:
        return Confirmation(n, None, f"not confirmed: too few ({n} examples)")
    if states[-1] is None:
        raise ValueError("the confirmation needs the scores of the final state, got None")
    final = _test(last, states[-1], default, FINAL_LEVEL)
    if final.confirmed:
        return Confirmation(n, last, "confirmed", (final,))
    earlier = [(i, scores) for i, scores in enumerate(states[:-1], start=1) if scores is not None]
    tests = _holm([_test(i, scores, default, EARLIER_LEVEL) for i, scores in earlier])
    changes = max((test.changes for test in tests if test.confirmed), default=None)
    verdict = "not confirmed" if changes is None else f"confirmed: the state after {changes} of {last} accepted changes"
    return Confirmation(n, changes, verdict, (final, *tests))


def _test(changes: int, scores: Sequence[float], default: Sequence[float], level: float) -> StateTest:
    comparison = compare(scores, default)
    p_value = comparison.p_value
    return StateTest(changes, comparison.mean, comparison.ci95, p_value, level, p_value <= level)


def _holm(tests: Sequence[StateTest]) -> list[StateTest]:
    """Holm 1979: the k-th smallest p-value is compared with level / (tests - k + 1), until one is above it."""
    decided: list[StateTest] = []
    confirmed = True
    for k, test in enumerate(sorted(tests, key=lambda test: test.p_value)):
        level = test.level / (len(tests) - k)
        confirmed = confirmed and test.p_value <= level
        decided.append(dataclasses.replace(test, level=level, confirmed=confirmed))
    return sorted(decided, key=lambda test: test.changes)
