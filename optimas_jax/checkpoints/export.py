"""Export of a model as a Hugging Face folder, float32, optionally with an adapter merged into it.

For peers of a benchmark, and for servers and libraries without adapters.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from optimas_jax.checkpoints.peft import read_adapter
from optimas_jax.checkpoints.sources import ModelSource, WeightsError, cache_dir
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.checkpoints.weights import hf_name, load_config, load_params
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.lora import merge_lora
from optimas_jax.parallel.platform import Compute

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}


def hf_folder(source: ModelSource) -> Path:
    """A Hugging Face folder of a model: the model's folder if it has one, else an export in the cache, written once."""
    if source.kind == "hf" and source.path is not None:
        return source.path
    target = cache_dir() / "export" / re.sub(r"[^A-Za-z0-9.=-]+", "-", source.spec)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            partial = Path(folder) / "model"
            export(source, partial)
            partial.rename(target)
    return target


def export(source: ModelSource, folder: Path, adapter: Path | None = None) -> None:
    """Writes ``config.json``, ``model.safetensors`` and the tokenizer into a new folder.

    Args:
      adapter: a folder in PEFT's layout to merge into the weights.

    Raises:
      AdapterError: for an adapter that cannot be read, or does not fit the model.
      WeightsError: for a model that a Hugging Face config cannot describe.
    """
    config = load_config(source)
    tokenizer = load_tokenizer(source, config.vocab_size)
    params = load_params(source, config, Compute(jnp.dtype(jnp.float32), "tiled"))
    if adapter is not None:
        lora, lora_params = read_adapter(adapter, config)
        params = merge_lora(params, lora_params, lora.scale)
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = tuple(part.key for part in path)
        tensors[hf_name(keys, config)] = np.asarray(leaf) - (config.norms_less_one and keys[-1] == "scale")
    folder.mkdir(parents=True)
    tokenizer.backend.save_pretrained(str(folder))
    (folder / "config.json").write_text(json.dumps(config_json(source, config), indent=2), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def config_json(source: ModelSource, config: BackboneConfig) -> dict[str, Any]:
    """The ``config.json`` of a model: from its folder, or made for a model from another source; float32."""
    if source.kind != "hf" or source.path is None:
        return hf_config(config)
    settings = json.loads((source.path / "config.json").read_text("utf-8"))
    return {key: value for key, value in settings.items() if key != "torch_dtype"} | {"dtype": "float32"}


def hf_config(config: BackboneConfig) -> dict[str, Any]:
    """The ``config.json`` of a model from a GGUF file; ``models.config.config_from_hf`` reads it back."""
    if config.rope_divisors is not None:
        raise WeightsError("a GGUF file with scaled RoPE cannot be exported: name the model's Hugging Face folder")
    return {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "dtype": "float32",
        **({"no_rope_layers": [int(kind != "unrotated") for kind in config.kinds]} if config.layer_kinds else {}),
    }
