"""Heads in closed form: hand-worked cases, the prior, and what labels teach beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.learn.fit import fit_head, held_out_scores
from optimas_jax.rewards.pairs import count_pairs


def groups(rng, count, teach, size=6, candidates=4):
    """Hidden states, log-likelihoods and rewards, which follow ``teach`` times the first dimension, and likelihood."""
    hidden = [rng.normal(size=(candidates, size)).astype(np.float32) for _ in range(count)]
    logliks = [20 * rng.normal(size=candidates).astype(np.float32) for _ in range(count)]
    rewards = [list(teach * h[:, 0] + 0.02 * ll) for h, ll in zip(hidden, logliks, strict=True)]
    return hidden, logliks, rewards


def accuracy(head, weight, hidden, logliks, rewards):
    counts = [count_pairs(h @ head + weight * ll, r, 0.0) for h, ll, r in zip(hidden, logliks, rewards, strict=True)]
    right, pairs = np.sum(counts, 0)
    return right / pairs


def test_without_labels_outputs_are_ordered_by_likelihood():
    head, weight = fit_head([], [], [], 0.0)
    assert head.shape == (0,) and weight > 0
    hidden, logliks, _ = groups(np.random.default_rng(0), 3, 0.0)
    head, weight = fit_head(hidden, logliks, [[0.5] * 4] * 3, 0.0)  # ties teach nothing
    assert not head.any() and head.shape == (6,) and weight > 0


def test_one_dimension_by_hand():
    """One group of two candidates: x solves 2 (x - 0.7) = sigmoid(-x) in units of the difference."""
    head, weight = fit_head([np.zeros((2, 1))], [np.array([5.0, 0.0])], [[1.0, 0.0]], 0.0)
    x = weight * 5.0
    assert 2 * (x - 0.7) == pytest.approx(1 / (1 + np.exp(x)), abs=1e-4) and head[0] == 0


def test_labels_correct_likelihood_and_more_of_them_more():
    test = groups(np.random.default_rng(99), 200, 1.0)
    hidden, logliks, rewards = groups(np.random.default_rng(1), 300, 1.0)
    reached = [accuracy(*fit_head(hidden[:n], logliks[:n], rewards[:n], 0.0), *test) for n in (1, 20, 300)]
    assert accuracy(np.zeros(6), 1.0, *test) < reached[1] < reached[2] and reached[2] > 0.85


def test_where_labels_know_nothing_more_likelihood_is_kept():
    hidden, logliks, rewards = groups(np.random.default_rng(2), 30, 0.0)
    head, weight = fit_head(hidden, logliks, rewards, 0.0)
    test = groups(np.random.default_rng(3), 200, 0.0)
    assert accuracy(head, weight, *test) > 0.95


def test_a_group_counts_once_however_many_candidates_it_has():
    rng = np.random.default_rng(4)
    hidden, logliks, rewards = groups(rng, 2, 1.0)
    twice = [np.concatenate([part, part]) for part in hidden], [np.concatenate([part, part]) for part in logliks]
    once = fit_head(hidden, logliks, rewards, 0.0)
    again = fit_head(*twice, [row * 2 for row in rewards], 0.0)
    assert once[0] == pytest.approx(again[0], rel=1e-3, abs=1e-4) and once[1] == pytest.approx(again[1], rel=1e-3)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(0.01, 100))
def test_units_do_not_matter(seed, nats, hidden_unit):
    hidden, logliks, rewards = groups(np.random.default_rng(seed), 5, 1.0)
    head, weight = fit_head(hidden, logliks, rewards, 0.0)
    scaled = fit_head([hidden_unit * h for h in hidden], [nats * ll for ll in logliks], rewards, 0.0)
    scores = [h @ head + weight * ll for h, ll in zip(hidden, logliks, strict=True)]
    others = [hidden_unit * h @ scaled[0] + nats * scaled[1] * ll for h, ll in zip(hidden, logliks, strict=True)]
    assert np.concatenate(scores) == pytest.approx(np.concatenate(others), rel=2e-2, abs=2e-2)


def test_held_out_scores_are_of_heads_that_have_not_seen_the_input():
    """Labels that follow nothing are fitted well, and no better than by chance where they were left out."""
    rng = np.random.default_rng(5)
    hidden, logliks, rewards = groups(rng, 60, 0.0, size=200)
    logliks = [0.0 * ll for ll in logliks]
    rewards = [list(rng.permutation(4.0 * np.arange(4))) for _ in rewards]
    inputs = [f"e{index // 2}" for index in range(60)]
    scores = held_out_scores(hidden, logliks, rewards, inputs, 0.0)
    right, pairs = np.sum([count_pairs(s, r, 0.0) for s, r in zip(scores, rewards, strict=True)], 0)
    seen = accuracy(*fit_head(hidden, logliks, rewards, 0.0), hidden, logliks, rewards)
    assert seen > 0.7 and 0.4 < right / pairs < 0.6


def test_held_out_scores_of_one_fold_by_hand():
    hidden, logliks, rewards = groups(np.random.default_rng(6), 6, 1.0)
    scores = held_out_scores(hidden, logliks, rewards, list("abcdef"), 0.0)
    others = [1, 2, 3, 4]  # "a" and "f" are in the first of five folds
    head, weight = fit_head(*([part[i] for i in others] for part in (hidden, logliks, rewards)), 0.0)
    np.testing.assert_allclose(scores[5], hidden[5] @ head + weight * logliks[5], rtol=1e-5)
    assert [len(one) for one in held_out_scores([], [], [], [], 0.0)] == []
    [alone] = held_out_scores(hidden[:1], logliks[:1], rewards[:1], ["a"], 0.0)  # nothing is left to learn from
    assert alone.argmax() == logliks[0].argmax()
