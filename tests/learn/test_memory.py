"""Memory of a training step, predicted: against what layers keep, and the error that it leads to."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny

from optimas_jax.core.types import StopRun
from optimas_jax.engine import pool as loaded
from optimas_jax.engine.pool import Engines, network_on
from optimas_jax.learn.config import TokenBatch
from optimas_jax.learn.memory import (
    Step,
    compiled_working,
    kept_by_layer,
    layer_arguments,
    step_memory,
    tokens_that_fit,
)
from optimas_jax.models.backbone import Network, init_lora, init_params
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.forward import forward_layer
from optimas_jax.models.rope import rope_angles
from optimas_jax.parallel.mesh import MeshConfig, make_mesh
from optimas_jax.parallel.platform import Compute, default_compute
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.trainer import PolicyTrainer
from optimas_jax.report.console import ConsoleProgress

SMALL = BackboneConfig("llama", 512, 96, 256, 6, 6, 2, 16, 4096, tied_embeddings=True)
LORA = LoraConfig(rank=8, alpha=8.0)


def on_mesh(shape=(1, 1), platform="gpu", **changes):
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])
    compute = dataclasses.replace(default_compute(platform), **changes)
    return network_on(mesh, SMALL, compute), mesh


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("attention", ["tiled", "chunked"])
def test_what_is_predicted_is_what_layers_keep(remat, attention):
    network = Network(SMALL, Compute(jnp.dtype(jnp.float32), attention, remat=remat))
    params = init_params(SMALL, network.compute, jax.random.key(0))
    tokens, config = 256, network.config
    flat = tiny.plain(range(tokens), tiled=network.compute.tiled)
    x = jnp.ones((tokens, config.embed_dim))
    adapters = init_lora(config, LORA, jax.random.key(0))["layers"][2]
    args = (adapters, x, params["layers"][2], rope_angles(flat.positions, config), flat.layout, None)
    _, pullback = forward_layer(network, LORA, args)
    kept = x.nbytes + sum(part.nbytes for part in pullback.residuals)
    assert kept_by_layer(network, on_mesh()[1], LORA, tokens) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (4, 2)])
def test_the_estimate_is_near_what_the_compiler_needs(shape, remat):
    network, mesh = on_mesh(shape, dtype=jnp.dtype(jnp.float32), remat=remat)
    compiled, estimate = (step_memory(Step(network, mesh, LORA), 1024, compiled=how) for how in (True, False))
    assert compiled.kept == estimate.kept and compiled.state == estimate.state
    assert 0.5 * compiled.total < estimate.total < 1.5 * compiled.total


def test_layers_that_are_computed_again_are_not_kept():
    (network, mesh), (remat, _) = on_mesh(platform="tpu"), on_mesh(platform="tpu", remat=True)
    whole = step_memory(Step(network, mesh, LORA), 4096).total
    assert step_memory(Step(remat, mesh, LORA), 4096).total < 0.6 * whole
    assert step_memory(Step(network, mesh, dataclasses.replace(LORA, last_layers=1)), 4096).total < 0.6 * whole


def test_memory_of_attention_grows_with_the_length_not_with_its_square():
    network, mesh = on_mesh(dtype=jnp.dtype(jnp.float32))
    working = [
        compiled_working(network, LORA, layer_arguments(network, mesh, LORA, tokens)) for tokens in (512, 2048, 8192)
    ]
    assert working[2] < 4.4 * working[1] < 4.4 * 4.4 * working[0]


def test_the_largest_batch_that_fits():
    network, mesh = on_mesh()
    fits = tokens_that_fit(Step(network, mesh, LORA), step_memory(Step(network, mesh, LORA), 1024).total)
    assert fits == 1024
    assert tokens_that_fit(Step(network, mesh, LORA), 1000) == 0


def test_a_step_that_does_not_fit_is_refused_before_anything_is_compiled(monkeypatch):
    model = Engines(MeshConfig(data=1), ConsoleProgress(quiet=True)).model("random:0")
    config = PolicyConfig(lora=LORA, batch=TokenBatch(tokens=4096))
    enough = step_memory(Step(model.network, model.mesh, LORA, model.network.compute.lanes, True), 1024).total
    monkeypatch.setattr(loaded, "least_free_memory", lambda mesh: enough)
    with pytest.raises(StopRun, match=r"set config.policy.batch.tokens = \d+ or less, or config.policy.batch.remat"):
        PolicyTrainer(config, model)
    monkeypatch.setattr(loaded, "least_free_memory", lambda mesh: 1000)
    with pytest.raises(StopRun, match="adapt fewer layers"):
        PolicyTrainer(config, model)
    monkeypatch.setattr(loaded, "least_free_memory", lambda mesh: None)  # nobody knows
    PolicyTrainer(config, model)
