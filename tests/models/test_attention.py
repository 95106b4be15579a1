"""Attention in both layouts against one sequence at a time, written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.models.attention import BLOCK, TILE, Tiles, attention, windowed
from optimas_jax.models.flat import FlatSequence, flatten

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


tried = jax.jit(lambda fresh, layout, stored: attention(*fresh, layout, stored))
grad_of_tiles = jax.jit(jax.grad(lambda fresh, layout, weights: jnp.sum(attention(*fresh, layout, None) * weights)))
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


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), window=WINDOWS)
def test_every_token_sees_what_it_should(tiled, grouped, seed, window):
    sequences = random_sequences(np.random.default_rng(seed), grouped=grouped)
    places = 0 if grouped else STORED
    flat = flatten(sequences, pad_id=0, tiled=tiled, stored=places, slots=places, tokens=TOKENS)
    fresh, stored = arrays(seed)
    out = tried(fresh, with_window(flat, window), None if grouped else stored)
    count, seen = sum(len(one.ids) for one in sequences), seen_keys(sequences, window or 10**6)
    np.testing.assert_allclose(out[:count], dense(fresh, stored, seen)[:count], atol=1e-5)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("grouped", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), window=WINDOWS)
def test_gradients_of_tiles(grouped, seed, window):
    rng = np.random.default_rng(seed)
    sequences = [dataclasses.replace(one, blocks=()) for one in random_sequences(rng, grouped=grouped)]
    flat = flatten(sequences, pad_id=0, tiled=True, tokens=TOKENS)
    fresh, stored = arrays(seed)
    count = sum(len(one.ids) for one in sequences)
    weights = np.where(np.arange(TOKENS)[:, None, None] < count, rng.normal(size=(TOKENS, HEADS, SIZE)), 0.0)
    seen = seen_keys(sequences, window or 10**6)
    seen[count:, -1] = True
    exact = grad_of_dense(fresh, stored, seen, weights)
    for mine, theirs in zip(grad_of_tiles(fresh, with_window(flat, window), weights), exact, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


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
