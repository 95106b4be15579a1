"""Attention in all implementations against one sequence at a time, written out."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from optimas_jax.models.attention import attention
from optimas_jax.models.flat import FlatSequence, flatten
from optimas_jax.models.layout import BLOCK, TILE, Tiles, windowed

HEADS, KV_HEADS, SIZE, STORED, TOKENS = 4, 2, 8, 512, 768


def arrays(seed):
    keys = jax.random.split(jax.random.key(seed), 5)
    fresh = [jax.random.normal(keys[i], (TOKENS, heads, SIZE)) for i, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))]
    shape = (STORED // BLOCK, BLOCK, KV_HEADS, SIZE)
    return fresh, (jax.random.normal(keys[3], shape), jax.random.normal(keys[4], shape))


def seen_keys(sequences, window=10**6):
    """[TOKENS, STORED + TOKENS] bool: what each token sees of [stored | fresh]."""
    seen, begin = np.zeros((TOKENS, STORED + TOKENS), bool), 0
    for one in sequences:
        count = len(one.ids)
        places = [*(block * BLOCK + i for block in one.blocks for i in range(BLOCK))]
        places += range(STORED + begin, STORED + begin + count)
        parts = np.asarray([0] * one.start + list(one.parts or [0] * count))
        causal = np.arange(one.length) <= np.arange(one.start, one.length)[:, None]
        own_part = (parts == parts[one.start :, None]) | (parts == 0)
        at = np.asarray([*range(one.start), *(one.positions or range(one.start, one.length))])
        seen[begin : begin + count, places] = causal & own_part & (at[one.start :, None] - at < window)
        begin += count
    return seen


@jax.jit
def dense(fresh, stored, seen):
    """[TOKENS, N, H]: softmax over exactly the keys that each token sees; NaN for padding."""
    keys, values = (
        jnp.repeat(jnp.concatenate([old.reshape(-1, KV_HEADS, SIZE), new]), HEADS // KV_HEADS, axis=1)
        for old, new in zip(stored, fresh[1:], strict=True)
    )
    scores = jnp.einsum("qnh,snh->nqs", fresh[0], keys) / np.sqrt(SIZE)
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("nqs,snh->qnh", weights, values)


@partial(jax.jit, static_argnums=3)
def tried(fresh, layout, stored, use_kernel):
    return attention(*fresh, layout, stored, None, use_kernel)


@partial(jax.jit, static_argnums=3)
def grad_of_tried(fresh, layout, weights, use_kernel):
    return jax.grad(lambda fresh: jnp.sum(attention(*fresh, layout, None, None, use_kernel) * weights))(fresh)


IMPLEMENTATIONS = pytest.mark.parametrize(
    ("implementation", "grouped"),
    [
        pytest.param(implementation, grouped, marks=[pytest.mark.long] * (implementation == "kernel" and not grouped))
        for implementation in ("tiled", "chunked", "kernel")
        for grouped in (True, False)
    ],
)


@pytest.fixture(autouse=True)
def kernels_run_on_cpu():
    with pltpu.force_tpu_interpret_mode():
        yield


grad_of_dense = jax.jit(jax.grad(lambda fresh, stored, seen, weights: jnp.sum(dense(fresh, stored, seen) * weights)))


def random_sequences(rng, *, grouped):
    sequences = []
    common, others = np.split(rng.permutation(STORED // BLOCK), [6])
    for _ in range(rng.integers(1, 6)):
        count = int(rng.integers(1, 150))
        if grouped:
            cuts = np.sort(rng.integers(0, count + 1, 3))  # parts may be empty, the prefix too
            parts = np.repeat(range(4), np.diff([0, *cuts, count])).tolist()
            # Every candidate continues the prefix, so that its positions begin where the prefix ends.
            positions = [
                index - parts.index(part) + (parts.count(0) if part else 0) for index, part in enumerate(parts)
            ]
            sequences.append(FlatSequence([1] * count, parts=parts, positions=positions))
        else:
            blocks = [*common[: rng.integers(0, 7)], *rng.permutation(others)[: rng.integers(0, 4)]]
            sequences.append(FlatSequence([1] * count, blocks=blocks))
    return sorted(sequences, key=lambda one: list(one.blocks))


WINDOWS = st.sampled_from([None, 1, 20, TILE, 150])


def with_window(flat, window):
    return flat.layout if window is None else windowed(flat.layout, window, flat.positions)


@IMPLEMENTATIONS
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), window=WINDOWS)
def test_every_token_sees_what_it_should(implementation, grouped, seed, window):
    sequences = random_sequences(np.random.default_rng(seed), grouped=grouped)
    places = 0 if grouped else STORED
    flat = flatten(sequences, pad_id=0, tiled=implementation == "tiled", stored=places, slots=places, tokens=TOKENS)
    fresh, stored = arrays(seed)
    out = tried(fresh, with_window(flat, window), None if grouped else stored, implementation == "kernel")
    count, seen = sum(len(one.ids) for one in sequences), seen_keys(sequences, window or 10**6)
    np.testing.assert_allclose(out[:count], dense(fresh, stored, seen)[:count], atol=1e-5)
    assert np.isfinite(out).all()


@IMPLEMENTATIONS
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), window=WINDOWS)
def test_gradients(implementation, grouped, seed, window):
    rng = np.random.default_rng(seed)
    sequences = [dataclasses.replace(one, blocks=()) for one in random_sequences(rng, grouped=grouped)]
    flat = flatten(sequences, pad_id=0, tiled=implementation == "tiled", tokens=TOKENS)
    fresh, stored = arrays(seed)
    count = sum(len(one.ids) for one in sequences)
    weights = np.where(np.arange(TOKENS)[:, None, None] < count, rng.normal(size=(TOKENS, HEADS, SIZE)), 0.0)
    seen = seen_keys(sequences, window or 10**6)
    seen[count:, -1] = True
    exact = grad_of_dense(fresh, stored, seen, weights)
    grads = grad_of_tried(fresh, with_window(flat, window), weights, implementation == "kernel")
    for mine, theirs in zip(grads, exact, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


@pytest.mark.parametrize("use_kernel", [False, True])
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_outputs_and_gradients_are_those_of_tiled_attention(use_kernel, seed):
    rng = np.random.default_rng(seed)
    sequences = [dataclasses.replace(one, blocks=()) for one in random_sequences(rng, grouped=True)]
    tiles, pairs = (flatten(sequences, pad_id=0, tiled=tiled, tokens=TOKENS).layout for tiled in (True, False))
    fresh, _ = arrays(seed)
    weights = rng.normal(size=(TOKENS, HEADS, SIZE))
    weights[sum(len(one.ids) for one in sequences) :] = 0.0
    expected = tried(fresh, tiles, None, False) * (weights != 0), *grad_of_tried(fresh, tiles, weights, False)
    found = tried(fresh, pairs, None, use_kernel) * (weights != 0), *grad_of_tried(fresh, pairs, weights, use_kernel)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * float(np.abs(theirs).max()))


def visits(layout: Tiles) -> int:
    """Key tiles read, over all query tiles."""
    used = layout.segments[: layout.bounds[-1]]
    return int((used[:, 2] - used[:, 1]).sum())


def test_no_tile_is_read_in_vain():
    def read(*sequences):
        return visits(flatten(sequences, pad_id=0, tiled=True).layout)

    plain = FlatSequence([1] * 4 * TILE)
    assert read(plain) == 1 + 2 + 3 + 4
    # Candidates read the prefix and themselves: two of two tiles each, behind a prefix of one.
    parts = [0] * TILE + [1] * 2 * TILE + [2] * 2 * TILE
    assert read(FlatSequence([1] * 5 * TILE, parts=parts)) == 1 + (2 + 3) + (2 + 3)
    # Four prompts of 16 tokens that begin with the same four blocks read these once.
    assert read(*(FlatSequence([1] * 16, blocks=[3, 1, 4, 5]) for _ in range(4))) == 1 + 4
    assert read(*(FlatSequence([1] * 16, blocks=[3, 1, 4, 5 + i]) for i in range(4))) == 4 * 2


def tile_work(sequences) -> float:
    """Work of ``TilePairs`` over the pairs of tokens that see each other."""
    layout = flatten(sequences, pad_id=0, tiled=False).layout
    useful = sum(len(one.ids) * (len(one.ids) + 1) / 2 for one in sequences)
    return layout.by_query[: layout.counts[0], 2].sum() * TILE**2 / useful


def test_work_follows_the_lengths_of_a_mixed_batch():
    one_long = [FlatSequence([1] * 2048), *[FlatSequence([1] * 128)] * 240]
    assert tile_work(one_long) <= 1.5
    assert tile_work(one_long[:1]) <= 1.1


@pytest.mark.parametrize("grouped", [True, False])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_pairs_are_those_of_tiles_that_see_each_other(grouped, seed):
    sequences = random_sequences(np.random.default_rng(seed), grouped=grouped)
    layout = flatten(sequences, pad_id=0, tiled=False, stored=STORED, tokens=TOKENS).layout
    by_query, by_key = (
        {tuple(pair[:2]) for pair in table[:count] if pair[2]}
        for table, count in zip((layout.by_query, layout.by_key), layout.counts, strict=True)
    )
    assert by_query == by_key
    for column, table, count in zip((0, 1), (layout.by_query, layout.by_key), layout.counts, strict=True):
        tiles = table[:count, column]
        assert set(tiles) == set(range(tiles.max() + 1)) and (np.diff(tiles) >= 0).all()  # each, and in order
