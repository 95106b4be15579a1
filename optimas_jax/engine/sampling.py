"""Sampling from the backbone, on the device: cached decoding in one jitted loop over rows that come and go.

Pure functions of arrays; ``engine.batching`` assigns requests to rows. The tokens of a row are in its cache at their
positions, and every row has its own random stream, ``fold_in(key(seed), count)``, so the answer of a row does not
depend on the other rows of its batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optimas_jax.models.backbone import Cache, Network, merge_model
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.cpu import arg_max, split_into_blocks
from optimas_jax.models.layout import KeysValues, StoredKeysValues, gather
from optimas_jax.models.lora import Params
from optimas_jax.parallel.mesh import DATA, MODEL
from optimas_jax.parallel.sharding import head_axis, keep_shards, on_each_shard, zeros


def sample_tokens(
    logits: jax.Array, temperature: jax.Array, top_p: jax.Array, uniform: jax.Array, cpu_forms: bool = False
) -> jax.Array:
    """Samples one token per row, by inverting the cumulative distribution of the nucleus at a uniform number.

    Args:
      logits: [B, V] float32.
      temperature: [B] float32; rows at 0 take the arg max.
      top_p: [B] float32 in (0, 1].
      uniform: [B] float32 in [0, 1).
      cpu_forms: see ``parallel.platform.Compute``.

    Returns:
      [B] int32.
    """
    greedy = arg_max(logits) if cpu_forms else jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        scaled = logits / jnp.maximum(temperature, 1e-6)[:, None]
        weights = jnp.exp(scaled - scaled.max(axis=-1, keepdims=True))
        weights = jax.lax.cond(
            jnp.any((top_p < 1.0) & (temperature > 0.0)), lambda w: _nucleus(w, top_p), lambda w: w, weights
        )
        return jnp.where(temperature > 0.0, _invert_cumulative(weights, uniform), greedy)

    return jax.lax.cond(jnp.any(temperature > 0.0), draw, lambda: greedy)


def _nucleus(weights: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zeroes all entries of a row except the heaviest ones that together reach ``top_p`` of its weight.

    Instead of a sort, bisection on the logarithm of the threshold: 40 halvings of [-100, 0] separate any two float32
    weights that matter. Equal weights are kept or zeroed together.
    """
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
    blocks = split_into_blocks(weights, 0.0)
    block_sums = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
    target = uniform * block_sums[:, -1]
    last_block = _last_positive(blocks.sum(axis=-1))
    block = jnp.minimum(jnp.sum(block_sums <= target[:, None], axis=-1), last_block)
    before = jnp.where(block > 0, jnp.take_along_axis(block_sums, jnp.maximum(block - 1, 0)[:, None], 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    within = jnp.sum(jnp.cumsum(inside, axis=-1) <= (target - before)[:, None], axis=-1)
    return (block * blocks.shape[-1] + jnp.minimum(within, _last_positive(inside))).astype(jnp.int32)


def _last_positive(weights: jax.Array) -> jax.Array:
    """[B, n] -> [B]: index of the last entry above zero, so that rounding never picks an impossible token."""
    return weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)


def empty_cache(network: Network, rows: int, slots: int) -> Cache:
    """A cache of zeros; on a mesh ``rows`` is the number of rows of each shard, and arrays have the axis of shards."""
    config, mesh = network.config, network.mesh
    heads, size = config.num_kv_heads, config.head_dim
    shards = () if mesh is None else (mesh.shape[DATA],)
    make = partial(zeros, dtype=network.compute.dtype, mesh=mesh, axes=(DATA, None, MODEL))
    return tuple(
        (make((*shards, rows, heads, size, slots)), make((*shards, rows, heads, slots, size)))
        for _ in range(config.num_layers)
    )


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def insert(
    mesh: Mesh | None,
    layer: KeysValues,
    stored: StoredKeysValues,
    computed: KeysValues,
    indices: jax.Array,
    rows: jax.Array,
    count: jax.Array,
) -> KeysValues:
    """Writes prefilled sequences into rows of one layer of a cache, from slot 0 on.

    Args:
      mesh: None for one device; with one all arrays have the axis of shards.
      layer: [B, K, H, S] and [B, K, S, H]; donated.
      stored, computed: keys and values of earlier passes and of this pass, see ``models.layout.gather``.
      indices: [B, S] int32 index of each slot's key in ``[stored | computed]``; beyond the end for empty slots.
      rows: [B] int32 target rows.
      count: int32 number of sequences; ``indices`` and ``rows`` after that many are ignored.
    """

    def insert_all(layer, stored, computed, indices, rows, count):
        """As ``insert``, in one shard."""

        def write(index: jax.Array, layer: KeysValues) -> KeysValues:
            # [S, K, H] each
            keys, values = (gather(new, indices[index], old) for new, old in zip(computed, stored, strict=True))
            at = (rows[index], 0, 0, 0)
            return (
                jax.lax.dynamic_update_slice(layer[0], keys.transpose(1, 2, 0)[None].astype(layer[0].dtype), at),
                jax.lax.dynamic_update_slice(layer[1], values.swapaxes(0, 1)[None].astype(layer[1].dtype), at),
            )

        return jax.lax.fori_loop(0, count, write, layer)

    heads = head_axis(mesh, layer[0].shape[-3])
    cached, new = P(None, heads, None, None), P(None, heads, None)
    specs = (cached, P(None, None, heads, None), new, P(), P(), P())
    return on_each_shard(insert_all, mesh, specs, cached)(layer, stored, computed, indices, rows, count)


@partial(jax.jit, static_argnums=(0, 3))
def rearrange(mesh: Mesh | None, layer: KeysValues, rows: jax.Array, slots: int) -> KeysValues:
    """One layer of a cache with other rows and another number of slots.

    Args:
      mesh: as in ``insert``.
      layer: [B, K, H, S] and [B, K, S, H].
      rows: [B'] int32 source of each new row; beyond the end for an empty one.
      slots: S'; slots that are cut off must be empty.
    """

    def of_shard(layer: KeysValues, rows: jax.Array) -> KeysValues:
        keys, values = (part.at[rows].get(mode="fill", fill_value=0) for part in layer)
        padding = max(slots - keys.shape[3], 0)
        keys = jnp.pad(keys[..., :slots], ((0, 0), (0, 0), (0, 0), (0, padding)))
        return keys, jnp.pad(values[:, :, :slots], ((0, 0), (0, 0), (0, padding), (0, 0)))

    cached = P(None, head_axis(mesh, layer[0].shape[-3]), None, None)
    return on_each_shard(of_shard, mesh, (cached, P()), cached)(layer, rows)


class Rows(NamedTuple):
    """The rows of a decode batch: the settings of each request, and its answer so far.

    Attributes:
      limits: [B] int32 tokens to sample; 0 for an empty row.
      seeds: [B] uint32.
      temperatures, top_p: [B] float32.
      stops: [B, V] int8: tokens that end the row, 2 always, 1 once anything other than white space was sampled.
      token: [B] int32 last token, whose key and value are not in the cache yet.
      position: [B] int32 its position.
      count: [B] int32 tokens sampled.
      begun: [B] bool, whether anything other than white space was sampled.
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
    allowed: jax.Array | None = None,
) -> tuple[Rows, Cache]:
    """Samples tokens until at least ``free`` rows are done (or empty), or ``steps`` times, in one loop on the device.

    Args:
      lora, lora_params: configuration and tree of the stacked adapters; None and an empty tree for the base alone.
      gate: [B, R] scale of each adapter column in each row (``engine.multi_lora``), or None.
      cache: keys and values of the tokens before ``rows.position`` of each row; donated. On a mesh it has the axis of
        shards, and ``rows`` has the rows of the first shard, then of the second, and so on.
      rows: see ``Rows``; rows that are done are not changed.
      blank: [V] bool, tokens of white space.
      free: int32 scalar; at least one token is sampled for every row that is not done.
      steps: int32 scalar; most tokens to sample for a row.
      allowed: [B, ceil(V / 32)] int32, a bit for each token, set if it may be sampled, for at least one token of each
        row; for one step. None for all tokens. Log-probs are always the model's, over all tokens.

    Returns:
      The rows, and the cache.
    """
    model = merge_model(network, params, lora, lora_params)
    in_shards = cache
    if network.mesh is not None:
        cache = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), cache)
    keys = jax.vmap(jax.random.key)(rows.seeds)

    def sample_step(carry: tuple[jax.Array, Rows, Cache]) -> tuple[jax.Array, Rows, Cache]:
        step, rows, cache = carry
        hidden, cache = model.step(rows.token, rows.position, cache, gate)
        logits = model.logits(hidden, model.decode_product)
        uniform = jax.vmap(lambda key, count: jax.random.uniform(jax.random.fold_in(key, count)))(keys, rows.count)
        choices = logits if allowed is None else jnp.where(_unpack(allowed, logits.shape[-1]), logits, -jnp.inf)
        token = sample_tokens(choices, rows.temperatures, rows.top_p, uniform, network.compute.cpu_forms)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
        logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
        return step + 1, _append(rows, token, logprob, blank), cache

    def is_unfinished(carry: tuple[jax.Array, Rows, Cache]) -> jax.Array:
        step, rows, _ = carry
        return (step == 0) | ((jnp.sum(rows.done) < free) & (step < steps))

    _, rows, cache = jax.lax.while_loop(is_unfinished, sample_step, (jnp.int32(0), rows, cache))
    if network.mesh is None:
        return rows, cache
    rows = jax.tree.map(lambda part: keep_shards(part, network.mesh), rows)
    return rows, jax.tree.map(
        lambda part, old: keep_shards(part.reshape(old.shape), network.mesh, None, MODEL), cache, in_shards
    )


def _unpack(bits: jax.Array, count: int) -> jax.Array:
    """[B, n] int32 -> [B, count] bool: bits, the lowest of each number first."""
    spread = (bits[:, :, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
    return spread.reshape(len(bits), -1)[:, :count] == 1


def _append(rows: Rows, token: jax.Array, logprob: jax.Array, blank: jax.Array) -> Rows:
    """Rows with one more sampled token [B] and its log-prob [B] each, except those that were done."""
    begun = rows.begun | ~blank[token]
    stop = jnp.take_along_axis(rows.stops, token[:, None], axis=1)[:, 0]
    stopped = (stop == 2) | ((stop == 1) & begun)
    live = ~rows.done
    # Rows that are done write beyond the end, where the value is dropped.
    slot = (jnp.arange(len(token)), jnp.where(live, rows.count, rows.tokens.shape[1]))
    return rows._replace(
        token=jnp.where(live, token, rows.token),
        position=jnp.where(live, rows.position + 1, rows.position),
        count=rows.count + live,
        begun=jnp.where(live, begun, rows.begun),
        done=rows.done | stopped | (rows.count + 1 >= rows.limits),
        tokens=rows.tokens.at[slot].set(token, mode="drop"),
        logprobs=rows.logprobs.at[slot].set(logprob, mode="drop"),
    )
