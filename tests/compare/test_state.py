"""What a search has at its budget."""

from __future__ import annotations

import pytest

from optimas_jax.compare.state import state_at, within
from optimas_jax.core.values import Configuration, Prompt, value_to_json

DEFAULT = Configuration({"part": Prompt("start")})
ACCEPTED = [{"component": "part", "value": value_to_json(Prompt(text))} for text in ("first", "second")]
CURVE = [
    {"at": at, "tokens": tokens, "val_score": score}
    for at, tokens, score in (
        ("start", 10, 0.1),
        ("accept", 40, 0.3),
        ("iteration", 50, 0.3),
        ("accept", 113, 0.6),
        ("iteration", 114, 0.6),
    )
]


@pytest.mark.parametrize(
    ("budget", "instruction", "tokens", "score", "changes"),
    [
        (0, "second", 113, 0.6, 2),
        (113, "second", 113, 0.6, 2),
        (112, "first", 40, 0.3, 1),
        (40, "first", 40, 0.3, 1),
        (39, "start", 10, 0.1, 0),
    ],
)
def test_a_change_that_was_accepted_beyond_the_budget_is_left_out(budget, instruction, tokens, score, changes):
    state = state_at(budget, CURVE, ACCEPTED, DEFAULT)
    assert state.configuration["part"].instruction == instruction
    assert (state.tokens, state.val_score, state.val_start) == (tokens, score, 0.1)
    assert (state.changes, state.later) == (changes, 2 - changes)
    assert "configuration" not in state.to_json()


def test_points_of_an_earlier_attempt_in_a_resumed_journal_do_not_count():
    earlier = [CURVE[0], {"at": "accept", "tokens": 20, "val_score": 0.2}]
    assert state_at(100, [*earlier, *CURVE], ACCEPTED, DEFAULT) == state_at(100, CURVE, ACCEPTED, DEFAULT)


def test_changes_without_a_point_are_an_error():
    with pytest.raises(ValueError, match="2 accepted changes, and 1 points"):
        state_at(100, CURVE[:2], ACCEPTED, DEFAULT)


def test_within_keeps_the_points_up_to_the_budget():
    assert [point["tokens"] for point in within(CURVE, 50)] == [10, 40, 50]
    assert within(CURVE, 0) == CURVE
