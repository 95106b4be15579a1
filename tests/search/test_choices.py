"""Listed values: which are tried, how TPE searches the others, the choice of a model per input."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.core.types import StopRun
from optimas_jax.core.values import (
    Choice,
    Grid,
    Hyperparameters,
    LoraSpace,
    Models,
    PerInstance,
    PromptSpace,
    nothing_to_tune,
    other_values,
)
from optimas_jax.search.optimisers.choices import GRID_LIMIT, check_tpe, maximise, per_instance_value, propose_values

OPTIONS = {"x": tuple(range(10)), "y": tuple(range(10)), "z": ("far", "near")}


def bowl(points):
    """Highest at x = 7, y = 3, near."""
    return [-abs(p["x"] - 7) - abs(p["y"] - 3) + (p["z"] == "near") for p in points]


def test_a_small_product_is_looked_at_whole_and_in_order():
    tried = maximise({"x": (1, 2), "y": (3, 4)}, lambda points: [p["x"] * p["y"] for p in points], trials=4, seed=0)
    assert tried == [({"x": 1, "y": 3}, 3), ({"x": 1, "y": 4}, 4), ({"x": 2, "y": 3}, 6), ({"x": 2, "y": 4}, 8)]


def test_tpe_finds_more_than_chance_would_and_the_same_again():
    tried = maximise(OPTIONS, bowl, trials=40, seed=3)
    assert tried == maximise(OPTIONS, bowl, trials=40, seed=3)
    assert tried != maximise(OPTIONS, bowl, trials=40, seed=4)
    best = [max(score for _, score in maximise(OPTIONS, bowl, trials=40, seed=seed)) for seed in range(5)]
    assert min(best) >= -1.0  # of 200 points 17 are as good


def test_no_point_is_scored_twice():
    seen = []

    def count(points):
        seen.extend(tuple(point.values()) for point in points)
        return bowl(points)

    tried = maximise(OPTIONS, count, trials=60, seed=0)
    assert len(seen) == len(set(seen)) == len(tried) <= 60


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(0, 50))
def test_points_lie_in_the_product_and_scores_belong_to_them(trials, seed):
    tried = maximise(OPTIONS, bowl, trials=trials, seed=seed)
    assert 1 <= len(tried) <= trials
    for point, score in tried:
        assert set(point) == set(OPTIONS) and all(point[name] in OPTIONS[name] for name in OPTIONS)
        assert bowl([point]) == [score]


def unused(values):
    raise AssertionError("a small grid is ranked later, all at once")


def test_up_to_the_limit_all_other_values_are_proposed():
    grid = Grid({"x": tuple(range(GRID_LIMIT))})
    current = Hyperparameters({"x": 5})
    assert propose_values(grid, current, unused, trials=4, seed=0) == other_values(grid, current)
    assert len(other_values(grid, current)) == GRID_LIMIT - 1


def test_beyond_it_tpe_decides():
    grid = Grid({"x": OPTIONS["x"], "y": OPTIONS["y"]})
    current = Hyperparameters({"x": 0, "y": 0})

    def gains(values):
        return [score + 10.0 for score in bowl([{**value.settings, "z": ""} for value in values])]

    values = propose_values(grid, current, gains, trials=30, seed=0)
    assert len(values) <= 30 and current not in values and len(set(map(str, values))) == len(values)
    assert max(gains(values)) >= 8.0
    names = Models(tuple(f"m{index}" for index in range(GRID_LIMIT + 1)))
    assert set(propose_values(names, Choice("m0"), lambda some: [0.0] * len(some), trials=6, seed=0)) <= {
        *names.values()
    }


def test_without_optuna_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StopRun, match=r"router has 40 values, by TPE, which needs optuna: pip install .*\[tpe\]"):
        check_tpe("router has 40 values")


def test_one_value_is_nothing_to_tune():
    assert nothing_to_tune(Models(("a",))) and nothing_to_tune(Grid({"x": (1,), "y": (2,)}))
    assert not nothing_to_tune(Models(("a", "b"))) and not nothing_to_tune(Grid({"x": (1,), "y": (2, 3)}))
    assert not nothing_to_tune(PromptSpace()) and not nothing_to_tune(LoraSpace()) and not nothing_to_tune(None)


def test_models_are_chosen_per_input_with_the_other_settings_as_they_are():
    models = Models(("a", "b"))
    assert per_instance_value(models, Choice("a"), "r", "sample") == PerInstance(
        (Choice("a"), Choice("b")), "r", mode="sample"
    )
    grid = Grid({"temperature": (0.0, 1.0), "model": ("a", "b")})
    chosen = per_instance_value(grid, Hyperparameters({"temperature": 1.0, "model": "b"}), "r", "argmax")
    assert chosen is not None
    assert [dict(value.settings) for value in chosen.values] == [
        {"temperature": 1.0, "model": "a"},
        {"temperature": 1.0, "model": "b"},
    ]
    assert per_instance_value(Grid({"k": (1, 2)}), Hyperparameters({"k": 1}), "r", "argmax") is None
    assert per_instance_value(Models(("a",)), Choice("a"), "r", "argmax") is None
