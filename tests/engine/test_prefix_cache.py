import jax.numpy as jnp
import numpy as np
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.engine.prefix_cache import BlockTable, PrefixCache, shares_block
from optimas_jax.models.layout import BLOCK


def table(tokens=64):
    return BlockTable(tokens // BLOCK)


def ids(*parts):
    """Blocks named by numbers, and what is left over by a negative one."""
    return tuple(token for part in parts for token in ([part] * BLOCK if part >= 0 else [0] * -part))


def test_whole_blocks_are_kept_and_one_token_is_left_over():
    kept = table()
    assert len(kept.reserve(ids(1, 2, -5), 0, set())) == 2
    assert len(kept.match(ids(1, 2, -5))) == 2
    assert len(kept.match(ids(1, 2))) == 1  # the last block is the whole rest
    assert len(kept.match(ids(1, 3, -1))) == 1
    assert len(kept.match(ids(2, 1, -1))) == 0
    assert kept.match(ids(1, -3)) == kept.match(ids(1, 2, -1))[:1]


def test_the_least_recently_used_go_first_and_ends_before_beginnings():
    kept = table(4 * BLOCK)
    kept.reserve(ids(1, 2), 0, set())
    kept.reserve(ids(3, 4), 0, set())
    kept.match(ids(1, 2, -1))
    kept.reserve(ids(5), 0, set())  # in place of the block after 3
    assert [len(kept.match(one)) for one in (ids(1, 2, -1), ids(3, 4, -1), ids(5, -1))] == [2, 1, 1]


def test_blocks_in_use_stay():
    kept = table(2 * BLOCK)
    in_use = set()
    assert len(kept.reserve(ids(1, 2), 0, in_use)) == 2
    assert len(in_use) == 2
    assert len(kept.reserve(ids(3), 0, in_use)) == 0
    assert len(kept.reserve(ids(3), 0, set())) == 1


def test_keys_and_values_come_back_from_where_they_were_put():
    kept = PrefixCache(tiny.CONFIG, jnp.float32, 64)
    [blocks_of] = kept.tables
    heads, size = tiny.CONFIG.num_kv_heads, tiny.CONFIG.head_dim
    fresh = tuple(np.random.default_rng(i).normal(size=(40, heads, size)).astype(np.float32) for i in range(2))
    blocks = blocks_of.reserve(ids(7), 0, set())
    beyond = kept.tokens // BLOCK
    kept.write(1, fresh, np.asarray([20, 0], np.int32), np.asarray([*blocks, beyond], np.int32))
    for stored, part in zip(kept.layers[1], fresh, strict=True):
        np.testing.assert_array_equal(stored[blocks_of.match(ids(7, -1))[0]], part[20 : 20 + BLOCK])
        assert np.count_nonzero(stored) == BLOCK * heads * size  # padding went nowhere


def test_forgetting_makes_room():
    kept = table(2 * BLOCK)
    kept.reserve(ids(1, 2), 0, {0, 1})
    kept.clear()
    assert len(kept.match(ids(1, -1))) == 0
    assert len(kept.reserve(ids(3, 4), 0, set())) == 2


def test_sharing_is_counted_in_blocks_beyond_what_is_kept():
    assert shares_block(ids(1, 2, -1), 0, [ids(1, 2, 3)])
    assert not shares_block(ids(1, 2, -1), 0, [ids(1, 3, 2)])
    assert not shares_block(ids(1, 2), 0, [ids(1, 2)])  # one token is always left over
    assert not shares_block(ids(1, 2, 3, -1), 1, [ids(1, 2, 4)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=30))
def test_a_prefix_is_never_found_without_its_beginning(prompts):
    """Whatever comes and goes: what is kept is a set of whole prefixes, and no block is two things."""
    kept = table(8 * BLOCK)
    for prompt in prompts:
        one = ids(*prompt, -1)
        matched = kept.match(one)
        kept.reserve(one, len(matched), {int(position) // BLOCK for position in matched})
        assert len(set(kept._blocks.values())) == len(kept._blocks)
        assert len(kept._blocks) + len(kept._free) == 8
        for adapter, prefix in kept._blocks:
            assert len(prefix) == BLOCK or (adapter, prefix[:-BLOCK]) in kept._blocks
