"""Gains of proposals, from local scores everywhere and global rewards here and there."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranking import SETTINGS, Setting, figures, races

from optimas_jax.search.evidence import (
    Evidence,
    WeightEvidence,
    _pairs,
    effective_runs,
    estimate_gains,
    mean_local,
    shrunk_weight,
    weight_evidence,
    weight_of_groups,
)

NAN = np.nan
STRONG = WeightEvidence(dof=99, inputs=20, sxx=99.0, sxy=49.5, syy=30.0, qxx=500.0, qxy=250.0, qyy=130.0)


def random_evidence(seed, proposals=6, inputs=20, labelled=6, **fields):
    rng = np.random.default_rng(seed)
    local = rng.standard_normal((proposals, inputs))
    reward = 0.7 * local + 0.3 * rng.standard_normal(local.shape)
    reward[:, rng.permutation(inputs)[labelled:]] = NAN
    changed = rng.random(local.shape) < 0.8
    return Evidence(local, reward, **{"changed": changed, **fields})


# The weight


def test_weight_by_hand():
    # slope 5/10, residual sum 5 - 2.5, squared error 2.5 / (10 * 10), F = 10, F0 = 10/8: 1 - 2 * 1.25 / 10
    stats = WeightEvidence(dof=11, inputs=6, sxx=10, sxy=5, syy=5, qxx=0, qxy=0, qyy=0)
    assert shrunk_weight(stats) == pytest.approx(0.5 * 0.75)
    # a negative slope loses twice as much
    assert shrunk_weight(dataclasses.replace(stats, sxy=-5)) == pytest.approx(-0.5 * 0.5)
    # pairs of an input depend on each other: squared error 5 * 6/5 / 100, F = 25/6
    assert shrunk_weight(dataclasses.replace(stats, qyy=5)) == pytest.approx(0.5 * (1 - 2.5 * 6 / 25))


def test_a_weight_needs_four_degrees_of_freedom_and_an_f_value():
    perfect = WeightEvidence(dof=4, inputs=5, sxx=4, sxy=4, syy=4)
    assert shrunk_weight(dataclasses.replace(perfect, dof=3)) == 0.0
    assert shrunk_weight(perfect) == pytest.approx(1.0)
    weak = WeightEvidence(dof=21, inputs=6, sxx=20, sxy=4, syy=20)  # F = 0.8
    assert shrunk_weight(weak) == 0.0
    assert shrunk_weight(WeightEvidence()) == 0.0


def test_statistics_by_hand():
    # unseen local differences have variance 1 within proposals: ((1 + 1) + (1 + 1)) / (1 + 1) = 2, scale sqrt(2)
    evidence = Evidence([[1.0, -1.0], [5.0, 3.0]], [[0.5, -0.5], [1.0, 1.0]], np.ones((2, 2), bool))
    stats = weight_evidence(evidence)
    assert (stats.dof, stats.inputs) == (2, 2)
    # x = +-1/sqrt(2) twice, y = +-0.5 and 0; of each input sxx 1, sxy 0.5/sqrt(2)
    half = 0.5 / np.sqrt(2)
    expected = [2, 2, 2.0, 2 * half, 0.5, 2.0, 2 * half, 2 * half**2]
    np.testing.assert_allclose([float(a) for a in stats.arrays], expected)
    np.testing.assert_allclose([float(a) for a in (stats + stats).arrays], 2 * np.array(expected))


@given(st.integers(0, 10**6))
def test_statistics_without_an_input_are_those_of_the_other_inputs(seed):
    evidence = random_evidence(seed)
    left = _pairs(evidence).without_each_input()
    columns = np.flatnonzero((evidence.labelled & evidence.unseen).any(0))
    scale = _pairs(evidence).scale
    for index, column in enumerate(columns):
        reward = evidence.reward.copy()
        reward[:, column] = NAN
        others = weight_evidence(dataclasses.replace(evidence, reward=reward))
        assert scale == _pairs(dataclasses.replace(evidence, reward=reward)).scale
        for name in ("dof", "inputs", "sxx", "sxy", "syy"):
            assert getattr(left, name)[index] == pytest.approx(float(getattr(others, name)), abs=1e-9)


# The estimate


def test_estimate_by_hand():
    """Equation (1) with the weight of earlier labels: 0.5 less its shrinkage, per standard deviation of the local."""
    local = np.array([[1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 4.0, 0.0]])
    reward = np.array([[0.4, NAN, NAN, NAN], [NAN, NAN, 0.2, NAN]])
    changed = np.array([[True] * 4, [False, False, True, True]])
    estimate = estimate_gains(Evidence(local, reward, changed), STRONG)
    scale = np.sqrt(((9 + 1 + 1 + 9) + (4 + 4)) / (3 + 1))  # within proposals, where the output changed
    weight = shrunk_weight(STRONG) / scale
    assert 0.4 / scale < weight < 0.5 / scale and estimate.weight == pytest.approx(weight)
    # means of local: 4 of all against 1 of labelled, 2 against 4 on the changed half
    assert estimate.gain == pytest.approx([0.4 + weight * (4 - 1), 0.5 * (0.2 + weight * (2 - 4))])
    assert estimate.labelled_gain == pytest.approx([0.4, 0.1])
    assert np.isinf(estimate.variance).all() and np.isinf(estimate.labelled_variance).all()  # one label each


def test_a_local_reward_that_knows_everything_saves_all_labels():
    rng = np.random.default_rng(0)
    local = rng.standard_normal((6, 32))
    truth = 2.0 * local + rng.standard_normal((6, 1))
    reward = np.where(np.arange(32) < 4, truth, NAN)
    evidence = Evidence(local, reward, np.ones(local.shape, bool))
    estimate = estimate_gains(evidence)
    assert estimate.weight == pytest.approx(2.0)
    assert estimate.gain == pytest.approx(truth.mean(-1))
    assert effective_runs(evidence) == pytest.approx(6 * 32)
    assert estimate.variance == pytest.approx(estimate.labelled_variance * 4 / 32)


def test_unchanged_outputs_are_known_to_gain_nothing():
    evidence = random_evidence(1)
    changed = evidence.changed.copy()
    changed[0], changed[1, ::2] = False, False
    estimate = estimate_gains(dataclasses.replace(evidence, changed=changed))
    assert estimate.gain[0] == estimate.variance[0] == estimate.labelled_variance[0] == 0.0
    # whatever the arrays hold there
    noise = np.where(changed, evidence.local, 99.0), np.where(changed, evidence.reward, 99.0)
    other = estimate_gains(Evidence(*noise, changed))
    assert other.gain == pytest.approx(estimate.gain) and other.variance == pytest.approx(estimate.variance)
    # and inputs not tried change nothing
    wider = {
        name: np.pad(getattr(evidence, name), ((0, 0), (0, 3))) for name in ("local", "reward", "changed", "tried")
    }
    wider["local"][:, -1] = NAN
    assert estimate_gains(Evidence(**wider)).gain == pytest.approx(estimate_gains(evidence).gain)


def test_a_local_reward_that_memorised_its_labels_counts_for_nothing():
    evidence = random_evidence(2)
    labelled = evidence.labelled
    rng = np.random.default_rng(3)
    local = np.where(labelled, evidence.reward, rng.standard_normal(labelled.shape))
    memorised = dataclasses.replace(evidence, local=local, seen=labelled)
    estimate = estimate_gains(memorised)
    assert estimate.weight == 0.0 and effective_runs(memorised) == labelled.sum()
    assert estimate.gain == pytest.approx(estimate.labelled_gain)
    assert estimate.variance == pytest.approx(estimate.labelled_variance)
    assert estimate_gains(dataclasses.replace(evidence, local=local)).weight > 0.5  # it would be trusted otherwise


def test_seen_labels_stay_in_the_labelled_mean_and_mark_their_input_for_all_proposals():
    evidence = random_evidence(4, changed=np.ones((6, 20), bool))
    first, *rest = np.flatnonzero(evidence.labelled.any(0))
    seen = np.zeros((6, 20), bool)
    seen[0, first] = True
    estimate = estimate_gains(dataclasses.replace(evidence, seen=seen))
    stats = weight_evidence(dataclasses.replace(evidence, seen=seen))
    assert (stats.inputs, stats.dof) == (5, 6 * 4)
    unseen = np.arange(20) != first
    correction = estimate.weight * (evidence.local[:, unseen].mean(-1) - evidence.local[:, rest].mean(-1))
    mean = np.nanmean(evidence.reward, -1)
    assert estimate.labelled_gain == pytest.approx(mean)
    assert estimate.gain == pytest.approx(mean + 5 / 6 * correction) and estimate.weight > 0


def test_proposals_without_labels():
    evidence = random_evidence(5, changed=np.ones((6, 20), bool))
    reward = evidence.reward.copy()
    reward[0] = NAN
    estimate = estimate_gains(dataclasses.replace(evidence, reward=reward))
    assert estimate.gain[0] == pytest.approx(estimate.weight * evidence.local[0].mean()) and estimate.weight > 0
    assert np.isinf(estimate.variance[0]) and np.isfinite(estimate.variance[1:]).all()
    untried = estimate_gains(dataclasses.replace(evidence, tried=np.arange(6)[:, None] * np.ones(20) > 0))
    assert untried.gain[0] == 0.0 and np.isinf(untried.variance[0]) and np.isfinite(untried.variance[1:]).all()
    # without any label nothing is known, and the paper's ranking remains
    none = dataclasses.replace(evidence, reward=np.full_like(reward, NAN))
    assert (estimate_gains(none).gain == 0).all() and np.isinf(estimate_gains(none).variance).all()
    assert effective_runs(none) == 0.0 and mean_local(none) == pytest.approx(evidence.local.mean(-1))


def test_mean_local_counts_unchanged_outputs_as_no_difference():
    changed, tried = np.array([[True, True, False, True]]), np.array([[True, True, True, False]])
    assert mean_local(Evidence([[3.0, 1.0, 9.0, 9.0]], np.full((1, 4), NAN), changed, tried)) == pytest.approx([4 / 3])


def test_evidence_of_earlier_iterations_gives_a_weight_to_few_labels():
    evidence = random_evidence(6, proposals=1, labelled=2)
    assert estimate_gains(evidence).weight == 0.0
    history = sum((weight_evidence(random_evidence(seed)) for seed in range(3)), WeightEvidence())
    assert 0.4 < estimate_gains(evidence, history).weight < 0.8
    # local rewards on other scales can be added
    scaled = [random_evidence(seed) for seed in range(3)]
    other = [weight_evidence(dataclasses.replace(e, local=e.local * 10.0**k)) for k, e in enumerate(scaled)]
    assert shrunk_weight(sum(other, WeightEvidence())) == pytest.approx(shrunk_weight(history))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward": np.zeros((6, 19))}, r"reward has shape \(6, 19\), local \(6, 20\)"),
        ({"local": np.full((6, 20), NAN)}, "local has a value that is not finite"),
        ({"reward": np.full((6, 20), np.inf)}, "infinite value; use NaN"),
    ],
)
def test_errors_name_the_array(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(random_evidence(0), **fields)


# Units and symmetries

SEEDS, SCALES = st.integers(0, 10**6), st.floats(1e-4, 1e4)


@given(SEEDS, SCALES, SCALES)
def test_no_scale_matters(seed, reward_scale, local_scale):
    evidence = random_evidence(seed)
    scaled = dataclasses.replace(evidence, reward=reward_scale * evidence.reward, local=local_scale * evidence.local)
    before, after = estimate_gains(evidence), estimate_gains(scaled)
    np.testing.assert_allclose(after.gain, reward_scale * before.gain, rtol=1e-7, atol=1e-9 * reward_scale)
    np.testing.assert_allclose(after.variance, reward_scale**2 * before.variance, rtol=1e-7)
    assert after.effective_runs == pytest.approx(float(before.effective_runs))
    assert after.weight == pytest.approx(float(before.weight) * reward_scale / local_scale)


@given(SEEDS, st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_offsets_of_local_scores_do_not_matter_where_labels_anchor_them(seed, offsets):
    evidence = random_evidence(seed, changed=np.ones((6, 20), bool))
    moved = dataclasses.replace(evidence, local=evidence.local + np.array(offsets)[:, None])
    np.testing.assert_allclose(estimate_gains(moved).gain, estimate_gains(evidence).gain, atol=1e-9)


@given(SEEDS, st.permutations(range(6)), st.permutations(range(20)))
def test_order_of_proposals_and_inputs_does_not_matter(seed, proposals, inputs):
    evidence = random_evidence(seed)
    fields = {f.name: getattr(evidence, f.name)[proposals][:, inputs] for f in dataclasses.fields(evidence)}
    before, after = estimate_gains(evidence), estimate_gains(Evidence(**fields))
    np.testing.assert_allclose(after.gain, before.gain[proposals], atol=1e-12)
    assert after.effective_runs == pytest.approx(float(before.effective_runs))


@given(SEEDS, st.integers(0, 3), st.integers(1, 4), st.integers(1, 6))
def test_estimates_are_finite_and_never_claim_more_than_all_inputs(seed, labelled, proposals, inputs):
    evidence = random_evidence(seed, proposals, inputs, labelled)
    estimate = estimate_gains(evidence, STRONG)
    assert np.isfinite(estimate.gain).all() and (estimate.variance >= 0).all()
    assert 0 <= effective_runs(evidence, STRONG) <= proposals * inputs * max(1, labelled) + 1e-9


def test_a_batch_is_its_races():
    evidence, _ = races(Setting(proposals=4, inputs=12, labelled=5, changed=0.7), 0.8, 5, np.random.default_rng(0))
    together = estimate_gains(evidence)
    for index in range(5):
        fields = {f.name: getattr(evidence, f.name)[index] for f in dataclasses.fields(evidence)}
        alone = estimate_gains(Evidence(**fields))
        for field in dataclasses.fields(alone):
            np.testing.assert_allclose(getattr(together, field.name)[index], getattr(alone, field.name), atol=1e-12)


# Simulated races: 12 proposals, 8 of 64 inputs labelled; other kinds are in tests/long/test_ranking.py


@pytest.mark.parametrize(
    ("correlation", "most"),
    [
        (0.0, 1.02),
        (0.6, 0.86),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in ((0.3, 0.99), (0.9, 0.6), (-0.5, 1.02))),
    ],
)
def test_error_and_regret_relative_to_the_labelled_part_alone(correlation, most):
    result = figures(Setting(), correlation, repetitions=10_000, seed=0)
    assert result.labelled_error == pytest.approx(8**-0.5, rel=0.02)
    assert result.error_ratio <= most and result.regret_ratio <= most
    assert result.runs == pytest.approx(result.error_ratio**-2, rel=0.05)  # as measured against the truth
    if correlation == 0.0:
        assert 0.97 <= result.runs <= 1.03
    if correlation == 0.9:
        assert result.runs == pytest.approx(1 / (1 - 0.81 * (1 - 8 / 64)), rel=0.05)


@pytest.mark.parametrize("name", ["all labels memorised", "half of labels memorised"])
def test_a_local_reward_that_memorised_its_labels_costs_nothing(name):
    result = figures(SETTINGS[name], 0.0, repetitions=5_000, seed=0)
    assert result.error_ratio <= 1.02 and result.regret_ratio <= 1.02 and 0.97 <= result.runs <= 1.03


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_variances_are_the_squared_errors(correlation):
    evidence, truth = races(Setting(), correlation, 500, np.random.default_rng(1))
    estimate = estimate_gains(evidence)
    assert estimate.variance.mean() == pytest.approx(((estimate.gain - truth) ** 2).mean(), rel=0.07)
    assert estimate.labelled_variance.mean() == pytest.approx(((estimate.labelled_gain - truth) ** 2).mean(), rel=0.07)


# Groups that a local reward was fitted on


def test_groups_are_proposals_against_their_first_output():
    groups = [
        ("a", [0.0, 1.0, 0.0], [3.0, 5.0, 3.0]),
        ("b", [1.0, 0.0], [0.0, -1.0]),
        ("c", [0.5, 0.5, 1.0], [1.0, 1.5, 4.0]),
    ]
    local = [[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]]
    reward = [[1.0, -1.0, 0.0], [0.0, NAN, 0.5]]
    there = np.array([[True, True, True], [True, False, True]])
    expected = weight_evidence(Evidence(local, reward, there, there))
    for one, other in zip(weight_of_groups(groups).arrays, expected.arrays, strict=True):
        np.testing.assert_allclose(one, other)


def test_groups_where_nothing_differs_tell_nothing():
    assert shrunk_weight(weight_of_groups([(str(i), [0.5, 0.5], [1.0, 1.0]) for i in range(9)])) == 0.0


def test_groups_of_one_input_are_not_independent() -> None:
    """The same groups a second time do not make noise a weight twice as often."""
    rng = np.random.default_rng(3)
    groups = [(str(i), rng.standard_normal(3).tolist(), rng.standard_normal(3).tolist()) for i in range(8)]
    once, twice = weight_of_groups(groups), weight_of_groups(groups * 2)
    assert once.inputs == twice.inputs and twice.sxx == pytest.approx(2 * once.sxx, rel=0.3)
    false = {1: 0, 2: 0}
    for _ in range(300):
        groups = [(str(i), rng.standard_normal(3).tolist(), rng.standard_normal(3).tolist()) for i in range(8)]
        for times in false:
            false[times] += bool(shrunk_weight(weight_of_groups(groups * times)))
    assert 0 < false[2] < 2 * false[1]


def test_known_groups_are_worth_labels():
    """What is known beforehand lets few labels be corrected by local scores at once."""
    rng = np.random.default_rng(0)
    groups = []
    for index in range(40):
        scores = rng.standard_normal(4)
        groups.append((str(index), list(0.7 * scores + 0.3 * rng.standard_normal(4)), list(scores)))
    evidence = random_evidence(1, labelled=4)
    assert effective_runs(evidence, weight_of_groups(groups)) > 1.2 * evidence.labelled.sum()
