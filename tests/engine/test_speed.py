"""Measured speed of the engine, for models of given sizes."""

import dataclasses

import pytest

from optimas_jax.checkpoints.weights import RANDOM_CONFIG
from optimas_jax.engine import speed as speeds
from optimas_jax.engine.speed import EngineSpeed, measure_engine

CONFIG = RANDOM_CONFIG


def test_an_engine_is_measured_without_weights(monkeypatch):
    monkeypatch.setattr(speeds, "TOGETHER", (1, 2))  # one size of a batch, and so one program
    monkeypatch.setattr(speeds, "LENGTHS", (16, 32))
    monkeypatch.setattr(speeds, "_PASSES", ((1, 64), (8, 64), (2, 100)))
    speed = measure_engine(dataclasses.replace(CONFIG, num_layers=1))
    assert min(speed.prompt) >= 0 and speed.prompts >= 0 and len(speed.step) == 2
    assert speed.load_prompts >= 0 and speed.load_step >= 0
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in speed.step)


def test_a_large_model_follows_from_some_of_its_layers(monkeypatch):
    def measure(config):
        seconds = 1.0 + 2.0 * config.num_layers
        return EngineSpeed((seconds,) * 2, seconds, ((seconds,) * 2,) * 4, seconds, seconds)

    monkeypatch.setattr(speeds, "_measure", measure)
    deep = dataclasses.replace(CONFIG, num_layers=100)
    assert measure_engine(deep).prompt == (201.0, 201.0)
    monkeypatch.setattr(speeds, "_LARGEST", speeds._weight_bytes(speeds._with_layers(deep, 10)))
    measured = measure_engine(deep)
    assert measured.prompt[1] == pytest.approx(201.0) and measured.step[2][1] == pytest.approx(201.0)
    assert measured.prompts == pytest.approx(201.0) and measured.load_step == pytest.approx(201.0)


def test_layers_of_several_kinds_are_measured_in_their_order():
    kinds = ("unrotated", "full", "sliding", "full", "full")
    config = dataclasses.replace(CONFIG, num_layers=5, layer_kinds=kinds, window=64)
    assert speeds._with_layers(config, 3).layer_kinds == kinds[:3] and speeds._with_layers(config, 3).window == 64
    assert speeds._with_layers(config, 2).window == 0
    assert measured(
        config, lambda config: EngineSpeed((float(config.num_layers),) * 2, 0.0, ((1.0,) * 2,) * 4)
    ).prompt == (5.0, 5.0)


def measured(config, measure):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speeds, "_measure", measure)
        return measure_engine(config)


def test_a_model_without_room_is_not_measured(monkeypatch):
    monkeypatch.setattr(speeds, "free_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match="measuring 2 of 2 layers"):
        measure_engine(dataclasses.replace(CONFIG, num_layers=2))


def test_noise_makes_no_step_shorter_than_one_of_fewer_requests_or_shorter_prompts():
    speed = EngineSpeed((0.0, 0.0), 0.0, ((0.0102, 0.0098), (0.02, 0.02), (0.01, 0.05), (0.015, 0.05)))
    assert speed.step_seconds(1, 20_000) == pytest.approx(0.0102)
    assert speed.step_seconds(100, 128) == pytest.approx(0.02)
