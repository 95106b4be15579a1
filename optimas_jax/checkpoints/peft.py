"""Adapters as folders in PEFT's layout, which servers and trainers of adapters read and write.

``adapter_config.json`` is the configuration, ``adapter_model.safetensors`` has the matrices: A is ``lora_A.weight``
[R, in] and B ``lora_B.weight`` [out, R], float32. The name of a folder that we write is the digest of its contents.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import load_file, save

from optimas_jax.checkpoints.weights import hf_name
from optimas_jax.models.config import TARGETS, BackboneConfig, LoraConfig
from optimas_jax.models.lora import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Settings of the layout that this package does not support, each with the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
}


class AdapterError(ValueError):
    """An adapter folder that cannot be read."""


def _hf_module(name: str) -> str:
    """``q`` -> ``self_attn.q_proj``."""
    return hf_name(("layers", 0, name, "weight")).removeprefix("model.layers.0.").removesuffix(".weight")


_MODULES = {_hf_module(name).rsplit(".", 1)[-1]: name for name in TARGETS}  # q_proj -> q


def write_adapter(folder: Path, base: BackboneConfig, base_name: str, config: LoraConfig, params: Params) -> str:
    """Writes an adapter as ``folder/DIGEST``, in one step; an existing folder of that name is not changed.

    Args:
      base_name: the base's model spec, for ``base_model_name_or_path``.
      params: LoRA tree.

    Returns:
      The digest: 20 hexadecimal digits that name base, configuration and weights.

    Raises:
      OSError: if the folder cannot be written.
    """
    tensors = {}
    for index, layer in params["layers"].items():
        for name, matrices in layer.items():
            stem = _PREFIX + hf_name(("layers", index, name, "weight")).removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(np.asarray(matrices["lora_a"], np.float32).T)
            tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(np.asarray(matrices["lora_b"], np.float32).T)
    weights = save(tensors, metadata={"format": "pt"})
    described = json.dumps(_describe(base, base_name, config), indent=2, sort_keys=True).encode()
    name = hashlib.sha256(described + weights).hexdigest()[:20]
    target = folder / name
    if target.is_dir():
        return name
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
    try:
        (partial / WEIGHTS).write_bytes(weights)
        (partial / CONFIG).write_bytes(described)
        partial.rename(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not target.is_dir():  # another process may have been first
            raise
    return name


def _describe(base: BackboneConfig, base_name: str, config: LoraConfig) -> dict[str, Any]:
    layers = list(range(config.first(base.num_layers), base.num_layers)) if config.last_layers else None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": [_hf_module(name).rsplit(".", 1)[-1] for name in config.targets],
        "layers_to_transform": layers,
        "layers_pattern": None if layers is None else "layers",
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def read_adapter(folder: Path, base: BackboneConfig) -> tuple[LoraConfig, Params]:
    """Reads an adapter of ``base`` that PEFT or ``write_adapter`` wrote.

    Raises:
      AdapterError: if the folder has none, if it is damaged, uses unsupported settings (DoRA, biases, other modules),
        or does not fit the base.
    """
    described = _read_description(folder)
    for name, unused in _UNUSED.items():
        if described.get(name) not in unused:
            raise AdapterError(f"{folder}: {name} = {described[name]!r} is not supported, only plain LoRA is")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise AdapterError(f"{folder / WEIGHTS} is not a whole safetensors file ({error})") from error
    rank = int(described["r"])
    layers: Params = {}
    for key, tensor in tensors.items():
        index, name, side = _parse_name(folder, key)
        part = layers.setdefault(index, {}).setdefault(name, {})
        part["lora_a" if side == "A" else "lora_b"] = jnp.asarray(np.asarray(tensor, np.float32).T)
    if not layers:
        raise AdapterError(f"{folder / WEIGHTS} has no matrices")
    targets = tuple(name for name in TARGETS if any(name in layer for layer in layers.values()))
    lowest = min(layers)
    # rsLoRA divides alpha by the root of the rank (Kalajdzievski, arXiv 2312.03732).
    alpha = float(described["lora_alpha"]) * (rank**0.5 if described.get("use_rslora") else 1.0)
    config = LoraConfig(rank, alpha, targets, max(base.num_layers - lowest, 0) if lowest else 0)
    missing = [
        f"layers/{index}/{name}/{side}"
        for index in range(lowest, base.num_layers)
        for name in targets
        for side in ("lora_a", "lora_b")
        if side not in layers.get(index, {}).get(name, {})
    ]
    if missing:
        raise AdapterError(
            f"{folder}: {len(missing)} matrices are missing, the first is {missing[0]}: it was made for another base, "
            "or adapts layers that are not the last ones, or not alike"
        )
    return config, {"layers": layers}


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(f"{folder} is not an adapter: it has no {CONFIG}") from error
    except ValueError as error:
        raise AdapterError(f"{path} is damaged ({error})") from error
    if not isinstance(described, dict) or described.get("peft_type") != "LORA":
        raise AdapterError(f"{path} does not describe a LoRA adapter (peft_type LORA)")
    for name in ("r", "lora_alpha"):
        if not isinstance(described.get(name), int | float):
            raise AdapterError(f"{path} has no number {name}")
    return described


def _parse_name(folder: Path, key: str) -> tuple[int, str, str]:
    """Layer, module and side (A or B) of a tensor's name."""
    match = re.fullmatch(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight", key)
    if match is None or match[2] not in _MODULES:
        raise AdapterError(
            f"{folder / WEIGHTS} has {key!r}; adapted can be the modules {', '.join(_MODULES)} of a layer only"
        )
    return int(match[1]), _MODULES[match[2]], match[3]
