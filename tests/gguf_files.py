"""GGUF files of tiny models, written as llama.cpp's converter writes them, in any type of storage."""

from pathlib import Path

import gguf
import numpy as np

from optimas_jax.models.config import config_from_hf

# One layer wide enough for the blocks of 256 values of the K types.
WIDE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
WIDE_SHAPES = {
    "model.embed_tokens.weight": (64, 256),
    "model.norm.weight": (256,),
    "model.layers.0.input_layernorm.weight": (256,),
    "model.layers.0.post_attention_layernorm.weight": (256,),
    "model.layers.0.self_attn.q_proj.weight": (256, 256),
    "model.layers.0.self_attn.k_proj.weight": (128, 256),
    "model.layers.0.self_attn.v_proj.weight": (128, 256),
    "model.layers.0.self_attn.o_proj.weight": (256, 256),
    "model.layers.0.mlp.gate_proj.weight": (256, 256),
    "model.layers.0.mlp.up_proj.weight": (256, 256),
    "model.layers.0.mlp.down_proj.weight": (256, 256),
}
# Where a block of a type that gguf cannot quantise has its float16 scales, in bytes.
_SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ1_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


def write(path: Path, hf: dict, stored: dict[str, np.ndarray], kinds: dict[str, str] | None = None, **split) -> Path:
    """Writes a GGUF file under the names of gguf's own table; returns the path of the first file.

    Args:
      hf: config.json of the model.
      stored: Hugging Face name to float32 values, or to bytes [rows, bytes of a row] where ``kinds`` names a type.
      kinds: Hugging Face name to GGUF type, F32 where it has none.
      split: ``split_max_tensors``, for several files, as gguf's writer splits them.
    """
    config = config_from_hf(hf)
    writer = gguf.GGUFWriter(path, config.architecture, **split)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.embed_dim)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("no_vocab")
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    for name, values in stored.items():
        rows = values
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
        if config.architecture == "llama" and heads is not None:  # pairs of rows, as in LlamaModel.permute
            rows = values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        kind = (kinds or {}).get(name)
        writer.add_tensor(target, np.ascontiguousarray(rows), raw_dtype=kind and gguf.GGMLQuantizationType[kind])
    if config.rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(config.rope_divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else min(path.parent.glob(f"{path.stem}-*.gguf"))


def wide(kind: str) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, np.ndarray]]:
    """The model WIDE with every matrix in one type: what is stored, the types, and the values that this stands for."""
    rng = np.random.default_rng(0)
    stored, kinds, expected = {}, {}, {}
    for name, shape in WIDE_SHAPES.items():
        if len(shape) == 1:
            stored[name] = expected[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            continue
        stored[name], kinds[name] = _blocks(kind, shape, shape[1] ** -0.5, rng), kind
        expected[name] = gguf.dequantize(stored[name], gguf.GGMLQuantizationType[kind]).astype(np.float32)
    return stored, kinds, expected


def _blocks(kind: str, shape: tuple[int, int], spread: float, rng: np.random.Generator) -> np.ndarray:
    """Bytes [rows, bytes of a row] of values with standard deviation ``spread``: quantised ones, or random blocks."""
    number = gguf.GGMLQuantizationType[kind]
    if kind not in (*_SCALES, "IQ1_M", "NVFP4"):
        return gguf.quantize((spread * rng.standard_normal(shape)).astype(np.float32), number)
    block, size = gguf.GGML_QUANT_SIZES[number]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, size), np.uint8)
    unit = gguf.dequantize(_scaled(kind, blocks, 1.0), number)
    return _scaled(kind, blocks, spread / float(unit.std())).reshape(shape[0], -1)


def _scaled(kind: str, blocks: np.ndarray, scale: float) -> np.ndarray:
    """The blocks with ``scale`` written over their scales."""
    blocks, bits = blocks.copy(), np.array([scale], np.float16)
    if kind == "IQ1_M":  # four bits of the scale at the top of each of the last four 16-bit numbers
        words = blocks[:, -8:].view(np.uint16)
        words[:] = words & 0x0FFF | (bits.view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & 0xF) << 12
    if kind == "NVFP4":  # eight-bit floats, half of which counts
        blocks[:, :4] = gguf.quants.NVFP4.fp32_to_ue4m3(np.float32([2 * scale]))
    for begin in _SCALES.get(kind, ()):
        blocks[:, begin : begin + 2] = bits.view(np.uint8)
    return blocks
