"""Caches of keys and values, sized by what a model leaves free."""

import dataclasses

import jax
import pytest
import tiny

from optimas_jax.engine.memory import token_bytes, with_caches
from optimas_jax.models.backbone import Network
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.layout import BLOCK
from optimas_jax.parallel.mesh import MeshConfig, make_mesh
from optimas_jax.parallel.platform import default_compute

LLAMA_8B = BackboneConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 131072)
GB = 2**30


def most_rows(network, slots):
    compute = network.compute
    return max(rows for rows in compute.decode_rows if rows * slots <= compute.cache_tokens)


def test_a_model_of_8_billion_decodes_many_rows_on_one_h100():
    network = Network(LLAMA_8B, default_compute("gpu"))
    assert token_bytes(network) == 2 * 32 * 8 * 128 * 2
    sized = with_caches(network, int(0.75 * 80 * GB - 16.1e9))  # of what JAX takes, without the weights
    assert most_rows(sized, 2048) >= 32
    compute = sized.compute
    assert (compute.cache_tokens + compute.prefix_tokens) * token_bytes(network) < 0.75 * 80 * GB - 16.1e9


def test_little_memory_leaves_room_and_whole_blocks():
    network = Network(LLAMA_8B, default_compute("tpu"))
    sized = with_caches(network, 1 * GB).compute
    assert sized.cache_tokens == 10 * 1024 and sized.prefix_tokens % BLOCK == 0 and sized.prefix_tokens < 65536
    assert with_caches(network, None).compute.cache_tokens == 10 * 1024


@pytest.mark.parametrize(("model", "share"), [(2, 2), (8, 8), (3, 1)])
def test_heads_that_divide_are_cut_along_model(model, share):
    mesh = make_mesh(MeshConfig(1, model), jax.devices()[:model])
    whole = Network(LLAMA_8B, default_compute("gpu"))
    assert token_bytes(dataclasses.replace(whole, mesh=mesh)) == token_bytes(whole) // share


def test_sizes_of_the_cpu_stay():
    network = Network(tiny.CONFIG, default_compute("cpu"))
    assert with_caches(network, 1000 * GB) is network
