"""Reads PEFT's ``adapter_config.json``: which modules an adapter adapts, with which rank and scale.

Every field is read, or known to have no effect once an adapter is trained, or refused by name: so an adapter always
means what PEFT means by it. PiSSA, OLoRA, LoftQ, CorDA and LoRA-GA change the base as well, which the folder of an
adapter does not contain.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

CONFIG = "adapter_config.json"
_INITIAL = ("gaussian", "orthogonal", "mica", "eva")  # initialisations that do not change the base
# Settings of training, of initial values (checked by ``init_lora_weights``), or of the origin of the adapter.
_NO_MATTER = {
    "task_type",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "lora_dropout",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "megatron_core",  # used with megatron_config alone
    "qalora_group_size",  # used with use_qalora alone
    "ensure_weight_tying",  # of embeddings, which are not adapted here
    "unsloth_fixed",
}
_UNUSED: tuple[Any, ...] = (None, False, "none", "", [], {})

Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Rank = Annotated[int, pydantic.Field(ge=1)]


class AdapterError(ValueError):
    """An adapter folder that cannot be read, or whose settings or base are not supported."""


class AdapterDescription(pydantic.BaseModel):
    """The fields that are read, with module names as in the Hugging Face model."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, extra="allow")

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Finite
    target_modules: list[str] | str
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Finite] | None = None
    use_rslora: bool | None = None
    init_lora_weights: bool | str | None = True

    def adapts(self, module: str) -> bool:
        """Whether a module, such as ``model.layers.3.self_attn.q_proj``, has an adapter."""
        if _named(self.exclude_modules, module):
            return False
        if not _named(self.target_modules, module):
            return False
        layers = self.layers_to_transform
        if layers is None or layers == [] or isinstance(self.target_modules, str):
            return True
        return _layer(module, self.layers_pattern) in ([layers] if isinstance(layers, int) else layers)

    def rank(self, module: str) -> int:
        """R of a module's matrices."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """The factor of the product of a module's matrices; rsLoRA (arXiv 2312.03732) divides by the root of the
        rank."""
        rank = self.rank(module)
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha) / (rank**0.5 if self.use_rslora else rank)


def read_description(folder: Path, text: bytes) -> AdapterDescription:
    """Reads the contents of ``adapter_config.json``.

    Args:
      folder: of the adapter, for messages.

    Raises:
      AdapterError: the contents are damaged, describe no LoRA adapter, or have an unsupported setting, which it names.
    """
    path = folder / CONFIG
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged ({error})") from error
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise AdapterError(f"{path} does not describe a LoRA adapter (peft_type LORA)")
    if (initial := fields.get("init_lora_weights", True)) not in (None, True, False, *_INITIAL):
        raise AdapterError(
            f"{folder}: init_lora_weights = {_short(initial)} is not supported, as it may change the base, too; read "
            f"are true, false, {', '.join(_INITIAL)}. With path_initial_model_for_weight_conversion PEFT saves such an "
            "adapter as a plain one"
        )
    others = {name: value for name, value in fields.items() if name not in AdapterDescription.model_fields}
    for name, value in others.items():
        if name not in _NO_MATTER and not any(value is unused or value == unused for unused in _UNUSED):
            raise AdapterError(f"{folder}: {name} = {_short(value)} is not supported, only plain LoRA is")
    try:
        described = AdapterDescription.model_validate(fields)
        _compile(described)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        value = f"{name} = {_short(fields[name])}" if name in fields else f"no {name}"
        raise AdapterError(f"{path} has {value}: {first['msg']}") from error
    except re.error as error:
        raise AdapterError(f"{path} names modules by an expression that cannot be read ({error})") from error
    return described


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _compile(described: AdapterDescription) -> None:
    """Raises ``re.error`` for a pattern that is no regular expression."""
    expressions = [names for names in (described.target_modules, described.exclude_modules) if isinstance(names, str)]
    layers = described.layers_pattern or []
    parts = [layers] if isinstance(layers, str) else layers
    for pattern in [*expressions, *parts, *(described.rank_pattern or {}), *(described.alpha_pattern or {})]:
        re.compile(pattern)


def _named(names: Sequence[str] | str | None, module: str) -> bool:
    """Whether names include a module; they are ends of module names, or one regular expression for whole names."""
    if isinstance(names, str):
        return names.lower() == "all-linear" or re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _layer(module: str, patterns: Sequence[str] | str | None) -> int | None:
    """Number of a module's layer, which follows the name of the list of layers; by default any name."""
    names = [patterns] if isinstance(patterns, str) and patterns else patterns
    for name in names or [r"[^.]*"]:
        if (match := re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module)) is not None:
            return int(match[match.lastindex or 1])
    return None


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def is_representable(scale: float) -> bool:
    """Whether a scale is a finite number of float32."""
    return math.isfinite(scale) and abs(scale) < 3e38
