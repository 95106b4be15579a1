"""Estimated seconds of answers, worked out by hand."""

import dataclasses

import pytest
from fakes import request

from optimas_jax.loop.forecast.rates import Waits, waits_of
from optimas_jax.parallel.speed import Rates

LOCAL = "hf:org/model-1M"


def asked(text, model=LOCAL):
    return dataclasses.replace(request(text), model=model)


def waits():
    return Waits({LOCAL: 1e6}, Rates(flops=1e9, bandwidth=1e8))


def test_a_prompt_is_computed_and_every_token_of_an_answer_reads_the_weights_once_for_all_in_flight():
    per_token, pass_over_weights = 2 * 1e6 / (0.8 * 1e9), 4 * 1e6 / (0.45 * 1e8)
    assert waits().seconds(asked("x"), 100, 0, 1) == pytest.approx(100 * per_token)
    assert waits().seconds(asked("x"), 0, 10, 1) == pytest.approx(10 * (per_token + pass_over_weights))
    assert waits().seconds(asked("x"), 0, 10, 4) == pytest.approx(10 * (per_token + pass_over_weights / 4))


def test_what_a_prompt_shares_with_an_earlier_one_of_its_model_is_not_computed_again():
    estimates = waits()
    whole = estimates.seconds(asked("Answer. Is it red?"), 18, 0, 1)
    estimates.seconds(asked("Zebra"), 5, 0, 1)
    assert estimates.seconds(asked("Answer. Is it odd?"), 18, 0, 1) == pytest.approx(whole * 4 / 18)
    assert estimates.seconds(asked("Answer. Is it red?"), 18, 0, 1) == 0.0
    assert waits().seconds(asked("Answer. Is it red?"), 18, 0, 1) == whole


def test_answers_of_a_server_share_its_seconds_and_nothing_is_measured():
    make, start, unknown = waits_of(["openai:gpt-4o-mini"])
    alone, beside = (make().seconds(asked("x", "openai:gpt-4o-mini"), 9, 80, count) for count in (1, 4))
    assert alone == pytest.approx(1.6) and beside == pytest.approx(0.4) and (start, unknown) == (0.0, ())
