"""Weights of a model's files as parameters of the backbone, and back to Hugging Face names.

Loading audits the keys both ways: every tensor of the source is used, every parameter of the backbone is filled, and
all problems are reported in one error.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from optimas_jax.checkpoints.gguf import GgufFile, GgufTensor, UnreadGguf, read_gguf
from optimas_jax.checkpoints.sources import ModelSource, WeightsError
from optimas_jax.models.backbone import abstract_params, init_params
from optimas_jax.models.config import BackboneConfig, config_from_gguf, config_from_hf
from optimas_jax.models.lora import Params
from optimas_jax.parallel.platform import Compute
from optimas_jax.parallel.transfer import put, put_read

# Hugging Face name -> opens the tensor, [out, in] as stored there: an array, or one that is read when it is indexed.
Tensors = Mapping[str, Callable[[], "np.ndarray | StoredTensor"]]


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, of which only the indexed part is read.

    Attributes:
      shape, dtype: of the whole tensor.
      read: reads the part [out, in] at an index.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Any], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.read(index)


def load_config(source: ModelSource) -> BackboneConfig:
    """The backbone that a source describes."""
    if source.kind == "random":
        return RANDOM_CONFIG
    assert source.path is not None
    try:
        if source.kind == "hf":
            return config_from_hf(_read_json(source.path / "config.json"))
        file = open_gguf(source.path)
        divisors = file.tensors.get("rope_freqs.weight")
        return config_from_gguf(
            file.metadata,
            tied_embeddings="output.weight" not in file.tensors,
            rope_divisors=None if divisors is None else tuple(divisors.read().tolist()),
        )
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{source.path}: {error}") from error
    except (TypeError, AttributeError, ArithmeticError) as error:  # a value of any kind may stand under any name
        raise WeightsError(f"{source.path}: its metadata has a value of a wrong kind ({error})") from error


# The model of ``random:SEED``: small enough to compile and run in seconds, with every feature of Llama.
RANDOM_CONFIG = BackboneConfig(
    architecture="llama",
    vocab_size=1024,
    embed_dim=64,
    mlp_dim=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=8192,
    tied_embeddings=True,
)


def load_params(
    source: ModelSource, config: BackboneConfig, compute: Compute, shardings: Params | None = None
) -> Params:
    """The frozen parameter tree, norms float32 and the rest in ``compute.dtype``.

    Args:
      source: from ``resolve``.
      config: from ``load_config``.
      compute: dtype of the result.
      shardings: tree of ``jax.sharding.Sharding`` like the parameters; each array goes straight to its devices. Each of
        several processes reads only what its own devices hold (but all of a GGUF file).

    Raises:
      WeightsError: if a file is truncated, or tensors are missing, unknown or of another shape (all in one message).
    """
    if source.kind == "random":
        assert source.seed is not None
        params = init_params(config, compute, jax.random.key(source.seed))
        return params if shardings is None else jax.tree.map(put, params, shardings)
    assert source.path is not None
    tensors = _hf_tensors(source.path) if source.kind == "hf" else _gguf_tensors(source.path, config)
    return params_from_tensors(tensors, config, compute, shardings, where=str(source.path))


def params_from_tensors(
    tensors: Tensors, config: BackboneConfig, compute: Compute, shardings: Params | None = None, *, where: str
) -> Params:
    """Fills the backbone from tensors under their Hugging Face names, after auditing names and shapes both ways."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(abstract_params(config, compute))
    flat_shardings = [None] * len(flat) if shardings is None else jax.tree.leaves(shardings)
    names = [hf_name(tuple(part.key for part in path), config) for path, _ in flat]
    tied = {"lm_head.weight"} if config.tied_embeddings else set()
    problems = [f"missing: {name}" for name in names if name not in tensors]
    problems += [f"not used: {name}" for name in tensors if name not in {*names, *tied}]
    leaves = []
    for name, (path, leaf), sharding in zip(names, flat, flat_shardings, strict=True):
        if name not in tensors:
            continue
        value = tensors[name]()
        if not jnp.issubdtype(value.dtype, jnp.floating):
            problems.append(f"dtype of {name}: {value.dtype}, expected floating point")
        if value.shape != leaf.shape:
            problems.append(f"shape of {name}: {value.shape}, expected {leaf.shape}")
        if not problems:  # after the first problem only the audit continues
            less_one = config.norms_less_one and path[-1].key == "scale"
            read = partial(_read, value, leaf.dtype, less_one)
            leaves.append(jnp.asarray(read(...)) if sharding is None else put_read(read, leaf.shape, sharding))
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise WeightsError(f"{where} does not fit {config.architecture} ({len(problems)} problems): {listed}")
    return jax.tree_util.tree_unflatten(treedef, leaves)


def _read(tensor: np.ndarray | StoredTensor, dtype: Any, less_one: bool, index: Any) -> np.ndarray:
    """A part of a tensor; with ``less_one`` the file stores the scale of a norm less 1, and 1 is added."""
    value = tensor[index]
    return np.ascontiguousarray(value.astype(np.float32) + 1 if less_one else value, dtype=dtype)


_HF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


_HF_POST_NORM_NAMES = {
    "post_attn_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def hf_name(path: tuple[Any, ...], config: BackboneConfig | None = None) -> str:
    """Name in Hugging Face checkpoints: ("layers", 3, "q", "weight") -> "model.layers.3.self_attn.q_proj.weight".

    Args:
      config: of the model; names of norms depend on it.
    """
    if path[0] == "layers":
        suffix = "bias" if path[3] == "bias" else "weight"
        names = _HF_LAYER_NAMES | (_HF_POST_NORM_NAMES if config is not None and config.post_norms else {})
        return f"model.layers.{path[1]}.{names[path[2]]}.{suffix}"
    return {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}[
        path[0]
    ]


def _hf_tensors(folder: Path) -> dict[str, Callable[[], np.ndarray | StoredTensor]]:
    """Tensors of ``model.safetensors``, or of the files its index lists, or else of all ``*.safetensors``."""
    files = [folder / "model.safetensors"]
    index_path = folder / "model.safetensors.index.json"
    if not files[0].is_file() and index_path.is_file():
        listed = _read_json(index_path).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise WeightsError(f"{index_path} has no weight_map of tensors to files: download it again")
        files = [folder / name for name in sorted(set(listed.values()))]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise WeightsError(f"{index_path} lists {', '.join(absent)}, which the folder lacks: download it again")
    elif not files[0].is_file():
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder} has no *.safetensors file (pickled .bin weights are not read)")
    tensors: dict[str, Callable[[], np.ndarray | StoredTensor]] = {}
    for file in files:
        try:
            handle = safetensors.safe_open(str(file), framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise WeightsError(f"{file} is not a whole safetensors file ({error}): download it again") from error
        tensors |= {name: partial(_hf_read, handle, name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    return {name: read for name, read in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _hf_read(handle: Any, name: str) -> StoredTensor:
    stored = handle.get_slice(name)
    if (dtype := stored.get_dtype()) not in _DTYPES:  # numpy has no such dtype: eight-bit floats
        raise WeightsError(f"{name} is of dtype {dtype}; read are F32, F16 and BF16: choose another copy")
    return StoredTensor(tuple(stored.get_shape()), jnp.dtype(_DTYPES[dtype]), stored.__getitem__)


_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def open_gguf(path: Path) -> GgufFile:
    """A GGUF file's metadata and tensors; raises ``WeightsError`` if it is truncated or not supported."""
    try:
        return read_gguf(path)
    except UnreadGguf as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read as GGUF: {error}. If it is truncated or altered, fetch it again"
        ) from error


def _gguf_tensors(path: Path, config: BackboneConfig) -> dict[str, Callable[[], np.ndarray | StoredTensor]]:
    """Tensors of a GGUF file under their Hugging Face names, dequantised to float32 when read."""
    return {
        _gguf_to_hf(name): partial(_gguf_read, tensor, config)
        for name, tensor in open_gguf(path).tensors.items()
        if name != "rope_freqs.weight"  # part of the config
    }


def _gguf_to_hf(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; unknown names are not changed: the audit reports
    them."""
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _GGUF_LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_GGUF_LAYER_NAMES[parts[2]]}.{parts[3]}"
    return name


def _gguf_read(tensor: GgufTensor, config: BackboneConfig) -> np.ndarray:
    value = tensor.read()
    if config.architecture in ("llama", "smollm3") and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
        return _undo_interleaved_rope(value, config.head_dim)
    return value


def _undo_interleaved_rope(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q and k in Hugging Face's order of two halves; llama.cpp stores Llama's rows pairwise interleaved.

    weight: [heads * H, in]; other shapes are not changed: the audit reports them.
    """
    heads, rest = divmod(weight.shape[0], head_dim)
    if rest or weight.ndim != 2:
        return weight
    return weight.reshape(heads, head_dim // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not whole JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a JSON {type(value).__name__}, expected an object: download it again")
    return value
