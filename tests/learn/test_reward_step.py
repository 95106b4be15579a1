import itertools

import jax
import numpy as np
import pytest
import tiny

from optimas_jax.learn.batches import deal, make_batch, plan_batches
from optimas_jax.learn.config import LossConfig
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import init_state, init_trainable, learning_rate
from optimas_jax.parallel.lanes import Lanes

TOKENS = 256


def functions(lora=tiny.LORA):
    return RewardFunctions(tiny.model()[0], lora, LossConfig(), tiny.OPTIMIZER)


def batches(groups, rng=None, tokens=TOKENS):
    for members in plan_batches(groups, TOKENS, rng=rng):
        yield make_batch([groups[i] for i in members], candidates=4, pad_id=0, tiled=True, tokens=tokens)


def train_step(reward_functions, state, params, batch, rate):
    return reward_functions.train_step(state, params, [(batch, reward_functions.features(params, batch.flat))], rate)


def toy_groups(count=24, component=0):
    """Candidates of one token: low ids are good, high ids are bad."""
    rng = np.random.default_rng(0)
    groups = []
    for _ in range(count):
        ids = rng.integers(1, 500, 3)
        rewards = tuple((ids < 250).astype(float).tolist())
        prefix = tuple(rng.integers(1, 500, 5).tolist())
        groups.append(TokenGroup(prefix, tuple((int(i),) for i in ids), rewards, component))
    return groups


def fresh_state(lora=tiny.LORA):
    trainable = init_trainable(tiny.CONFIG, lora, 2, jax.random.key(0))
    return init_state(trainable, tiny.OPTIMIZER)


def test_the_loss_falls_and_pairs_are_ordered():
    _, params = tiny.model(scale=1.0)
    reward_functions, state = functions(), fresh_state()
    [batch] = batches(toy_groups())
    losses = []
    for _ in range(40):
        state, metrics = train_step(reward_functions, state, params, batch, 3e-3)
        losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
    assert losses[0] == pytest.approx(np.log(2), abs=0.05)
    assert losses[-1] < 0.3
    right, pairs = metrics["pair_accuracy"]
    assert right / pairs > 0.9


def test_each_head_trains_only_on_its_own_groups():
    _, params = tiny.model()
    state = fresh_state()
    before = np.asarray(state.trainable["head"]["kernel"])
    [batch] = batches(toy_groups(8, component=1))
    state, _ = train_step(functions(), state, params, batch, 1e-2)
    after = np.asarray(state.trainable["head"]["kernel"])
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert (after[:, 1] != before[:, 1]).any()


def test_frozen_weights_stay_and_layers_below_get_no_gradient():
    from optimas_jax.models.config import LoraConfig

    config = LoraConfig(rank=2, last_layers=1)
    _, params = tiny.model()
    before = jax.tree.map(np.array, params)
    [batch] = batches(toy_groups(8))
    state, _ = train_step(functions(config), fresh_state(config), params, batch, 1e-2)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert list(state.trainable["lora"]["layers"]) == [2]


@pytest.mark.long
def test_compilations_follow_the_buckets_used():
    """As many programs for one bucket as for another, whatever the number of layers, and none for one that is known."""
    _, params = tiny.model()
    reward_functions, state, compiled = functions(), fresh_state(), []
    jax.clear_caches()  # of what other tests compiled
    jax.monitoring.register_event_duration_secs_listener(count := lambda event, _, **__: compiled.append(event))
    programs: dict[int, list[int]] = {}
    try:
        for number, rate in ((33, 1e-3), (45, 1e-4), (25, 1e-2), (26, 1e-2), (45, 1e-3)):
            for batch in batches(toy_groups(number), tokens=0):
                compiled.clear()
                state, _ = train_step(reward_functions, state, params, batch, rate)
                made_now = sum(event.endswith("backend_compile_duration") for event in compiled)
                programs.setdefault(len(batch.flat.input_ids), []).append(made_now)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(programs) == 3
    assert all(sum(later) == 0 for _, *later in programs.values())
    assert len({first for first, *_ in list(programs.values())[1:]}) == 1


def test_a_batch_of_ties_changes_nothing():
    _, params = tiny.model()
    groups = [TokenGroup((1, 2), ((3,), (4,)), (0.5, 0.5), 0)]
    [batch] = batches(groups)
    state = fresh_state()
    before = jax.tree.map(np.array, state.trainable)
    state, metrics = train_step(functions(), state, params, batch, 1e-2)
    jax.tree.map(np.testing.assert_array_equal, state.trainable, before)
    assert metrics["loss"] == (0.0, 0.0)


def test_training_repeats_exactly():
    _, params = tiny.model()
    reward_functions = functions()
    results = []
    for _ in range(2):
        state = fresh_state()
        for batch in batches(toy_groups(), rng=np.random.default_rng(3)):
            state, _ = train_step(reward_functions, state, params, batch, 1e-3)
        results.append(jax.tree.map(np.array, state.trainable))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_step_in_parts_is_the_step_of_the_whole():
    _, params = tiny.model()
    reward_functions, groups = functions(), [*toy_groups(6), *toy_groups(3, component=1)]
    results = []
    for parts, lanes in ((1, None), (2, Lanes(2)), (2, Lanes(2)), (3, None)):
        dealt = [[groups[index] for index in part] for part in deal([group.length for group in groups], parts)]
        laid_out = [make_batch(part, candidates=4, pad_id=0, tiled=True) for part in dealt]
        features = [(batch, reward_functions.features(params, batch.flat)) for batch in laid_out]
        state, metrics = reward_functions.train_step(fresh_state(), params, features, 1e-3, lanes)
        results.append((jax.tree.map(np.array, state.trainable), {n: np.array(v) for n, v in metrics.items()}))
    (whole, metrics), first, second, third = results
    jax.tree.map(np.testing.assert_array_equal, first, second)
    for trainable, others in (first, third):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2.1e-3), trainable, whole)
        for name, value in others.items():
            np.testing.assert_allclose(value, metrics[name], rtol=1e-4, err_msg=name)


def test_groups_are_dealt_evenly():
    lengths = [5, 50, 20, 30, 45, 60]
    parts = deal(lengths, 2)
    assert sorted(index for part in parts for index in part) == [*range(6)]
    assert abs(sum(lengths[index] for index in parts[0]) - sum(lengths[index] for index in parts[1])) <= 10
    assert deal([7], 3) == [[0], [], []]


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(0, 1, 1.0) == 1.0
