import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from optimas_jax.models.backbone import Network, init_lora, init_params
from optimas_jax.models.forward import forward
from optimas_jax.models.lora import LoraConfig, lora_linear, merge_lora

FLAT = tiny.plain(range(12), range(12, 24))


def run(network, params, lora=None, lora_params=None):
    return jax.jit(forward, static_argnums=(0, 5))(network, params, *FLAT, lora, lora_params)[:24]


def test_fresh_adapters_change_nothing():
    network, params = tiny.model()
    lora = init_lora(tiny.CONFIG, tiny.LORA, jax.random.key(1))
    np.testing.assert_allclose(run(network, params, tiny.LORA, lora), run(network, params), atol=1e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_merged_weights_equal_adapters(merge):
    compute = tiny.Compute(tiny.F32.dtype, "tiled", merge_lora=merge)
    plain, params = tiny.model()
    adapted, _ = tiny.model(compute=compute)
    lora = tiny.random_lora(init_lora(tiny.CONFIG, tiny.LORA, jax.random.key(1)))
    merged = merge_lora(params, lora, tiny.LORA.scale)
    expected = run(adapted, params, tiny.LORA, lora)
    assert float(jnp.abs(expected - run(plain, params)).max()) > 0.1
    np.testing.assert_allclose(run(plain, merged), expected, atol=1e-4)


def test_merging_leaves_the_base_alone():
    _, params = tiny.model()
    before = jax.tree.map(np.array, params)
    merge_lora(params, tiny.random_lora(init_lora(tiny.CONFIG, tiny.LORA, jax.random.key(1))), 1.0)
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize("merge", [True, False])
def test_gradients_equal_automatic_ones(merge):
    keys = jax.random.split(jax.random.key(0), 5)
    x, w = jax.random.normal(keys[0], (2, 3, 8)), jax.random.normal(keys[1], (6, 8))
    a, b = jax.random.normal(keys[2], (8, 4)), jax.random.normal(keys[3], (4, 6))
    dy = jax.random.normal(keys[4], (2, 3, 6))

    def ours(x, a, b):
        return (lora_linear(x, w, a, b, scale=0.5, merge=merge) * dy).sum()

    def plain(x, a, b):
        return ((x @ (w.T + 0.5 * a @ b)) * dy).sum()

    for mine, automatic in zip(jax.grad(ours, (0, 1, 2))(x, a, b), jax.grad(plain, (0, 1, 2))(x, a, b), strict=True):
        np.testing.assert_allclose(mine, automatic, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_small_updates():
    """Merged into a bfloat16 matrix the update would be rounded away; kept apart, it is not."""
    x, w = jnp.ones((1, 4), jnp.bfloat16), jnp.ones((2, 4), jnp.bfloat16)
    a, b = jnp.full((4, 1), 0.1, jnp.float32), jnp.full((1, 2), 0.01, jnp.float32)
    apart = lora_linear(x, w, a, b, scale=1.0, merge=False)
    assert apart.dtype == jnp.bfloat16
    grads = jax.grad(lambda b: lora_linear(x, w, a, b, scale=1.0, merge=False).astype(jnp.float32).sum())(b)
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
    compute = tiny.Compute(jnp.dtype(jnp.bfloat16), "fused", merge_lora=False)
    params = init_params(tiny.CONFIG, compute, jax.random.key(0))
    assert params["embed"].dtype == jnp.bfloat16
    assert params["final_norm"]["scale"].dtype == jnp.float32
    hidden = run(Network(tiny.CONFIG, compute), params)
    reference = run(tiny.model(scale=1.0)[0], jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden.astype(np.float32), reference, atol=0.15)
