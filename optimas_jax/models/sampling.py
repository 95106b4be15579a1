"""Sampling from the backbone, on the device: prefill, and cached decoding in one jitted loop.

Arrays in, arrays out; ``models.sampler`` turns requests into batches of these. Every row has its own random stream,
``fold_in(key(seed), step)``, so that what a row gets does not depend on its batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from optimas_jax.models.backbone import Cache
from optimas_jax.models.lora import Params


def sample_tokens(logits: jax.Array, temperature: jax.Array, top_p: jax.Array, uniform: jax.Array) -> jax.Array:
    """One token per row, by inverting the cumulative distribution of the nucleus at a uniform number.

    Args:
      logits: [B, V] float32.
      temperature: [B] float32; rows at 0 take the arg max.
      top_p: [B] float32 in (0, 1].
      uniform: [B] float32 in [0, 1).

    Returns:
      [B] int32.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        weights = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
        weights = jax.lax.cond(
            jnp.any((top_p < 1.0) & (temperature > 0.0)), lambda w: _nucleus(w, top_p), lambda w: w, weights
        )
        return jnp.where(temperature > 0.0, _invert_cumulative(weights, uniform), greedy)

    return jax.lax.cond(jnp.any(temperature > 0.0), draw, lambda: greedy)


def _nucleus(weights: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zeroes all but the heaviest entries that together reach ``top_p`` of each row's weight. No sort: the threshold
    is found by bisection on its logarithm, 40 halvings of [-100, 0], which separates any two float32 weights that
    matter. Equal weights stay or go together."""
    total = weights.sum(axis=-1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # the threshold low keeps enough, high too little
        middle = 0.5 * (low + high)
        kept = jnp.where(weights >= jnp.exp(middle)[:, None], weights, 0.0).sum(axis=-1)
        enough = kept >= top_p * total
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = (jnp.full_like(total, -100.0), jnp.full_like(total, 1e-6))
    threshold = jnp.exp(jax.lax.fori_loop(0, 40, halve, start)[0])
    return jnp.where(weights >= threshold[:, None], weights, 0.0)


def _invert_cumulative(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Index at which each row's cumulative weight passes ``uniform`` of its total; two levels, so that no cumulative
    sum runs over the whole vocabulary. weights [B, V], uniform [B] -> [B] int32."""
    width = 128
    rows, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % width))).reshape(rows, -1, width)
    block_sums = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = uniform * block_sums[:, -1]
    last_block = _last_positive(blocks.sum(axis=-1))
    block = jnp.minimum(jnp.sum(block_sums <= target[:, None], axis=-1), last_block)
    before = jnp.where(block > 0, jnp.take_along_axis(block_sums, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    within = jnp.sum(jnp.cumsum(inside, axis=-1) <= (target - before)[:, None], axis=-1)
    return (block * width + jnp.minimum(within, _last_positive(inside))).astype(jnp.int32)


def _last_positive(weights: jax.Array) -> jax.Array:
    """[B, n] -> [B]: index of the last entry above zero, so that rounding never picks an impossible token."""
    return weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)


@partial(jax.jit, static_argnums=0)
def prefill(graphdef: Any, params: Params, input_ids: jax.Array, lengths: jax.Array) -> tuple[jax.Array, Cache]:
    """Runs prompts through the network.

    Args:
      input_ids: [b, T] int32, padded at the right.
      lengths: [b] int32, at least 1.

    Returns:
      logits after each prompt's last token [b, V] float32, and per layer keys [b, K, H, T] and values [b, K, T, H].
    """
    model = nnx.merge(graphdef, params)
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    hidden, kv = model.hidden(input_ids, positions, None)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return model.logits(last), tuple((k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)) for k, v in kv)


@partial(jax.jit, donate_argnums=0)
def insert(state: tuple[Cache, jax.Array], logits: jax.Array, kv: Cache, rows: jax.Array) -> tuple[Cache, jax.Array]:
    """Writes a prefilled micro-batch into rows of the decode state.

    Args:
      state: cache (per layer [B, K, S, H]) and first logits [B, V]; donated.
      logits: [b, V].
      kv: from ``prefill``.
      rows: [b] int32 target rows; B (one past the end) drops a padding row.
    """
    cache, first_logits = state
    slots = cache[0][0].shape[3]
    length = min(kv[0][0].shape[3], slots)  # a prompt's length bucket may exceed its cache bucket, by padding only
    cache = tuple(
        (
            k_cache.at[rows, :, :, :length].set(k[..., :length].astype(k_cache.dtype), mode="drop"),
            v_cache.at[rows, :, :length].set(v[:, :, :length].astype(v_cache.dtype), mode="drop"),
        )
        for (k_cache, v_cache), (k, v) in zip(cache, kv, strict=True)
    )
    return cache, first_logits.at[rows].set(logits, mode="drop")


class Rows(NamedTuple):
    """State of the rows of a decode batch: last token [B] int32, whether the answer has begun and is done [B] bool."""

    token: jax.Array
    begun: jax.Array
    done: jax.Array


@partial(jax.jit, static_argnums=(0, 4), donate_argnums=2)
def decode(
    graphdef: Any, params: Params, cache: Cache, requests: dict[str, jax.Array], prompt_slots: int
) -> tuple[dict[str, jax.Array], Cache]:
    """Samples until every row is done, in one loop on the device.

    Args:
      cache: with prompts in slots [0, length) of each row; donated.
      requests: per row ``logits`` [B, V] that follow the prompt, ``lengths``, ``limits`` (tokens to sample; 0 for
        padding rows), ``seeds`` (uint32), ``temperatures``, ``top_p``, and ``stops`` [B, V] int8 (tokens that end the
        row: 2 always, 1 once something but white space was sampled); ``blank`` [V] bool (tokens of white space).
      prompt_slots: slots set aside for prompts; sampled tokens go to the slots after them, the same for all rows.

    Returns:
      ``tokens`` [B, n] int32, ``logprobs`` [B, n] float32 and ``counts`` [B] int32, n = slots for new tokens; and the
      cache, whose memory can be used again.
    """
    model = nnx.merge(graphdef, params)
    size, _, _, slots = cache[0][0].shape
    lengths, limits = requests["lengths"], requests["limits"]
    keys = jax.vmap(jax.random.key)(requests["seeds"])
    slot_ids = jnp.arange(slots)

    def choose(step: jax.Array, logits: jax.Array, rows: Rows, out: dict[str, jax.Array]) -> tuple[Rows, dict]:
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step)))(keys)
        token = sample_tokens(logits, requests["temperatures"], requests["top_p"], uniform)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
        logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
        out = {
            "tokens": out["tokens"].at[:, step].set(token),
            "logprobs": out["logprobs"].at[:, step].set(logprob),
            "counts": jnp.where(rows.done, out["counts"], step + 1),
        }
        begun = rows.begun | ~requests["blank"][token]
        stop = jnp.take_along_axis(requests["stops"], token[:, None], axis=1)[:, 0]
        stopped = (stop == 2) | ((stop == 1) & begun)
        return Rows(token, begun, rows.done | stopped | (step + 1 >= limits)), out

    def body(carry):
        step, rows, cache, out = carry
        visible = (slot_ids < lengths[:, None]) | ((slot_ids >= prompt_slots) & (slot_ids <= prompt_slots + step))
        hidden, cache = model.step(rows.token, lengths + step, cache, prompt_slots + step, visible)
        rows, out = choose(step + 1, model.logits(hidden), rows, out)
        return step + 1, rows, cache, out

    new_tokens = slots - prompt_slots
    out = {
        "tokens": jnp.zeros((size, new_tokens), jnp.int32),
        "logprobs": jnp.zeros((size, new_tokens), jnp.float32),
        "counts": jnp.zeros((size,), jnp.int32),
    }
    waiting = Rows(jnp.zeros((size,), jnp.int32), jnp.zeros((size,), bool), limits <= 0)
    rows, out = choose(jnp.int32(0), requests["logits"], waiting, out)
    carry = (jnp.int32(0), rows, cache, out)
    *_, cache, out = jax.lax.while_loop(lambda c: ~jnp.all(c[1].done), body, carry)
    return out, cache
