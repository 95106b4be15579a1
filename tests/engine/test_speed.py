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
    speed = measure_engine(dataclasses.replace(CONFIG, num_layers=1))
    assert speed.prompt > 0 and len(speed.step) == 2
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in speed.step)


def test_a_large_model_follows_from_some_of_its_layers(monkeypatch):
    def measure(config):
        seconds = 1.0 + 2.0 * config.num_layers
        return EngineSpeed(seconds, ((seconds,) * 2,) * 3)

    monkeypatch.setattr(speeds, "_measure", measure)
    deep = dataclasses.replace(CONFIG, num_layers=100)
    assert measure_engine(deep).prompt == 201.0
    monkeypatch.setattr(speeds, "_LARGEST", speeds._weight_bytes(CONFIG, 10))
    measured = measure_engine(deep)
    assert measured.prompt == pytest.approx(201.0) and measured.step[2][1] == pytest.approx(201.0)
