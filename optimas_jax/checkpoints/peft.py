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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save

from optimas_jax.checkpoints.peft_config import (
    CONFIG,
    AdapterDescription,
    AdapterError,
    is_representable,
    read_description,
)
from optimas_jax.checkpoints.weights import hf_name
from optimas_jax.models.config import TARGETS, BackboneConfig, LoraConfig
from optimas_jax.models.lora import Params, module_shapes

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DIGEST = re.compile(r"[0-9a-f]{20}")


def _hf_module(name: str) -> str:
    """``q`` -> ``self_attn.q_proj``."""
    return hf_name(("layers", 0, name, "weight")).removeprefix("model.layers.0.").removesuffix(".weight")


_MODULES = {_hf_module(name).rsplit(".", 1)[-1]: name for name in TARGETS}  # q_proj -> q
_MODULE_NAMES = ", ".join(_MODULES)


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
    name = _digest(described, weights)
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


def _digest(described: bytes, weights: bytes) -> str:
    return hashlib.sha256(described + weights).hexdigest()[:20]


def read_adapter(folder: Path, base: BackboneConfig) -> tuple[LoraConfig, Params]:
    """Reads an adapter of ``base`` that PEFT or ``write_adapter`` wrote.

    All users of adapters (training, evaluation, serving, merging) read them here. If ranks differ from module to module
    the matrices get columns of zeros up to the largest rank; if scales differ they are multiplied into B. A module that
    is adapted in some layers only gets zeros in the others.

    Raises:
      AdapterError: if the folder has no adapter, if it is damaged, if its name is a digest and its contents have
        another, if its settings mean more than plain LoRA, or if matrices are missing, unknown, not finite, or do not
        have the ranks of its configuration and the widths of the base.
    """
    described, tensors, digest = _read(folder)
    shapes = module_shapes(base)
    slots = [(index, name) for index in range(base.num_layers) for name in TARGETS]
    modules = {slot: module for slot in slots if described.adapts(module := _hf_name(*slot))}
    missing = [key for module in modules.values() for key in _keys(module) if key not in tensors]
    if missing:
        raise AdapterError(
            f"{folder}: {len(missing)} matrices are missing that {CONFIG} promises, the first is {missing[0]}: it was "
            "made for another base, or is damaged"
        )
    adapted = {
        slot: _matrices(folder, tensors, module, described.rank(module), shapes[slot[1]])
        for slot, module in modules.items()
    }
    unread = [module for module in ("lm_head", "model.embed_tokens") if described.adapts(module)]
    if unread:
        raise AdapterError(
            f"{folder} adapts {', '.join(unread)}; adapted can be the modules {_MODULE_NAMES} of a layer only"
        )
    if tensors:
        raise AdapterError(_unused(folder, tensors, base))
    if not adapted:
        raise AdapterError(f"{folder}: target_modules = {described.target_modules!r} are no modules of this base")
    if _DIGEST.fullmatch(folder.name) and folder.name != digest:
        raise AdapterError(
            f"{folder} is named by the digest of what an adapter holds, and holds something else, of digest {digest}: "
            "it was changed or damaged. Take it from where it was made; one changed on purpose needs another name"
        )
    return _uniform(folder, described, base, adapted)


def _read(folder: Path) -> tuple[AdapterDescription, dict[str, np.ndarray], str]:
    """Description, tensors by name, and digest of both files."""
    try:
        text = (folder / CONFIG).read_bytes()
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder} is not an adapter: it has no {CONFIG} that can be read ({error})") from error
    described = read_description(folder, text)
    try:
        weights = (folder / WEIGHTS).read_bytes()
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # a dtype that numpy does not have is an error of another kind
        pickled = (folder / "adapter_model.bin").exists()
        way_out = (
            ": adapter_model.bin is pickled, which is not read; save it with safe_serialization" if pickled else ""
        )
        raise AdapterError(
            f"{folder / WEIGHTS} is not a whole safetensors file ({type(error).__name__}: {error}){way_out}"
        ) from error
    return described, tensors, _digest(text, weights)


def _hf_name(index: int, name: str) -> str:
    """3, ``q`` -> ``model.layers.3.self_attn.q_proj``."""
    return hf_name(("layers", index, name, "weight")).removesuffix(".weight")


def _keys(module: str) -> list[str]:
    """Names of A and B of a module."""
    return [f"{_PREFIX}{module}.lora_{side}.weight" for side in "AB"]


def _matrices(
    folder: Path, tensors: dict[str, np.ndarray], module: str, rank: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A [in, R] and B [R, out] of a module, float32, taken out of ``tensors``."""
    for key, expected in zip(_keys(module), ((rank, shape[1]), (shape[0], rank)), strict=True):
        tensor = tensors[key]
        if tensor.shape != expected or not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise AdapterError(
                f"{folder}: {key} is {tensor.dtype} {tensor.shape}, expected floating point {expected} by the rank "
                f"{rank} of {CONFIG} and the widths of this base: it was made for another base or rank"
            )
        if not np.isfinite(tensor.astype(np.float32)).all():
            raise AdapterError(f"{folder}: {key} has numbers that are not finite")
    a, b = (np.asarray(tensors.pop(key), np.float32).T for key in _keys(module))
    return a, b


def _unused(folder: Path, tensors: Mapping[str, Any], base: BackboneConfig) -> str:
    """The message about tensors that were not used."""
    key = min(tensors)
    match = re.fullmatch(r"base_model\.model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_[AB]\.weight", key)
    if match is None or match[2] not in _MODULES:
        why = f"adapted can be the modules {_MODULE_NAMES} of a layer only"
    elif int(match[1]) >= base.num_layers:
        why = f"this base has {base.num_layers} layers: it was made for another base"
    else:
        why = f"which {CONFIG} does not name"
    return f"{folder / WEIGHTS} has {key!r}; {why}"


def _uniform(
    folder: Path,
    described: AdapterDescription,
    base: BackboneConfig,
    adapted: Mapping[tuple[int, str], tuple[np.ndarray, np.ndarray]],
) -> tuple[LoraConfig, Params]:
    """An adapter of one rank and scale, with the same modules in all layers from the lowest adapted one on."""
    scales = {key: described.scale(_hf_name(*key)) for key in adapted}
    if not all(map(is_representable, scales.values())):
        raise AdapterError(f"{folder}: lora_alpha = {described.lora_alpha} is too large for the rank {described.r}")
    rank, lowest = max(len(b) for _, b in adapted.values()), min(index for index, _ in adapted)
    alike = len(set(scales.values())) == 1
    targets = tuple(name for name in TARGETS if any(name == adapted_name for _, adapted_name in adapted))
    shapes, layers = module_shapes(base), {}
    for index in range(lowest, base.num_layers):
        layers[index] = {}
        for name in targets:
            fan_out, fan_in = shapes[name]
            a, b = np.zeros((fan_in, rank), np.float32), np.zeros((rank, fan_out), np.float32)
            if (index, name) in adapted:
                given_a, given_b = adapted[index, name]
                a[:, : len(given_b)], b[: len(given_b)] = given_a, given_b * (1.0 if alike else scales[index, name])
            layers[index][name] = {"lora_a": jnp.asarray(a), "lora_b": jnp.asarray(b)}
    alpha = next(iter(scales.values())) * rank if alike else float(rank)
    return LoraConfig(rank, alpha, targets, base.num_layers - lowest if lowest else 0), {"layers": layers}
