"""Checks the types of the values of a Hugging Face ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "no_rope_layer_interval",
    "sliding_window_pattern",
    "_sliding_window_pattern",
)
_NUMBERS = ("rms_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar", "partial_rotary_factor")
_OBJECTS = ("rope_parameters", "rope_scaling", "quantization_config")


def check_kinds(config: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` for a value of a wrong type; null means that a value is left out."""

    def refuse(name: str, expected: str) -> None:
        raise ValueError(f"config.json has {name} {repr(config[name])[:80]}, expected {expected}")

    for name, value in config.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            continue
        if name in _SIZES and not (is_number and isinstance(value, int) and value > 0):
            refuse(name, "a positive integer")
        if name == "sliding_window" and not (is_number and isinstance(value, int) and value >= 0):
            refuse(name, "an integer of at least 0")
        if name in _NUMBERS and not (is_number and 0 < value < math.inf):
            refuse(name, "a positive number")
        if name in _OBJECTS and not isinstance(value, dict):
            refuse(name, "an object")
        if name == "layer_types" and not (isinstance(value, list) and all(isinstance(kind, str) for kind in value)):
            refuse(name, "a list of texts")
        if name == "no_rope_layers" and not (isinstance(value, list) and set(map(str, value)) <= {"0", "1"}):
            refuse(name, "a list of 0 and 1")
    missing = [name for name in _SIZES[:5] if config[name] is None]
    if missing:
        raise ValueError(f"config.json has null for {', '.join(missing)}")
