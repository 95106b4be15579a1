"""Backbone configs from Hugging Face and GGUF metadata."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from optimas_jax.checkpoints.weights import RANDOM_CONFIG
from optimas_jax.models.backbone import abstract_params
from optimas_jax.models.config import BackboneConfig, config_from_gguf, config_from_hf, llama3_rope_divisors
from optimas_jax.parallel.platform import Compute

LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GGUF = {
    "general.architecture": "llama",
    "llama.vocab_size": 96,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 48,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def test_defaults_are_those_of_transformers():
    llama, qwen3 = config_from_hf(LLAMA), config_from_hf({**LLAMA, "model_type": "qwen3"})
    assert (llama.head_dim, llama.num_kv_heads, llama.max_positions, llama.rope_theta) == (8, 4, 2048, 10_000.0)
    assert (llama.norm_eps, llama.tied_embeddings, llama.qkv_bias, llama.qk_norm) == (1e-6, False, False, False)
    assert (qwen3.head_dim, qwen3.qk_norm) == (128, True)
    assert config_from_hf({**LLAMA, "model_type": "qwen2"}).qkv_bias


def test_old_and_new_spellings_of_rope_agree():
    old = config_from_hf({**LLAMA, "rope_theta": 5e5, "rope_scaling": LLAMA3})
    older = config_from_hf({**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}})
    new = config_from_hf({**LLAMA, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    assert old == older == new
    assert new.rope_divisors is not None
    plain = config_from_hf({**LLAMA, "rope_theta": 5e5, "rope_scaling": None})
    assert plain == config_from_hf({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    assert plain.rope_divisors is None


def test_llama31_divisors():
    """The published values of Llama 3.1: the fast half is kept, the slow end divided by 8."""
    divisors = llama3_rope_divisors(
        head_dim=128,
        theta=500_000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    )
    assert len(divisors) == 64
    assert divisors[:29] == (1.0,) * 29
    assert divisors[35:] == (8.0,) * 29
    assert list(divisors) == sorted(divisors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'; this backbone implements llama, qwen2, qwen3"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"use_sliding_window": True}, "sliding_attention layers; of this architecture"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention layers; of this architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with 'gptq'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE type 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor, high_freq_factor, original_max"),
        ({"num_key_value_heads": 3}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
        ({"head_dim": 7}, r"head_dim \(7\) must be even"),
        ({"num_hidden_layers": 0}, "has num_hidden_layers 0, expected a positive integer"),
        ({"vocab_size": "96"}, "has vocab_size '96', expected a positive integer"),
    ],
)
def test_what_the_backbone_does_not_compute_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf({**LLAMA, **change})


def test_missing_keys_are_all_named():
    with pytest.raises(ValueError, match="lacks vocab_size, hidden_size, intermediate_size"):
        config_from_hf({"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4})


def test_gguf_metadata_gives_the_config_of_the_hugging_face_folder():
    hf = {**LLAMA, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}
    assert config_from_gguf(GGUF, tied_embeddings=False) == config_from_hf(hf)
    assert config_from_gguf(GGUF, tied_embeddings=True) == config_from_hf({**hf, "tie_word_embeddings": True})
    more = {"attention.head_count_kv": 2, "attention.key_length": 16, "rope.dimension_count": 16, "rope.freq_base": 1e5}
    wide = {**hf, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e5}
    gguf = {**GGUF, **{f"llama.{key}": value for key, value in more.items()}}
    assert config_from_gguf(gguf, tied_embeddings=False) == config_from_hf(wide)


def test_gguf_vocabulary_is_counted_where_its_size_is_not_given():
    metadata = {key: value for key, value in GGUF.items() if key != "llama.vocab_size"}
    assert config_from_gguf({**metadata, "tokenizer.ggml.tokens": ["a"] * 7}, tied_embeddings=True).vocab_size == 7
    with pytest.raises(ValueError, match=r"lacks llama\.vocab_size"):
        config_from_gguf(metadata, tied_embeddings=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gpt2"}, "architecture 'gpt2'; read are llama, qwen2, qwen3, smollm3"),
        ({"llama.block_count": None}, r"lacks llama\.block_count"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
        ({"llama.rope.dimension_count": 4}, r"rope\.dimension_count 4; the backbone needs the head's 8"),
        ({"llama.attention.value_length": 4}, r"attention\.value_length 4"),
        ({"llama.attention.head_count": [4, 2]}, r"attention\.head_count \[4, 2\]"),
    ],
)
def test_gguf_metadata_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config_from_gguf({**GGUF, **change}, tied_embeddings=True)


def test_divisors_must_fit_the_head():
    with pytest.raises(ValueError, match="3 RoPE divisors for a head_dim of 16"):
        dataclasses.replace(RANDOM_CONFIG, rope_divisors=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("switches", [{}, {"tied_embeddings": False, "qkv_bias": True}, {"qk_norm": True}])
def test_num_params_counts_every_leaf(switches):
    config: BackboneConfig = dataclasses.replace(RANDOM_CONFIG, **switches)
    leaves = jax.tree.leaves(abstract_params(config, Compute(jnp.dtype(jnp.float32), "tiled")))
    assert config.num_params == sum(leaf.size for leaf in leaves)
