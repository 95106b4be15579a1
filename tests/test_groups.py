from functools import partial

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.learn.groups import RowShape, TokenGroup, batches, truncate
from optimas_jax.learn.losses import bradley_terry
from optimas_jax.learn.reward_model import LossConfig, group_loss, loglik_rows, score_rows
from optimas_jax.learn.train_state import init_trainable
from optimas_jax.models.backbone import forward, make_graph
from optimas_jax.models.heads import reward_head

SHAPE = RowShape(rows=2, tokens=128, candidates=4)


def random_groups(count, seed=0):
    rng = np.random.default_rng(seed)
    return [tiny.random_group(rng, component=i % 5, candidates=2 + i % 3) for i in range(count)]


def padded(ids):
    """One plain row of a fixed length: what is behind the last token is never seen."""
    row = np.zeros((1, 64), np.int32)
    row[0, : len(ids)] = ids
    return row, len(ids) - 1


def single_scores(graphdef, params, head, group, lora_params=None):
    """Each candidate on its own: prefix and candidate as one plain causal row."""
    scores = []
    for ids in group.candidate_ids:
        row, last = padded([*group.prefix_ids, *ids])
        hidden = _forward(graphdef, params, row, np.arange(64)[None], lora_params)
        scores.append(reward_head(head, hidden[:, last : last + 1], np.asarray([group.component]))[0, 0])
    return jax.numpy.stack(scores)


@partial(jax.jit, static_argnums=0)
def _forward(graphdef, params, row, positions, lora_params):
    return forward(graphdef, params, row, positions, None, lora_params)


@partial(jax.jit, static_argnums=0)
def _logprobs(graphdef, params, row, positions):
    model = nnx.merge(graphdef, params)
    return jax.nn.log_softmax(model.logits(model.hidden(row, positions, None)[0])[0])


@pytest.mark.parametrize("implementation", ["blocked", "fused"])
def test_packed_scores_equal_single_ones(implementation):
    compute = tiny.Compute(tiny.F32.dtype, implementation, merge_lora=True)
    graphdef, params = tiny.model(compute=compute)
    head = init_trainable(tiny.CONFIG, tiny.LORA, 5, jax.random.key(0))["head"]
    groups = random_groups(6)
    for members, rows in batches(groups, SHAPE, pad_id=0):
        scores = jax.jit(score_rows, static_argnums=0)(graphdef, params, head, rows.arrays())
        for place, index in enumerate(members):
            count = len(groups[index].candidate_ids)
            expected = single_scores(graphdef, params, head, groups[index])
            np.testing.assert_allclose(scores[place, :count], expected, atol=1e-5)
            np.testing.assert_array_equal(scores[place, count:], 0.0)


@pytest.mark.parametrize("merge", [True, False])
def test_packed_gradients_equal_single_ones(merge):
    compute = tiny.Compute(tiny.F32.dtype, "blocked", merge_lora=merge)
    graphdef, params = tiny.model(compute=compute, lora=tiny.LORA)
    trainable = init_trainable(tiny.CONFIG, tiny.LORA, 5, jax.random.key(0))
    trainable["lora"] = tiny.random_lora(trainable["lora"])
    groups = random_groups(3)
    [(members, rows)] = batches(groups, SHAPE, pad_id=0)

    def packed(tree):
        scores = score_rows(graphdef, params, tree["head"], rows.arrays(), tree["lora"])
        return group_loss(scores, rows.arrays(), LossConfig())[0]

    def single(tree):
        losses = []
        for index in members:
            scores = single_scores(graphdef, params, tree["head"], groups[index], tree["lora"])
            rewards = np.asarray(groups[index].rewards, np.float32)
            loss, count = bradley_terry(scores, rewards, np.ones(len(rewards), bool), threshold=0.0)
            losses += [loss] if count > 0 else []
        return sum(losses) / len(losses)

    np.testing.assert_allclose(jax.jit(packed)(trainable), jax.jit(single)(trainable), rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(np.abs(b).max()))),
        jax.jit(jax.grad(packed))(trainable),
        jax.jit(jax.grad(single))(trainable),
    )


def test_packed_loglikelihoods_equal_single_ones():
    graphdef, params = tiny.model()
    groups = random_groups(6)
    for members, rows in batches(groups, SHAPE, pad_id=0):
        totals = jax.jit(loglik_rows, static_argnums=0)(graphdef, params, rows.arrays())
        for place, index in enumerate(members):
            start = len(groups[index].prefix_ids)
            for number, ids in enumerate(groups[index].candidate_ids):
                row, _ = padded([*groups[index].prefix_ids, *ids])
                logprobs = _logprobs(graphdef, params, row, np.arange(64)[None])
                expected = sum(float(logprobs[start + i - 1, token]) for i, token in enumerate(ids))
                np.testing.assert_allclose(totals[place, number], expected, rtol=1e-4)


def test_every_group_is_laid_out_once_and_nothing_else():
    groups = random_groups(40)
    seen = []
    for members, rows in batches(groups, SHAPE, pad_id=0):
        assert rows.input_ids.shape == (2, 128)
        seen += members
        for place, index in enumerate(members):
            group = groups[index]
            assert rows.component[place] == group.component
            assert rows.valid[place].sum() == len(group.candidate_ids)
            last = rows.input_ids.reshape(-1)[rows.ends[place][rows.valid[place]]]
            assert last.tolist() == [ids[-1] for ids in group.candidate_ids]
        assert not rows.valid[len(members) :].any()
    assert sorted(seen) == list(range(40))


def test_little_is_padding():
    groups = random_groups(200)
    laid_out = batches(groups, RowShape(rows=2, tokens=512, candidates=4), pad_id=0)
    used = sum(group.length for group in groups)
    assert used / (len(laid_out) * 1024) > 0.9


def test_shuffling_is_seeded_and_scoring_order_is_fixed():
    groups = random_groups(30)

    def order(seed):
        rng = None if seed is None else np.random.default_rng(seed)
        return [members for members, _ in batches(groups, SHAPE, pad_id=0, rng=rng)]

    assert order(1) == order(1) != order(2)
    assert order(None) == order(None)


@given(st.integers(12, 60), st.integers(1, 80), st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_truncation_fits_and_keeps_the_ends(tokens, prefix, lengths):
    group = TokenGroup(tuple(range(prefix)), tuple(tuple(range(n)) for n in lengths), (0.0,) * len(lengths), 0)
    short = truncate(group, tokens)
    assert short.length <= tokens or short == group
    assert short.prefix_ids[-1] == group.prefix_ids[-1]
    assert [ids[-1] for ids in short.candidate_ids] == [ids[-1] for ids in group.candidate_ids]
    assert truncate(group, group.length) == group


def test_too_many_candidates_are_refused():
    group = TokenGroup((1,), ((1,),) * 5, (0.0,) * 5, 0)
    with pytest.raises(ValueError, match="5 candidates in a group, the shape has 4"):
        batches([group], SHAPE, pad_id=0)


def test_scores_do_not_see_other_groups_or_padding():
    graphdef, params = tiny.model()
    head = init_trainable(tiny.CONFIG, tiny.LORA, 5, jax.random.key(0))["head"]
    groups = random_groups(5)
    [(_, together)] = batches(groups, SHAPE, pad_id=0)
    [(_, alone)] = batches(groups[:1], SHAPE, pad_id=7)
    score = jax.jit(score_rows, static_argnums=0)
    first = score(graphdef, params, head, together.arrays())[0]
    np.testing.assert_allclose(score(graphdef, params, head, alone.arrays())[0], first, atol=1e-5)


def test_graphs_are_hashable_and_equal_when_made_twice():
    assert make_graph(tiny.CONFIG, tiny.F32) == make_graph(tiny.CONFIG, tiny.F32)
    assert hash(make_graph(tiny.CONFIG, tiny.F32)) == hash(make_graph(tiny.CONFIG, tiny.F32))
