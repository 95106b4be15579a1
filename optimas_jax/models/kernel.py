"""Attention over ``TilePairs`` as Pallas kernels for TPU; arguments and results as in ``models.pairs``.

Each program of the grid computes a pair of tiles. Pairs are sorted by the tile to whose result they add, so that its
sums stay in fast memory from its first pair to its last. Tables of pairs are read before the grid starts (scalar
prefetch): they tell which tiles of the arrays a program reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optimas_jax.models.layout import MASKED, TILE, Pairs, Seen, visible

_QUERY, _KEY = 0, 1  # columns of the tables
_BITS = 15  # bits of a tile's number in a packed pair


def _packed(table: jax.Array) -> jax.Array:
    """Pairs [n, 3] in a number each, [n]: scalar memory is small, and pads every row to 128 numbers."""
    return (table[:, _QUERY] << (_BITS + 1)) | (table[:, _KEY] << 1) | table[:, 2]


def _tile(pair: jax.Array, column: int) -> jax.Array:
    return pair >> (_BITS + 1) if column == _QUERY else (pair >> 1) & ((1 << _BITS) - 1)


def outputs(
    rows: jax.Array, keys: jax.Array, values: jax.Array, seen: Seen, pairs: Pairs
) -> tuple[jax.Array, jax.Array]:
    """See ``models.pairs.outputs``."""
    shape = rows.shape[1:]
    out, log_total = _over_pairs(
        _add_outputs,
        pairs.by_query,
        pairs.counts[0],
        _QUERY,
        seen,
        [(rows, _QUERY), (keys, _KEY), (values, _KEY)],
        [jax.ShapeDtypeStruct(rows.shape, rows.dtype), jax.ShapeDtypeStruct(rows.shape[:3], jnp.float32)],
        [(*shape[:2], 1), (*shape[:2], 1), shape],
    )
    return out, log_total


def query_gradients(
    rows: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    seen: Seen,
    pairs: Pairs,
    d_out: jax.Array,
    log_total: jax.Array,
    inner: jax.Array,
) -> jax.Array:
    """See ``models.pairs.query_gradients``."""
    of_queries = [(x, _QUERY) for x in (rows, d_out, log_total, inner)]
    [d_rows] = _over_pairs(
        _add_query_gradients,
        pairs.by_query,
        pairs.counts[0],
        _QUERY,
        seen,
        [*of_queries, (keys, _KEY), (values, _KEY)],
        [jax.ShapeDtypeStruct(rows.shape, rows.dtype)],
        [rows.shape[1:]],
    )
    return d_rows


def key_gradients(
    rows: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    seen: Seen,
    pairs: Pairs,
    d_out: jax.Array,
    log_total: jax.Array,
    inner: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """See ``models.pairs.key_gradients``."""
    of_queries = [(x, _QUERY) for x in (rows, d_out, log_total, inner)]
    d_keys, d_values = _over_pairs(
        _add_key_gradients,
        pairs.by_key,
        pairs.counts[1],
        _KEY,
        seen,
        [*of_queries, (keys, _KEY), (values, _KEY)],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys, values)],
        [keys.shape[1:], values.shape[1:]],
    )
    return d_keys, d_values


def _over_pairs(
    add: Callable[..., None],
    table: jax.Array,
    count: jax.Array,
    column: int,
    seen: Seen,
    inputs: Sequence[tuple[jax.Array, int]],
    results: Sequence[jax.ShapeDtypeStruct],
    sums: Sequence[tuple[int, ...]],
) -> list[jax.Array]:
    """Runs ``add`` for the first ``count`` pairs of a table, which is sorted by its ``column``.

    Args:
      add: kernel of a pair. Arguments: whether it is the first and the last pair of its tile, whether it is a real
        pair, a function that returns its mask, inputs, results, sums.
      inputs: arrays of tiles, with the column of the table that says which tile a pair reads.
      results: arrays of tiles, written with the last pair of each tile of ``column``.
      sums: shapes of float32 arrays in fast memory.
    """
    arrays = [(seen.queries, _QUERY), (seen.keys, _KEY), *inputs]

    def tile_spec(shape: Sequence[int], of: int) -> pl.BlockSpec:
        behind = (0,) * (len(shape) - 1)
        return pl.BlockSpec((1, *shape[1:]), lambda pair, table, window: (_tile(table[pair], of), *behind))

    def kernel(table: Any, window: Any, *refs: Any) -> None:
        """Calls ``add`` for the pair of this program of the grid."""
        pair = pl.program_id(0)
        tile, last = _tile(table[pair], column), pl.num_programs(0) - 1
        is_first = (pair == 0) | (_tile(table[jnp.maximum(pair - 1, 0)], column) != tile)
        is_last = (pair == last) | (_tile(table[jnp.minimum(pair + 1, last)], column) != tile)
        of_arrays, of_results = refs[: len(arrays)], refs[len(arrays) : len(arrays) + len(results)]
        in_sums = refs[len(arrays) + len(results) :]
        add(
            is_first,
            is_last,
            table[pair] & 1 == 1,
            lambda: visible(of_arrays[0][0], of_arrays[1][0], window[0]),
            [ref.at[0] for ref in of_arrays[2:]],
            [ref.at[0] for ref in of_results],
            in_sums,
        )

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(count,),
            in_specs=[tile_spec(array.shape, of) for array, of in arrays],
            out_specs=[tile_spec(result.shape, column) for result in results],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in sums],
        ),
        out_shape=list(results),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
    )(_packed(table), seen.window, *[array for array, _ in arrays])


def _add_outputs(is_first, is_last, is_real, sees, inputs, results, sums) -> None:
    (rows, keys, values), (out, log_total), (highest, total, mixed) = inputs, results, sums

    @pl.when(is_first)
    def start() -> None:
        highest[...] = jnp.full(highest.shape, MASKED)
        total[...] = jnp.zeros(total.shape)
        mixed[...] = jnp.zeros(mixed.shape)

    @pl.when(is_real)
    def add() -> None:
        bias = _bias(sees, rows)
        for head in range(rows.shape[0]):
            scores = _scores(rows[head], keys[head], bias)
            before = highest[head]
            higher = jnp.maximum(before, scores.max(axis=-1, keepdims=True))
            weights, decay = jnp.exp(scores - higher), jnp.exp(before - higher)
            highest[head] = higher
            total[head] = total[head] * decay + weights.sum(axis=-1, keepdims=True)
            mixed[head] = mixed[head] * decay + _product(weights.astype(values.dtype), values[head], 1, 0)

    @pl.when(is_last)
    def finish() -> None:
        sum_of_weights = jnp.maximum(total[...], 1e-30)
        out[...] = (mixed[...] / sum_of_weights).astype(out.dtype)
        log_total[...] = (highest[...] + jnp.log(sum_of_weights))[..., 0]


def _add_query_gradients(is_first, is_last, is_real, sees, inputs, results, sums) -> None:
    (rows, d_out, log_total, inner, keys, values), [d_rows], [added] = inputs, results, sums

    @pl.when(is_first)
    def start() -> None:
        added[...] = jnp.zeros(added.shape)

    @pl.when(is_real)
    def add() -> None:
        bias = _bias(sees, rows)
        for head in range(rows.shape[0]):
            of_head = [x[head] for x in (rows, d_out, log_total, inner, keys, values)]
            _, d_scores = _score_gradients(of_head, bias)
            added[head] += _product(d_scores.astype(keys.dtype), keys[head], 1, 0)

    @pl.when(is_last)
    def finish() -> None:
        d_rows[...] = added[...].astype(d_rows.dtype)


def _add_key_gradients(is_first, is_last, is_real, sees, inputs, results, sums) -> None:
    rows, d_out, log_total, inner, keys, values = inputs

    @pl.when(is_first)
    def start() -> None:
        for added in sums:
            added[...] = jnp.zeros(added.shape)

    @pl.when(is_real)
    def add() -> None:
        bias = _bias(sees, rows)
        for head in range(rows.shape[0]):
            of_head = [x[head] for x in (rows, d_out, log_total, inner, keys, values)]
            weights, d_scores = _score_gradients(of_head, bias)
            sums[0][head] += _product(d_scores.astype(rows.dtype), rows[head], 0, 0)
            sums[1][head] += _product(weights.astype(d_out.dtype), d_out[head], 0, 0)

    @pl.when(is_last)
    def finish() -> None:
        for result, added in zip(results, sums, strict=True):
            result[...] = added[...].astype(result.dtype)


def _bias(sees: Callable[[], jax.Array], rows: Any) -> jax.Array:
    """[R, TILE]: 0 for keys that a query sees, MASKED for others; the same for all heads."""
    bias = jnp.where(sees(), 0.0, MASKED)
    return jnp.concatenate([bias] * (rows.shape[1] // TILE))


def _scores(rows: jax.Array, keys: jax.Array, bias: jax.Array) -> jax.Array:
    return _product(rows, keys, 1, 1) + bias


def _score_gradients(of_head: Sequence[jax.Array], bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights, and gradients of the scores, of one head: [R, TILE] float32 each."""
    rows, d_out, log_total, inner, keys, values = of_head
    weights = jnp.exp(_scores(rows, keys, bias) - log_total[:, None])
    return weights, weights * (_product(d_out, values, 1, 1) - inner[:, None])


def _product(a: jax.Array, b: jax.Array, of_a: int, of_b: int) -> jax.Array:
    """Product over dimension ``of_a`` of a and ``of_b`` of b, in float32."""
    return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)
