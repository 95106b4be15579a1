"""Linear heads on the backbone's hidden states. Float32 whatever the backbone computes in."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from optimas_jax.models.lora import Params


def init_reward_head(key: jax.Array, embed_dim: int, num_components: int) -> Params:
    """One linear head h_k per component (paper, Eq. 2), side by side: ``kernel`` [D, C] float32, small and random.

    No bias: a constant cancels in every comparison of two candidates.
    """
    return {"kernel": jax.random.normal(key, (embed_dim, num_components), jnp.float32) / embed_dim}


def reward_head(head: Params, hidden: jax.Array, component: jax.Array) -> jax.Array:
    """r_k = h_k . phi (paper, Eq. 2).

    Args:
      head: from ``init_reward_head``.
      hidden: [G, M, D] hidden state at the last token of each candidate.
      component: [G] int32, which head scores the group.

    Returns:
      [G, M] float32.
    """
    weights = head["kernel"].T[component]  # [G, D]
    return jnp.einsum("...gmd,...gd->...gm", hidden.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST)


def init_value_head(embed_dim: int) -> Params:
    """A critic that predicts 0: ``kernel`` [D, 1] float32 zeros."""
    return {"kernel": jnp.zeros((embed_dim, 1), jnp.float32)}


def value_head(head: Params, hidden: jax.Array) -> jax.Array:
    """Expected return at hidden states [C, D]: [C] float32."""
    return jnp.matmul(hidden.astype(jnp.float32), head["kernel"], precision=jax.lax.Precision.HIGHEST)[..., 0]
