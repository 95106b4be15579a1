from functools import partial

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.checkpoints.weights import RANDOM_CONFIG
from optimas_jax.learn.batches import candidate_tokens, make_batch, plan_batches
from optimas_jax.learn.config import BatchShape, LossConfig
from optimas_jax.learn.features import FeatureCache
from optimas_jax.learn.losses import bradley_terry
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.token_group import TokenGroup, are_alike, truncate
from optimas_jax.learn.train_state import init_trainable
from optimas_jax.models.backbone import merge_model
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.forward import forward
from optimas_jax.models.heads import reward_head

TOKENS = 256
TOP = LoraConfig(rank=4, alpha=8.0, last_layers=1)


def random_groups(count, seed=0):
    rng = np.random.default_rng(seed)
    return [tiny.random_group(rng, component=i % 5, candidates=2 + i % 3) for i in range(count)]


def lay_out(groups, pad_id=0, tokens=0, tiled=True):
    return make_batch(groups, candidates=4, pad_id=pad_id, tiled=tiled, tokens=tokens)


def batches(groups, tokens=TOKENS, rng=None, tiled=True):
    """(members, batch) of all groups."""
    plan = plan_batches(groups, tokens, rng=rng)
    return [(members, lay_out([groups[i] for i in members], tiled=tiled)) for members in plan]


def functions(network, lora=tiny.LORA):
    return RewardFunctions(network, lora, LossConfig(), tiny.OPTIMIZER)


def score(reward_functions, params, head, batch):
    return reward_functions.score(params, head, batch, reward_functions.features(params, batch.flat))


def single_score(network, params, head, flat, last, component, lora=None, lora_params=None):
    """A candidate alone, prefix and candidate as one plain causal sequence whose last token is at ``last``."""
    hidden = forward(network, params, *flat, lora, lora_params)[last]
    return reward_head(head, hidden[None, None], component[None])[0, 0]


def alone(group):
    """Arguments of ``single_score`` for each candidate: one shape for all, which compiles once."""
    for ids in group.candidate_ids:
        sequence = [*group.prefix_ids, *ids]
        yield tiny.plain(sequence), np.int32(len(sequence) - 1), np.int32(group.component)


@pytest.mark.parametrize(("config", "lora"), [(tiny.CONFIG, tiny.LORA), (tiny.CONFIG, TOP), (tiny.GEMMA, TOP)])
@pytest.mark.parametrize("implementation", ["tiled", "chunked"])
def test_packed_scores_equal_single_ones(implementation, config, lora):
    compute = tiny.Compute(tiny.F32.dtype, implementation)
    network, params = tiny.model(config, compute)
    head = init_trainable(tiny.CONFIG, tiny.LORA, 5, jax.random.key(0))["head"]
    groups, single = random_groups(6), jax.jit(partial(single_score, network))
    for members, batch in batches(groups, tiled=implementation == "tiled"):
        scores = score(functions(network, lora), params, head, batch)
        for row, index in enumerate(members):
            count = len(groups[index].candidate_ids)
            expected = [single(params, head, *arguments) for arguments in alone(groups[index])]
            np.testing.assert_allclose(scores[row, :count], expected, atol=1e-5)
            np.testing.assert_array_equal(scores[row, count:], 0.0)


@pytest.fixture(scope="module")
def trainable():
    tree = init_trainable(tiny.SHALLOW, tiny.LORA, 5, jax.random.key(0))
    return {**tree, "lora": tiny.random_lora(tree["lora"])}


@pytest.fixture(scope="module")
def single_ones(trainable):
    """Loss of three groups, and its gradients, from candidates alone."""
    network, params = tiny.model(tiny.SHALLOW, tiny.Compute(tiny.F32.dtype, "tiled"))

    @jax.jit
    @jax.value_and_grad
    def single(tree, params, flat, last, component):
        return single_score(network, params, tree["head"], flat, last, component, tiny.LORA, tree["lora"])

    @jax.value_and_grad
    def single_loss(scores, rewards):
        loss, count = bradley_terry(scores, rewards, np.ones(len(rewards), bool), threshold=0.0)
        return loss * (count > 0)

    # The gradient by the chain rule: of a group's loss by its scores, times that of each score by the weights.
    expected_loss, terms = 0.0, []
    for group in random_groups(3):
        rewards = np.asarray(group.rewards, np.float32)
        scores, score_grads = zip(*(single(trainable, params, *arguments) for arguments in alone(group)), strict=True)
        loss, weights = jax.device_get(single_loss(jax.numpy.stack(scores), rewards))
        expected_loss += loss
        terms += [
            jax.tree.map(lambda leaf, weight=weight: weight * np.asarray(leaf), tree)
            for weight, tree in zip(weights, score_grads, strict=True)
        ]
    return expected_loss, jax.tree.map(lambda *parts: np.sum(parts, axis=0), *terms)


@pytest.mark.parametrize("tiled", [True, False])
def test_packed_gradients_equal_single_ones(tiled, trainable, single_ones):
    expected_loss, expected_grads = single_ones
    network, params = tiny.model(tiny.SHALLOW, tiny.Compute(tiny.F32.dtype, "tiled"))
    [(_, batch)] = batches(random_groups(3), tiled=tiled)
    reward_functions = functions(network)
    grads, metrics = reward_functions.gradients(trainable, params, batch, reward_functions.features(params, batch.flat))
    np.testing.assert_allclose(metrics["loss"][0], expected_loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(np.abs(b).max()))),
        grads,
        expected_grads,
    )


@pytest.mark.parametrize("lora", [tiny.LORA, TOP])
def test_packed_loglikelihoods_equal_single_ones(lora):
    network, params = tiny.model()
    reward_functions, groups = functions(network, lora), random_groups(6)

    @jax.jit
    def single(params, *flat):
        return jax.nn.log_softmax(merge_model(network, params).logits(forward(network, params, *flat)))

    for members, batch in batches(groups):
        tokens = candidate_tokens([groups[index] for index in members], batch.ends.shape)
        totals = reward_functions.loglik(params, batch, reward_functions.features(params, batch.flat), tokens)
        assert totals.shape == batch.ends.shape
        for row, index in enumerate(members):
            start = len(groups[index].prefix_ids)
            for number, ids in enumerate(groups[index].candidate_ids):
                logprobs = np.asarray(single(params, *tiny.plain([*groups[index].prefix_ids, *ids])))
                expected = sum(float(logprobs[start + i - 1, token]) for i, token in enumerate(ids))
                np.testing.assert_allclose(totals[row, number], expected, rtol=1e-4)
        np.testing.assert_array_equal(totals[~batch.valid], 0.0)


def test_every_group_is_laid_out_once_and_nothing_else():
    groups = random_groups(40)
    seen = []
    for members, batch in batches(groups):
        assert len(batch.flat.input_ids) <= TOKENS
        seen += members
        for row, index in enumerate(members):
            group = groups[index]
            assert batch.component[row] == group.component
            assert batch.valid[row].sum() == len(group.candidate_ids)
            last = batch.flat.input_ids[batch.ends[row][batch.valid[row]]]
            assert last.tolist() == [ids[-1] for ids in group.candidate_ids]
        assert not batch.valid[len(members) :].any()
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize("shuffled", [False, True])
def test_little_is_padding(shuffled):
    groups = random_groups(200)
    plan = plan_batches(groups, 1024, rng=np.random.default_rng(0) if shuffled else None)
    assert sum(group.length for group in groups) / (len(plan) * 1024) > 0.9
    assert max(map(len, plan_batches(groups, 1024, most=3))) == 3


def test_shuffling_is_seeded_and_scoring_order_is_fixed():
    groups = random_groups(30)

    def order(seed):
        return plan_batches(groups, TOKENS, rng=None if seed is None else np.random.default_rng(seed))

    assert order(1) == order(1) != order(2)
    assert order(None) == order(None)


CANDIDATES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40).map(tuple), min_size=1, max_size=4)


@given(st.integers(9, 60), st.integers(1, 80), st.integers(0, 90), CANDIDATES)
def test_truncation_fits_keeps_the_ends_and_tells_candidates_apart(tokens, prefix, task, candidates):
    group = TokenGroup(tuple(range(prefix)), tuple(candidates), (0.0,) * len(candidates), 0)
    short = truncate(group, tokens, min(task, prefix))
    assert short.length <= tokens or short is group
    assert short.prefix_ids[-1] == group.prefix_ids[-1]
    assert [ids[-1] for ids in short.candidate_ids] == [ids[-1] for ids in group.candidate_ids]
    assert [ids[0] for ids in short.candidate_ids] == [ids[0] for ids in group.candidate_ids]
    assert truncate(group, group.length, task) is group
    if tokens >= 40:  # with little room there are fewer texts than candidates
        assert not are_alike(group, short)


def test_the_prefix_is_cut_before_a_candidate_and_keeps_task_head_and_tail():
    group = TokenGroup(tuple(range(60)), ((7,) * 20, (8,) * 20), (0.0, 0.0), 0)
    short = truncate(group, 80, task=10)
    assert short.candidate_ids == group.candidate_ids
    assert short.prefix_ids == (*range(25), *range(45, 60))  # 10 of the task, 15 from both ends of the inputs


def test_a_long_candidate_keeps_head_tail_and_where_it_differs():
    """Answers with a label at the end, and answers that differ only in their middle."""
    body = tuple(range(100, 340))
    ends = (*body, 1, 0), (*body, 2, 0)
    middles = tuple((*body[:120], label, *body[:120], 0) for label in (1, 2))
    for candidates in (ends, middles):
        group = TokenGroup(tuple(range(60)), candidates, (0.0, 1.0), 0)
        short = truncate(group, 200, task=20)
        assert short.length == 200
        for label, cut in zip((1, 2), short.candidate_ids, strict=True):
            assert label in cut and cut[0] == 100 and cut[-1] == 0 and len(cut) in (86, 87)
    group = TokenGroup(tuple(range(60)), ends, (0.0, 1.0), 0)
    assert truncate(group, 512).candidate_ids == ends  # room for both, if the prefix is cut


def test_short_candidates_leave_their_room_to_long_ones():
    group = TokenGroup((9,) * 10, ((1,) * 5 + (0,), (2,) * 100 + (0,)), (0.0, 0.0), 0)
    short = truncate(group, 64)
    assert short.candidate_ids[0] == group.candidate_ids[0]
    assert len(short.candidate_ids[1]) == 64 - 6 - 2


def test_repetitions_of_different_length_stay_different():
    group = TokenGroup((9,), tuple((1,) * count + (0,) for count in (50, 60, 70)), (0.0,) * 3, 0)
    assert not are_alike(group, truncate(group, 60))


def test_a_group_without_room_for_its_candidates_is_refused():
    group = TokenGroup((1,) * 9, ((1,) * 5,) * 8, (0.0,) * 8, 0)
    with pytest.raises(ValueError, match="8 candidates do not fit 16 tokens: raise group_tokens"):
        truncate(group, 16)


def test_too_many_candidates_are_refused():
    group = TokenGroup((1,), ((1,),) * 5, (0.0,) * 5, 0)
    with pytest.raises(ValueError, match="5 candidates in a group, a batch has room for 4"):
        lay_out([group])


def test_any_number_of_tokens_is_a_batch_size():
    """The training step lays out ``config.reward.batch.tokens``, whatever the user set."""
    network, params = tiny.model()
    head = init_trainable(tiny.CONFIG, tiny.LORA, 5, jax.random.key(0))["head"]
    groups = random_groups(2)
    odd, even = (lay_out(groups, tokens=tokens) for tokens in (200, 256))
    assert len(odd.flat.input_ids) == len(even.flat.input_ids) == 256
    np.testing.assert_array_equal(*(score(functions(network), params, head, batch) for batch in (odd, even)))


def test_groups_that_no_batch_holds_are_not_planned():
    with pytest.raises(ValueError, match=r"a group of 2700 tokens does not fit a batch of 2048 tokens.*batch.tokens"):
        plan_batches([TokenGroup((1,) * 300, ((1,) * 300,) * 8, (0.0,) * 8, 0)], 2048)
    assert plan_batches([], 2048) == []


def test_a_group_longer_than_its_batch_is_refused():
    with pytest.raises(ValueError, match="a batch of 100 tokens cannot hold a group of group_tokens = 200"):
        BatchShape(tokens=100, group_tokens=200)


def test_a_group_gets_the_same_bits_whatever_shares_its_batch():
    network, params = tiny.model(RANDOM_CONFIG)
    reward_functions, groups = functions(network, TOP), random_groups(12)
    head = init_trainable(RANDOM_CONFIG, tiny.LORA, 5, jax.random.key(0))["head"]

    def alone(group, pad_id=0, tokens=0):
        return score(reward_functions, params, head, lay_out([group], pad_id, tokens))[0]

    for members, batch in batches(groups):
        together = score(reward_functions, params, head, batch)
        for row, index in enumerate(members):
            np.testing.assert_array_equal(together[row], alone(groups[index]))
    np.testing.assert_array_equal(alone(groups[0], pad_id=7, tokens=512), alone(groups[0]))


def test_kept_features_are_those_computed():
    network, params = tiny.model(RANDOM_CONFIG)
    reward_functions, groups, cache = functions(network, TOP), random_groups(9), FeatureCache()
    for members, batch in batches(groups, 128):
        batch_groups = [groups[index] for index in members]
        assert cache.get(batch_groups, 128) is None
        cache.put(batch_groups, np.asarray(reward_functions.features(params, batch.flat)))
    for members, batch in batches(groups, 192, rng=np.random.default_rng(0)):
        batch_groups = [groups[index] for index in members]
        used = sum(group.length for group in batch_groups)
        features = np.asarray(reward_functions.features(params, batch.flat))
        kept = cache.get(batch_groups, len(batch.flat.input_ids))
        assert kept is not None
        np.testing.assert_array_equal(kept[:used], features[:used])
        np.testing.assert_array_equal(kept[used:], 0.0)


def test_the_least_recently_used_features_go_first():
    groups = [TokenGroup((i,), ((1, 2, 3),), (0.0,), 0) for i in range(4)]
    cache = FeatureCache(max_bytes=3 * 4 * 5 * 4)  # three groups of 4 tokens x 5 numbers
    for group in groups[:3]:
        cache.put([group], np.full((4, 5), group.prefix_ids[0], np.float32))
    assert cache.get(groups[:1], 4) is not None  # used again
    cache.put(groups[3:], np.zeros((4, 5), np.float32))
    kept = [group.prefix_ids[0] for group in groups if cache.get([group], 4) is not None]
    assert kept == [0, 2, 3]


def test_networks_are_hashable_and_equal_when_made_twice():
    first, second = (tiny.model()[0] for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first.graph(None) == second.graph(None)
    assert first.layer(tiny.LORA) == second.layer(tiny.LORA) != first.layer(None)
