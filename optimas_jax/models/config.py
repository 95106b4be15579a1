"""Configuration of a backbone, read from a Hugging Face config or from GGUF metadata, and of its LoRA adapters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from optimas_jax.models.config_kinds import check_kinds

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3", "gemma3_text")
GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
KINDS = ("full", "sliding", "unrotated")  # of layers: causal attention, within a window, without RoPE
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # the matrices of a layer


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Sizes and switches of a decoder-only transformer. Shape letters of the design are given in brackets."""

    architecture: str
    vocab_size: int  # [V]
    embed_dim: int  # [D]
    mlp_dim: int  # [F]
    num_layers: int  # [L]
    num_heads: int  # [N]
    num_kv_heads: int  # [K]
    head_dim: int  # [H]
    max_positions: int
    rope_theta: float = 10_000.0
    rope_divisors: tuple[float, ...] | None = None  # [H / 2], see llama3_rope_divisors
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    norms_less_one: bool = False  # checkpoints store norm weights less 1
    post_norms: bool = False  # attention's and the MLP's outputs are normed, too, before they are added
    activation: str = "silu"  # or "gelu_tanh"
    embed_scale: float = 1.0
    query_scale: float | None = None  # of scores; None: H ** -0.5
    layer_kinds: tuple[str, ...] = ()  # [L] of KINDS; empty: all "full"
    window: int = 0  # positions that a token of a "sliding" layer sees, its own included
    window_rope_theta: float = 10_000.0  # of "sliding" layers, which have no divisors

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"unknown architecture {self.architecture!r}; this backbone implements {', '.join(ARCHITECTURES)}"
            )
        sizes = ("vocab_size", "embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim")
        wrong = {name: value for name in sizes if not (isinstance(value := getattr(self, name), int) and value > 0)}
        if wrong:
            raise ValueError(f"sizes must be positive integers; got {wrong}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}) "
                "for grouped-query attention"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for RoPE")
        if len(self.kinds) != self.num_layers or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"layer_kinds must be {self.num_layers} of {', '.join(KINDS)}; got {self.layer_kinds}")
        if ("sliding" in self.layer_kinds) != (self.window > 0):
            raise ValueError(f"a window of {self.window} tokens for layers of the kinds {set(self.layer_kinds)}")
        if self.rope_divisors is not None and len(self.rope_divisors) != self.head_dim // 2:
            raise ValueError(f"{len(self.rope_divisors)} RoPE divisors for a head_dim of {self.head_dim}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return self.layer_kinds or ("full",) * self.num_layers

    @property
    def num_params(self) -> int:
        """Number of parameters, tied embeddings once."""
        q_dim, kv_dim = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = 2 * self.embed_dim * (q_dim + kv_dim) + 3 * self.embed_dim * self.mlp_dim
        layer += (4 if self.post_norms else 2) * self.embed_dim
        layer += (q_dim + 2 * kv_dim) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        embeddings = self.vocab_size * self.embed_dim * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + embeddings + self.embed_dim


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Rank, scale and targets of LoRA adapters (paper: rank 32, alpha 16, every layer).

    Attributes:
      rank: rank of the adapters (R), at least 1.
      alpha: the adapters' product is scaled by alpha / R.
      targets: which of a layer's seven matrices get an adapter.
      last_layers: number of layers with adapters, counted from the top; 0 for all. No gradient is computed below them.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    last_layers: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            raise ValueError(f"LoRA targets must be a non-empty choice of {', '.join(TARGETS)}; got {self.targets!r}")
        if self.rank < 1 or self.last_layers < 0:
            raise ValueError(
                f"LoRA rank must be at least 1 and last_layers at least 0, got {self.rank} and {self.last_layers}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def adapts(self, layer: int, num_layers: int) -> bool:
        """Whether layer ``layer`` (from 0 at the bottom) gets adapters."""
        return layer >= self.first(num_layers)

    def first(self, num_layers: int) -> int:
        """The lowest layer with adapters."""
        return max(num_layers - self.last_layers, 0) if self.last_layers else 0


def config_from_hf(config: Mapping[str, Any]) -> BackboneConfig:
    """Reads a Hugging Face ``config.json`` (transformers 4 and 5 spellings of RoPE settings).

    Raises:
      ValueError: if the architecture, the activation or the RoPE type is not one that the backbone computes.
    """
    architecture = config.get("model_type")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"config.json has model_type {architecture!r}; this backbone implements {', '.join(ARCHITECTURES)}. "
            "Choose a Llama, Qwen2/2.5, Qwen3 or SmolLM3 model, or a Gemma 3 model of texts alone"
        )
    missing = [
        key
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if key not in config
    ]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    check_kinds(config)
    _refuse_what_is_not_computed(config, architecture)
    num_heads = config["num_attention_heads"]
    # transformers' own defaults where a hand-written config leaves a key out
    head_dims = {"qwen3": 128, "gemma3_text": 256}
    head_dim = config.get("head_dim") or head_dims.get(str(architecture)) or config["hidden_size"] // num_heads
    rope = _rope_settings(config, architecture)
    return BackboneConfig(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        mlp_dim=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        max_positions=config.get("max_position_embeddings", 2048),
        rope_theta=float(rope["rope_theta"]),
        rope_divisors=_rope_divisors(rope, head_dim),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied_embeddings=bool(config.get("tie_word_embeddings", architecture in ("smollm3", "gemma3_text"))),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "gemma3_text"),
        **(_gemma3_settings(config) if architecture == "gemma3_text" else {}),
        **(_smollm3_settings(config) if architecture == "smollm3" else {}),
    )


def _refuse_what_is_not_computed(config: Mapping[str, Any], architecture: str) -> None:
    gemma = architecture == "gemma3_text"
    key, expected = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
    if config.get(key, expected) != expected:
        raise ValueError(f"config.json has {key} {config[key]!r}; the backbone computes {expected!r}")
    kinds = set(config.get("layer_types") or ()) - {"full_attention", *(["sliding_attention"] if gemma else [])}
    if config.get("use_sliding_window") or kinds:
        raise ValueError(
            f"config.json asks for {', '.join(kinds) or 'sliding_attention'} layers; of this architecture the backbone "
            f"computes {'full and sliding-window' if gemma else 'full'} causal attention"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method")
        raise ValueError(f"config.json has weights quantised with {method!r}; load the original ones or a GGUF file")
    if config.get("mlp_bias") or (config.get("attention_bias") and architecture != "qwen2"):
        raise ValueError(
            "config.json asks for mlp_bias or attention_bias, which the backbone has only as Qwen2's q/k/v"
        )
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if config.get(key):
            raise ValueError(f"config.json has {key} {config[key]!r}, which the backbone does not compute")


def _gemma3_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of Gemma 3 that Llama does not have; by default every sixth layer is full and the others are sliding."""
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    types = config.get("layer_types") or [
        "sliding_attention" if (index + 1) % every else "full_attention" for index in range(config["num_hidden_layers"])
    ]
    kinds = tuple("sliding" if kind == "sliding_attention" else "full" for kind in types)
    local = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise ValueError(f"config.json has RoPE type {local['rope_type']!r} for sliding layers; computed is 'default'")
    return {
        "norms_less_one": True,
        "post_norms": True,
        "activation": "gelu_tanh",
        "embed_scale": config["hidden_size"] ** 0.5,
        "query_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "layer_kinds": kinds,
        "window": (config.get("sliding_window") or 4096) if "sliding" in kinds else 0,
        "window_rope_theta": float(local.get("rope_theta") or config.get("rope_local_base_freq") or 10_000.0),
    }


def _smollm3_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Layers of SmolLM3 without RoPE: layers with a 0 in ``no_rope_layers``, by default every fourth."""
    every = config.get("no_rope_layer_interval") or 4
    rotated = config.get("no_rope_layers")
    if rotated is None:
        rotated = [(index + 1) % every for index in range(config["num_hidden_layers"])]
    return {"layer_kinds": tuple("full" if rotates else "unrotated" for rotates in rotated)}


def _rope_settings(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """RoPE settings of (full) layers. transformers 5 writes ``rope_parameters``, for Gemma 3 by kind of layer;
    transformers 4 wrote ``rope_theta`` and ``rope_scaling``. As in transformers, ``rope_scaling`` overrides
    ``rope_parameters``."""
    parameters, scaling = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    parameters_of_full = parameters.get("full_attention", parameters)
    if not isinstance(parameters_of_full, dict):
        raise ValueError(f"config.json has rope_parameters {str(parameters)[:80]}, expected an object of settings")
    kind = {"rope_type": scaling["type"]} if "type" in scaling else {}
    rope = {**parameters_of_full, **kind, **scaling}
    default = {"gemma3_text": 1_000_000.0, "smollm3": 2_000_000.0}.get(architecture, 10_000.0)
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or default
    if (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("config.json has a partial_rotary_factor; the backbone rotates whole heads")
    return rope


def _rope_divisors(rope: Mapping[str, Any], head_dim: int) -> tuple[float, ...] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    keys = {"default": (), "linear": ("factor",), "llama3": _LLAMA3_KEYS}.get(str(kind))
    if keys is None:
        raise ValueError(f"config.json has RoPE type {kind!r}; the backbone computes 'default', 'linear' and 'llama3'")
    missing = [key for key in keys if not isinstance(rope.get(key), int | float)]
    if missing:
        raise ValueError(f"config.json has RoPE type {kind!r} without a number for {', '.join(missing)}")
    if kind != "llama3":
        return (float(rope["factor"]),) * (head_dim // 2) if kind == "linear" else None
    factor, low, high, original = (float(rope[key]) for key in keys)
    return llama3_rope_divisors(
        head_dim=head_dim,
        theta=float(rope["rope_theta"]),
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=int(original),
    )


_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def llama3_rope_divisors(
    *,
    head_dim: int,
    theta: float,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_positions: int,
) -> tuple[float, ...]:
    """[H / 2] divisors of Llama 3.1's RoPE frequencies (transformers: ``rope_type="llama3"``).

    With n = rotations within the original context: a frequency with n below ``low_freq_factor`` is divided by
    ``factor``, one with n above ``high_freq_factor`` is not changed, between them it is interpolated linearly in n.
    """
    divisors = []
    for pair in range(head_dim // 2):
        frequency = theta ** (-2 * pair / head_dim)
        rotations = original_max_positions * frequency / (2 * math.pi)
        unscaled = min(max((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0), 1.0)
        divisors.append(1.0 / (unscaled + (1.0 - unscaled) / factor))
    return tuple(divisors)


def config_from_gguf(
    metadata: Mapping[str, Any], *, tied_embeddings: bool, rope_divisors: tuple[float, ...] | None = None
) -> BackboneConfig:
    """Reads GGUF metadata (keys as in the GGUF specification, ``<architecture>.block_count`` and so on).

    Args:
      metadata: field name to Python value.
      tied_embeddings: whether the file has no ``output.weight``.
      rope_divisors: contents of the file's ``rope_freqs.weight``, which stores Llama 3.1's scaling.

    Raises:
      ValueError: if the architecture or the RoPE scaling is not one that the backbone computes.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        raise ValueError(
            f"GGUF file has general.architecture {architecture!r}; read are {', '.join(GGUF_ARCHITECTURES)}. Gemma 3 "
            "is read from a Hugging Face folder"
        )

    def field(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{name}", default)
        if value is None:
            raise ValueError(f"GGUF metadata lacks {architecture}.{name}")
        return value

    num_heads = field("attention.head_count")
    if not isinstance(num_heads, int):
        raise ValueError(
            f"GGUF file has attention.head_count {num_heads!r}; the backbone needs one number for all layers"
        )
    head_dim = field("attention.key_length", field("embedding_length") // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if field(name, head_dim) != head_dim:
            raise ValueError(f"GGUF file has {name} {field(name)}; the backbone needs the head's {head_dim}")
    return BackboneConfig(
        architecture=architecture,
        vocab_size=field("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())) or None),
        embed_dim=field("embedding_length"),
        mlp_dim=field("feed_forward_length"),
        num_layers=field("block_count"),
        num_heads=num_heads,
        num_kv_heads=field("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_positions=field("context_length"),
        rope_theta=float(field("rope.freq_base", 10_000.0)),
        rope_divisors=_gguf_rope_divisors(field, head_dim, rope_divisors),
        norm_eps=field("attention.layer_norm_rms_epsilon"),
        tied_embeddings=tied_embeddings,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        # llama.cpp has the interval in its code, not in the file
        **(_smollm3_settings({"num_hidden_layers": field("block_count")}) if architecture == "smollm3" else {}),
    )


def _gguf_rope_divisors(
    field: Callable[[str, Any], Any], head_dim: int, stored: tuple[float, ...] | None
) -> tuple[float, ...] | None:
    """Divisors of RoPE's frequencies, as llama.cpp reads them: a factor without a type is linear scaling, also under
    its older name, and a factor of 0 is no scaling. ``stored``: contents of ``rope_freqs.weight``."""
    kind = field("rope.scaling.type", "linear")
    factor = field("rope.scaling.factor", field("rope.scale_linear", 0.0)) or 1.0
    if kind not in ("none", "linear") or (kind == "linear" and factor != 1.0 and stored is not None):
        raise ValueError(
            f"GGUF file has RoPE scaling {kind!r}{'' if stored is None else ' beside rope_freqs.weight'}; the backbone "
            "computes linear scaling and that of Llama 3.1: load the model from a Hugging Face folder instead"
        )
    if field("rope.scaling.attn_factor", 1.0) != 1.0:
        raise ValueError("GGUF file has a rope.scaling.attn_factor, which the backbone does not compute")
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise ValueError(f"GGUF file has a RoPE scaling factor of {factor!r}, expected a positive number")
    return stored if kind == "none" or factor == 1.0 else (float(factor),) * (head_dim // 2)
