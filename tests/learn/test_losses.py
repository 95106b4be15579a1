import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.learn.losses import bradley_terry, ordered_pairs, pair_accuracy
from optimas_jax.rewards.pairs import count_pairs

REWARDS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=6)
SCORES = st.lists(st.floats(-5, 5, width=32, allow_subnormal=False), min_size=6, max_size=6)


def loss(scores, rewards, valid=None, threshold=0.0, margin=0.0):
    scores, rewards = jnp.asarray(scores, jnp.float32), jnp.asarray(rewards, jnp.float32)
    valid = jnp.ones(scores.shape, bool) if valid is None else jnp.asarray(valid)
    return bradley_terry(scores, rewards, valid, threshold=threshold, margin=margin)


def by_hand(scores, rewards, threshold=0.0, margin=0.0):
    terms = [
        np.log1p(np.exp(-(scores[i] - scores[j] - margin)))
        for i in range(len(rewards))
        for j in range(len(rewards))
        if rewards[i] - rewards[j] > threshold
    ]
    return (np.mean(terms) if terms else 0.0), len(terms)


def test_one_pair_by_hand():
    value, count = loss([2.0, 0.5], [1.0, 0.0])
    assert value == pytest.approx(np.log1p(np.exp(-1.5)), rel=1e-6)
    assert count == 1


def test_margin_is_subtracted_inside_the_sigmoid():
    assert loss([2.0, 0.5], [1.0, 0.0], margin=1.0)[0] == pytest.approx(np.log1p(np.exp(-0.5)), rel=1e-6)


@given(REWARDS, SCORES, st.sampled_from([0.0, 0.3]))
def test_equals_a_plain_loop(rewards, scores, threshold):
    scores = scores[: len(rewards)]
    value, count = loss(scores, rewards, threshold=threshold)
    expected, pairs = by_hand(scores, rewards, threshold)
    assert count == pairs
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@given(REWARDS, SCORES)
def test_padding_changes_nothing(rewards, scores):
    scores = scores[: len(rewards)]
    padded = loss([*scores, 9.0], [*rewards, 7.0], [True] * len(rewards) + [False])
    np.testing.assert_allclose(padded, loss(scores, rewards), rtol=1e-6)


def test_a_pair_counts_once_and_in_the_right_direction():
    pairs = ordered_pairs(jnp.array([0.0, 1.0, 1.0]), jnp.ones(3, bool), 0.0)
    np.testing.assert_array_equal(pairs, [[False, False, False], [True, False, False], [True, False, False]])


def test_ties_teach_nothing_and_give_finite_gradients():
    value, count = loss([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
    assert (value, count) == (0.0, 0.0)
    grads = jax.grad(lambda s: loss(s, [0.5, 0.5, 0.5])[0])(jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(grads, 0.0)


def test_gradient_pushes_the_better_one_up():
    grads = jax.grad(lambda s: loss(s, [0.0, 1.0])[0])(jnp.array([3.0, -3.0]))
    assert grads[1] < 0 < grads[0]
    assert np.isfinite(jax.grad(lambda s: loss(s, [0.0, 1.0])[0])(jnp.array([1e4, -1e4]))).all()


@given(REWARDS, SCORES)
def test_pair_accuracy_equals_the_hosts_count(rewards, scores):
    scores = [float(np.float32(s)) for s in scores[: len(rewards)]]
    right, total = pair_accuracy(
        jnp.asarray(scores, jnp.float32), jnp.asarray(rewards, jnp.float32), jnp.ones(len(rewards), bool), threshold=0.0
    )
    assert (right, total) == count_pairs(scores, rewards, 0.0)


def test_equal_scores_count_half():
    right, total = pair_accuracy(jnp.zeros(2), jnp.array([0.0, 1.0]), jnp.ones(2, bool), threshold=0.0)
    assert (right, total) == (0.5, 1.0)
