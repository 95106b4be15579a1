"""Equations of PPO and GRPO against arrays computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.learn.losses import (
    adapted_coefficient,
    answer_lengths,
    centred_scores,
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    group_advantages,
    kl_to_reference,
    leave_one_out_advantages,
    masked_mean,
    shaped_rewards,
    whiten,
)


def array(*numbers):
    return jnp.asarray(numbers, jnp.float32)


def test_advantages_by_hand():
    # Two answers: tokens 0 and 1, and token 2. discount 0.5, decay 0.5.
    # errors: 1 + 0.5 * 4 - 2 = 1;  3 - 4 = -1;  5 - 6 = -1.  advantages: 1 + 0.25 * -1;  -1;  -1.
    advantages = gae(array(1, 3, 5), array(2, 4, 6), jnp.asarray([False, True, True]), discount=0.5, decay=0.5)
    np.testing.assert_allclose(advantages, [0.75, -1.0, -1.0])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 1000))
def test_advantages_of_answers_end_to_end_equal_those_of_each(sizes, seed):
    rng, total = np.random.default_rng(seed), 31
    sizes = [*sizes, total - sum(sizes)]  # one shape, which compiles once
    rewards, values = rng.standard_normal((2, total)).astype(np.float32)
    last = np.zeros(total, bool)
    last[np.cumsum(sizes) - 1] = True
    computed = gae(rewards, values, last, discount=0.9, decay=0.8)
    start = 0
    for size in sizes:
        later, expected = 0.0, []
        for t in reversed(range(start, start + size)):
            following = values[t + 1] if t + 1 < start + size else 0.0
            later = rewards[t] + 0.9 * following - values[t] + 0.72 * later
            expected.append(later)
        np.testing.assert_allclose(computed[start : start + size], expected[::-1], rtol=1e-4, atol=1e-5)
        start += size


def test_without_decay_advantages_are_returns_minus_values():
    rewards, values = array(0, 0, 1), array(0.5, 0.25, 0.75)
    last = jnp.asarray([False, False, True])
    np.testing.assert_allclose(gae(rewards, values, last, discount=1.0, decay=1.0), [0.5, 0.75, 0.25])


def test_rewards_are_shaped_by_hand():
    rewards = shaped_rewards(
        array(2, 2, 7), array(-1, -1, -3), array(-2, -1, -2), jnp.asarray([False, True, True]), 0.5
    )
    np.testing.assert_allclose(rewards, [-0.5, 2.0, 7.5])


def test_group_advantages_by_hand():
    # Prompt 0 has scores 1 and 3 (mean 2, deviation 1), prompt 1 has two equal ones: nothing to learn.
    advantages = group_advantages(array(1, 5, 3, 5), jnp.asarray([0, 1, 0, 1]), 4)
    np.testing.assert_allclose(advantages, [-1, 0, 1, 0], atol=1e-3)


def test_scores_are_centred_by_hand():
    # Prompt 0 has scores 1 and 3, prompt 1 has 5, prompt 2 none.
    np.testing.assert_allclose(centred_scores(array(1, 5, 3), jnp.asarray([0, 1, 0]), 3), [-1, 0, 1])


def test_leave_one_out_advantages_by_hand():
    # Prompt 0 has scores 1, 3 and 8: 1 - 5.5, 3 - 4.5, 8 - 2. Prompt 1 has one answer and so no baseline.
    advantages = leave_one_out_advantages(array(1, 5, 3, 8), jnp.asarray([0, 1, 0, 0]), 4)
    np.testing.assert_allclose(advantages, [-4.5, 0, -1.5, 6], rtol=1e-6)


def test_lengths_of_answers_by_hand():
    np.testing.assert_allclose(answer_lengths(jnp.asarray([0, 0, 1, 2, 2]), 2), [2, 2, 1, 1, 1])


def test_whitening_by_hand_and_without_its_padding():
    mask = jnp.asarray([True, True, False])
    np.testing.assert_allclose(whiten(array(1, 3, 100), mask), [-1, 1, 0], atol=1e-4)
    assert masked_mean(array(1, 3, 100), mask) == 2.0
    assert masked_mean(array(1.0), jnp.asarray([False])) == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [(1.0, 2.0, -2.0), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6)],
)
def test_policy_loss_is_clipped_by_hand(ratio, advantage, loss):
    computed = clipped_policy_loss(jnp.log(array(ratio)), array(0), array(advantage), clip=0.2)
    np.testing.assert_allclose(computed, [loss], rtol=1e-5)


def test_clipped_ratios_get_no_gradient():
    slope = jax.grad(lambda x: clipped_policy_loss(x, array(0.0), array(1.0), clip=0.2).sum())
    assert slope(array(0.5)) == 0.0
    np.testing.assert_allclose(slope(array(0.0)), [-1.0])


def test_value_loss_by_hand():
    # From 0 the value went to 1, allowed is 0.2; the return is 1: right, but not for what was allowed.
    np.testing.assert_allclose(clipped_value_loss(array(1), array(0), array(1), clip=0.2), [0.5 * 0.8**2], rtol=1e-6)
    np.testing.assert_allclose(clipped_value_loss(array(0.1), array(0), array(1), clip=0.2), [0.5 * 0.9**2], rtol=1e-6)


def test_kl_estimate_is_unbiased_and_never_negative():
    rng = np.random.default_rng(0)
    policy, reference = rng.standard_normal((2, 10))
    p = np.exp(policy - np.logaddexp.reduce(policy))
    log_p, log_q = policy - np.logaddexp.reduce(policy), reference - np.logaddexp.reduce(reference)
    estimates = np.asarray(kl_to_reference(jnp.asarray(log_p), jnp.asarray(log_q)))
    assert (estimates >= 0).all()
    np.testing.assert_allclose((p * estimates).sum(), (p * (log_p - log_q)).sum(), rtol=1e-4)


@pytest.mark.parametrize(("kl", "factor"), [(0.1, 1.0), (0.11, 1.01), (1.0, 1.02), (0.0, 0.98)])
def test_kl_coefficient_follows_its_target(kl, factor):
    computed = adapted_coefficient(2.0, kl, target=0.1, answers=10, horizon=100)
    np.testing.assert_allclose(computed, 2.0 * factor)
