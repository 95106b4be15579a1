"""What is traced for each platform: on CPU the forms of ``models.cpu``, elsewhere the plain operations."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from optimas_jax.engine.sampling import Rows, decode, empty_cache, sample_tokens
from optimas_jax.learn import reward_model
from optimas_jax.learn.batches import make_batch
from optimas_jax.models.backbone import Network, abstract_params, init_lora
from optimas_jax.models.lora import low_rank
from optimas_jax.parallel.platform import default_compute

CPU = tiny.F32
# The plain operations, in the dtype and with the attention of the CPU, so that results can be compared.
PLAIN = dataclasses.replace(CPU, cpu_forms=default_compute("gpu").cpu_forms)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, with those of the jaxprs inside."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def operations(traced: Any) -> list[str]:
    return [equation.primitive.name for equation in equations(traced.jaxpr.jaxpr)]


def trace_decode(compute):
    """A decode step with adapters, traced for a batch of 4 rows."""
    config, vocab = tiny.CONFIG, tiny.CONFIG.vocab_size
    rows = Rows(
        limits=np.ones(4, np.int32),
        seeds=np.zeros(4, np.uint32),
        temperatures=np.zeros(4, np.float32),
        top_p=np.ones(4, np.float32),
        stops=np.zeros((4, vocab), np.int8),
        token=np.zeros(4, np.int32),
        position=np.zeros(4, np.int32),
        count=np.zeros(4, np.int32),
        begun=np.zeros(4, bool),
        done=np.zeros(4, bool),
        tokens=np.zeros((4, 64), np.int32),
        logprobs=np.zeros((4, 64), np.float32),
    )
    params, cache = abstract_params(config, compute), empty_cache(Network(config, compute), 4, 64)
    lora_params = init_lora(config, tiny.LORA, jax.random.key(0))
    gate, blank = np.ones((4, tiny.LORA.rank), np.float32), np.zeros(vocab, bool)
    network = Network(config, compute)
    return decode.trace(network, tiny.LORA, params, lora_params, gate, cache, rows, blank, np.int32(1), np.int32(1))


def scoring(compute):
    """Network, arguments of ``reward_model._scores`` for four groups."""
    rng = np.random.default_rng(0)
    groups = [tiny.random_group(rng, component=component) for component in (0, 1, 1, 0)]
    batch = make_batch(groups, candidates=4, pad_id=0, tiled=True, tokens=256)
    norm = {"scale": jnp.ones(tiny.CONFIG.embed_dim)}
    head = {"kernel": jnp.asarray(rng.normal(size=(tiny.CONFIG.embed_dim, 2)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(batch.ends.size, tiny.CONFIG.embed_dim)), jnp.float32)
    return Network(tiny.CONFIG, compute), norm, head, x, batch


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_take_the_plain_operations(platform):
    compute = default_compute(platform)
    assert not compute.cpu_forms
    assert "optimization_barrier" not in operations(trace_decode(compute))
    assert not {"scan", "while"} & set(operations(reward_model._scores.trace(*scoring(compute))))


def test_the_cpu_takes_its_forms():
    assert default_compute("cpu").cpu_forms
    assert "optimization_barrier" in operations(trace_decode(CPU))
    assert {"scan", "while"} & set(operations(reward_model._scores.trace(*scoring(CPU))))


def test_adapters_have_a_barrier_on_cpu_alone():
    x, adapters = jnp.ones((8, 6)), [(jnp.ones((6, 2)), jnp.ones((2, 5)))]
    for cpu_forms in (False, True):
        traced = jax.jit(partial(low_rank, scale=1.0, cpu_forms=cpu_forms)).trace(x, adapters)
        assert ("optimization_barrier" in operations(traced)) == cpu_forms


def test_the_arg_max_is_one_operation_over_the_vocabulary_except_on_cpu():
    rows = jnp.zeros(4)
    for cpu_forms in (False, True):
        traced = jax.jit(partial(sample_tokens, cpu_forms=cpu_forms)).trace(jnp.zeros((4, 1000)), rows, rows, rows)
        sizes = [eqn.invars[0].aval for eqn in equations(traced.jaxpr.jaxpr) if eqn.primitive.name == "argmax"]
        whole = [aval for aval in sizes if aval.shape == (4, 1000) and aval.dtype == jnp.float32]
        assert bool(whole) != cpu_forms


def test_both_give_the_same_scores_but_for_rounding():
    plain, forms = (reward_model._scores(*scoring(compute)) for compute in (PLAIN, CPU))
    np.testing.assert_allclose(plain, forms, atol=1e-5)
