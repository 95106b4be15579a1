"""Memory of a training step, predicted: against what layers keep, and the error that it leads to."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny

from optimas_jax.core.types import StopRun
from optimas_jax.engine import pool as loaded
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.config import TokenBatch
from optimas_jax.learn.memory import kept_bytes, step_bytes, tokens_that_fit
from optimas_jax.models.backbone import Network, init_lora, init_params
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.forward import _forward_layer
from optimas_jax.models.rope import rope_angles
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.parallel.platform import Compute, default_compute
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.trainer import PolicyTrainer
from optimas_jax.report.console import ConsoleProgress

SMALL = BackboneConfig("llama", 512, 96, 256, 6, 6, 2, 16, 4096, tied_embeddings=True)
LORA = LoraConfig(rank=8, alpha=8.0)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("attention", ["tiled", "fused"])
def test_what_is_predicted_is_what_layers_keep(remat, attention):
    network = Network(SMALL, Compute(jnp.dtype(jnp.float32), attention, layerwise=True, remat=remat))
    params = init_params(SMALL, network.compute, jax.random.key(0))
    tokens, config = 256, network.config
    flat = tiny.plain(range(tokens), tiled=network.compute.tiled)
    args = (
        init_lora(config, LORA, jax.random.key(0))["layers"][2],
        jnp.ones((tokens, config.embed_dim)),
        params["layers"][2],
        rope_angles(flat.positions, config),
        flat.layout,
        None,
    )
    _, pullback = _forward_layer(network, LORA, args)
    kept = sum(part.nbytes for part in pullback.residuals if len(part) >= tokens or part.ndim > 2)
    assert kept == pytest.approx(tokens * kept_bytes(network, LORA), rel=0.02)


def test_layers_that_are_computed_again_are_not_kept():
    network = Network(SMALL, default_compute("gpu"))
    remat = dataclasses.replace(network, compute=dataclasses.replace(network.compute, remat=True))
    assert step_bytes(remat, LORA, 4096) < 0.5 * step_bytes(network, LORA, 4096)
    assert step_bytes(network, dataclasses.replace(LORA, last_layers=1), 4096) < 0.6 * step_bytes(network, LORA, 4096)


def test_the_largest_batch_that_fits():
    network = Network(SMALL, default_compute("gpu"))
    fits = tokens_that_fit(network, LORA, step_bytes(network, LORA, 1024))
    assert fits == 1024
    assert tokens_that_fit(network, LORA, step_bytes(network, LORA, 1024) - 1) == 1024 - 64
    assert tokens_that_fit(network, LORA, 1000) == 0


def test_a_step_that_does_not_fit_is_refused_before_anything_is_compiled(monkeypatch):
    model = Engines(MeshConfig(data=1), ConsoleProgress(quiet=True)).model("random:0")
    config = PolicyConfig(lora=LORA, batch=TokenBatch(tokens=4096))
    lanes = model.network.compute.lanes
    monkeypatch.setattr(loaded, "free_memory", lambda device: step_bytes(model.network, LORA, 1024, lanes))
    with pytest.raises(StopRun, match=r"set config.policy.batch.tokens = 1024 or less, or config.policy.batch.remat"):
        PolicyTrainer(config, model)
    monkeypatch.setattr(loaded, "free_memory", lambda device: 1000)
    with pytest.raises(StopRun, match="adapt fewer layers"):
        PolicyTrainer(config, model)
    monkeypatch.setattr(loaded, "free_memory", lambda device: None)  # nobody knows
    PolicyTrainer(config, model)
