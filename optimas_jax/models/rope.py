"""Rotary position embedding (Su et al., arXiv 2104.09864), with Llama 3.1's frequencies for models that use them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from optimas_jax.models.config import BackboneConfig

Rotation = tuple[jax.Array, jax.Array]  # see ``rope_angles``


def rope_angles(positions: jax.Array, config: BackboneConfig, kind: str = "full") -> Rotation:
    """Cosines and sines [..., H / 2] float32 of the rotation at each position, in layers of ``kind``."""
    half = config.head_dim // 2
    theta = config.window_rope_theta if kind == "sliding" else config.rope_theta
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if kind == "unrotated":
        frequencies = jnp.zeros_like(frequencies)
    elif kind == "full" and config.rope_divisors is not None:
        frequencies = frequencies / jnp.asarray(config.rope_divisors, jnp.float32)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary embedding in Hugging Face's half-split layout: x [..., heads, H], cos and sin [..., H / 2]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
