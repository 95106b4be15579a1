"""Sampling from the backbone, on the device: cached decoding in one jitted loop over rows that come and go.

Arrays in, arrays out; ``engine.batching`` puts requests into rows. A row's tokens stand in its cache at their
positions, and every row has its own random stream, ``fold_in(key(seed), count)``: what a row gets does not depend on
its batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optimas_jax.models.attention import KeysValues, StoredKeysValues, gather
from optimas_jax.models.backbone import Cache, Network, merge_model
from optimas_jax.models.config import BackboneConfig, LoraConfig
from optimas_jax.models.lora import Params

_BLOCK = 128  # tokens of the vocabulary that are searched together


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
    greedy = _arg_max(logits)

    def draw() -> jax.Array:
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        weights = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
        weights = jax.lax.cond(
            jnp.any((top_p < 1.0) & (temperature > 0.0)), lambda w: _nucleus(w, top_p), lambda w: w, weights
        )
        return jnp.where(temperature > 0.0, _invert_cumulative(weights, uniform), greedy)

    return jax.lax.cond(jnp.any(temperature > 0.0), draw, lambda: greedy)


def _arg_max(logits: jax.Array) -> jax.Array:
    """``argmax`` over the last axis, [B, V] -> [B] int32, in two levels: XLA's CPU code finds the largest of each block
    in an eighth of the time that it takes to find where the largest of all is."""
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(blocks.max(axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * _BLOCK + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def _blocks(x: jax.Array, fill: float) -> jax.Array:
    """[B, V] -> [B, ceil(V / _BLOCK), _BLOCK]."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK)), constant_values=fill)
    return padded.reshape(len(x), -1, _BLOCK)


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
    blocks = _blocks(weights, 0.0)
    block_sums = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = uniform * block_sums[:, -1]
    last_block = _last_positive(blocks.sum(axis=-1))
    block = jnp.minimum(jnp.sum(block_sums <= target[:, None], axis=-1), last_block)
    before = jnp.where(block > 0, jnp.take_along_axis(block_sums, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    within = jnp.sum(jnp.cumsum(inside, axis=-1) <= (target - before)[:, None], axis=-1)
    return (block * _BLOCK + jnp.minimum(within, _last_positive(inside))).astype(jnp.int32)


def _last_positive(weights: jax.Array) -> jax.Array:
    """[B, n] -> [B]: index of the last entry above zero, so that rounding never picks an impossible token."""
    return weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)


def empty_cache(config: BackboneConfig, dtype: Any, rows: int, slots: int) -> Cache:
    """A cache of zeros."""
    heads, size = config.num_kv_heads, config.head_dim
    return tuple(
        (jnp.zeros((rows, heads, size, slots), dtype), jnp.zeros((rows, heads, slots, size), dtype))
        for _ in range(config.num_layers)
    )


@partial(jax.jit, donate_argnums=0)
def insert(
    layer: KeysValues, stored: StoredKeysValues, own: KeysValues, places: jax.Array, rows: jax.Array, count: jax.Array
) -> KeysValues:
    """Writes prefilled sequences into rows of one layer of a cache, from slot 0 on.

    Args:
      layer: [B, K, H, S] and [B, K, S, H]; donated.
      stored, own: where keys and values of the sequences are, see ``models.attention.gather``.
      places: [B, S] int32 where those of each sequence stand; beyond the end for empty slots.
      rows: [B] int32 target rows.
      count: int32 number of sequences; further ``places`` and ``rows`` do not count.
    """

    def write(index: jax.Array, layer: KeysValues) -> KeysValues:
        keys, values = (gather(new, places[index], old) for new, old in zip(own, stored, strict=True))  # [S, K, H]
        at = (rows[index], 0, 0, 0)
        return (
            jax.lax.dynamic_update_slice(layer[0], keys.transpose(1, 2, 0)[None].astype(layer[0].dtype), at),
            jax.lax.dynamic_update_slice(layer[1], values.swapaxes(0, 1)[None].astype(layer[1].dtype), at),
        )

    return jax.lax.fori_loop(0, count, write, layer)


@partial(jax.jit, static_argnums=2)
def rearrange(layer: KeysValues, rows: jax.Array, slots: int) -> KeysValues:
    """One layer of a cache with other rows and another number of slots.

    Args:
      layer: [B, K, H, S] and [B, K, S, H].
      rows: [B'] int32 source of each new row; beyond the end for an empty one.
      slots: S'; slots that are cut off must be empty.
    """
    keys, values = (part.at[rows].get(mode="fill", fill_value=0) for part in layer)
    more = max(slots - keys.shape[3], 0)
    keys = jnp.pad(keys[..., :slots], ((0, 0), (0, 0), (0, 0), (0, more)))
    return keys, jnp.pad(values[:, :, :slots], ((0, 0), (0, 0), (0, more), (0, 0)))


class Rows(NamedTuple):
    """The rows of a decode batch; what a request asks for, and how far its answer is.

    Attributes:
      limits: [B] int32 tokens to sample; 0 for an empty row.
      seeds: [B] uint32.
      temperatures, top_p: [B] float32.
      stops: [B, V] int8: tokens that end the row, 2 always, 1 once something but white space was sampled.
      token: [B] int32 last token, whose key and value are not in the cache yet.
      position: [B] int32 its position.
      count: [B] int32 tokens sampled.
      begun: [B] bool, whether something but white space was sampled.
      done: [B] bool; True for an empty row.
      tokens: [B, S] int32 and logprobs: [B, S] float32, sampled so far.
    """

    limits: Any
    seeds: Any
    temperatures: Any
    top_p: Any
    stops: Any
    token: Any
    position: Any
    count: Any
    begun: Any
    done: Any
    tokens: Any
    logprobs: Any


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def decode(
    network: Network,
    lora: LoraConfig | None,
    params: Params,
    lora_params: Params,
    gate: jax.Array | None,
    cache: Cache,
    rows: Rows,
    blank: jax.Array,
    free: jax.Array,
    steps: jax.Array,
) -> tuple[Rows, Cache]:
    """Samples until at least ``free`` rows are done (or empty), or ``steps`` times, in one loop on the device.

    Args:
      lora, lora_params, gate: adapters, and [B, R] which of their columns each row has (``engine.multi_lora``); or
        None, nothing and None.
      cache: with the tokens before ``rows.position`` of each row; donated.
      rows: see ``Rows``; rows that are done keep what they have.
      blank: [V] bool, tokens of white space.
      free: int32 scalar; at least one token is sampled for every row that is not done.
      steps: int32 scalar; most tokens to sample for a row.

    Returns:
      The rows, and the cache.
    """
    model = merge_model(network, params, lora, lora_params)
    keys = jax.vmap(jax.random.key)(rows.seeds)
    size = rows.token.shape[0]

    def body(carry: tuple[jax.Array, Rows, Cache]) -> tuple[jax.Array, Rows, Cache]:
        steps, rows, cache = carry
        hidden, cache = model.step(rows.token, rows.position, cache, gate)
        logits = model.logits(hidden, model.few)
        uniform = jax.vmap(lambda key, count: jax.random.uniform(jax.random.fold_in(key, count)))(keys, rows.count)
        token = sample_tokens(logits, rows.temperatures, rows.top_p, uniform)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
        logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
        begun = rows.begun | ~blank[token]
        stop = jnp.take_along_axis(rows.stops, token[:, None], axis=1)[:, 0]
        stopped = (stop == 2) | ((stop == 1) & begun)
        live = ~rows.done
        place = (jnp.arange(size), jnp.where(live, rows.count, rows.tokens.shape[1]))  # beyond the end: dropped
        rows = rows._replace(
            token=jnp.where(live, token, rows.token),
            position=jnp.where(live, rows.position + 1, rows.position),
            count=rows.count + live,
            begun=jnp.where(live, begun, rows.begun),
            done=rows.done | stopped | (rows.count + 1 >= rows.limits),
            tokens=rows.tokens.at[place].set(token, mode="drop"),
            logprobs=rows.logprobs.at[place].set(logprob, mode="drop"),
        )
        return steps + 1, rows, cache

    carry = (jnp.int32(0), rows, cache)

    def goes_on(carry: tuple[jax.Array, Rows, Cache]) -> jax.Array:
        done, rows, _ = carry
        return (done == 0) | ((jnp.sum(rows.done) < free) & (done < steps))

    _, rows, cache = jax.lax.while_loop(goes_on, body, carry)
    return rows, cache
