from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from optimas_jax.models.backbone import Network, init_lora, init_params
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.forward import forward
from optimas_jax.models.lora import low_rank, merge_lora

FLAT = tiny.plain(range(12), range(12, 24))


def run(network, params, lora=None, lora_params=None):
    return jax.jit(forward, static_argnums=(0, 5))(network, params, *FLAT, lora, lora_params)[:24]


def test_fresh_adapters_change_nothing():
    network, params = tiny.model()
    lora = init_lora(tiny.CONFIG, tiny.LORA, jax.random.key(1))
    np.testing.assert_allclose(run(network, params, tiny.LORA, lora), run(network, params), atol=1e-5)


def test_merged_weights_equal_adapters():
    network, params = tiny.model()
    lora = tiny.random_lora(init_lora(tiny.CONFIG, tiny.LORA, jax.random.key(1)))
    merged = merge_lora(params, lora, tiny.LORA.scale)
    expected = run(network, params, tiny.LORA, lora)
    assert float(jnp.abs(expected - run(network, params)).max()) > 0.1
    np.testing.assert_allclose(run(network, merged), expected, atol=1e-4)


def test_merging_leaves_the_base_alone():
    _, params = tiny.model()
    before = jax.tree.map(np.array, params)
    merge_lora(params, tiny.random_lora(init_lora(tiny.CONFIG, tiny.LORA, jax.random.key(1))), 1.0)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_low_rank_products_and_their_gradients_equal_plain_ones():
    keys = jax.random.split(jax.random.key(0), 7)
    x = jax.random.normal(keys[0], (5, 8))
    adapters = [
        (jax.random.normal(keys[1], (8, 4)), jax.random.normal(keys[2], (4, 6))),
        (jax.random.normal(keys[3], (8, 2)), jax.random.normal(keys[4], (2, 3))),
    ]
    d_out = [jax.random.normal(keys[5], (5, 6)), jax.random.normal(keys[6], (5, 3))]

    def ours(x, adapters):
        return sum((y * d).sum() for y, d in zip(low_rank(x, adapters, 0.5), d_out, strict=True))

    def plain(x, adapters):
        return sum((0.5 * (x @ a @ b) * d).sum() for (a, b), d in zip(adapters, d_out, strict=True))

    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        jax.value_and_grad(ours, (0, 1))(x, adapters),
        jax.value_and_grad(plain, (0, 1))(x, adapters),
    )


def test_bfloat16_keeps_small_updates():
    """Merged into a bfloat16 matrix the update would be rounded away; kept apart, it is not."""
    x = jnp.ones((1, 4), jnp.bfloat16)
    a, b = jnp.full((4, 1), 0.1, jnp.float32), jnp.full((1, 2), 0.01, jnp.float32)
    [added] = low_rank(x, [(a, b)], 1.0)
    assert added.dtype == jnp.bfloat16
    np.testing.assert_allclose(added.astype(np.float32), 0.004, rtol=1e-2)
    grads = jax.grad(lambda b: low_rank(x, [(a, b)], 1.0)[0].astype(jnp.float32).sum())(b)
    assert grads.dtype == jnp.float32
    np.testing.assert_allclose(grads, 0.4, rtol=1e-3)


def test_only_the_last_layers_are_adapted():
    config = LoraConfig(rank=2, last_layers=1)
    lora = init_lora(tiny.CONFIG, config, jax.random.key(0))
    assert list(lora["layers"]) == [2]
    network, params = tiny.model()
    np.testing.assert_allclose(run(network, params, config, lora), run(network, params), atol=1e-5)


def test_targets_and_rank():
    config = LoraConfig(rank=3, targets=("q", "down"))
    lora = init_lora(tiny.CONFIG, config, jax.random.key(0))
    assert set(lora["layers"][0]) == {"q", "down"}
    assert lora["layers"][0]["down"]["lora_a"].shape == (128, 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(lora))


@pytest.mark.parametrize("wrong", [{"targets": ("w",)}, {"targets": ()}, {"rank": 0}, {"last_layers": -1}])
def test_impossible_adapters_are_refused(wrong):
    with pytest.raises(ValueError, match="LoRA"):
        LoraConfig(**wrong)


def test_keys_are_named_by_path_so_no_two_leaves_are_equal():
    params = init_params(tiny.CONFIG, tiny.F32, jax.random.key(0))
    kernels = [
        np.asarray(layer[n]["weight"]).ravel()[:8] for layer in params["layers"].values() for n in ("q", "o", "up")
    ]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


def test_bfloat16_models_keep_norms_in_float32():
    compute = tiny.Compute(jnp.dtype(jnp.bfloat16), "chunked")
    params = init_params(tiny.CONFIG, compute, jax.random.key(0))
    assert params["embed"].dtype == jnp.bfloat16
    assert params["final_norm"]["scale"].dtype == jnp.float32
    hidden = run(Network(tiny.CONFIG, compute), params)
    reference = run(tiny.model(scale=1.0)[0], jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden.astype(np.float32), reference, atol=0.15)
