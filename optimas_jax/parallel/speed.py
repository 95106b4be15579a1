"""Measured rates of the devices of this process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

_MATMULS = ((512, 576, 1536), (1024, 1024, 1024), (2048, 2048, 2048))
_STREAM = 1 << 25  # elements: 128 MB in float32, larger than any cache


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured rates. ``flops``: operations a second. ``bandwidth``: bytes a second from and to memory."""

    flops: float
    bandwidth: float


def measure_rates(dtype: jnp.dtype) -> Rates:
    """The best of a few matrix products, and of a sum, a triad and a matrix-vector product over arrays of 33 million
    elements; takes about 1.5 s on two processor cores."""
    flops = 0.0
    for rows, inner, columns in _MATMULS:
        a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
        flops = max(flops, 2 * rows * inner * columns / _best_seconds(jnp.matmul, a, b))
    x, y = jnp.ones((_STREAM,), dtype), jnp.ones((_STREAM,), dtype)
    matrix, vector = x.reshape(-1, 4096), jnp.ones((4096,), dtype)
    size = dtype.itemsize * _STREAM
    bandwidth = max(
        size / _best_seconds(jnp.sum, x),
        3 * size / _best_seconds(lambda x, y: x + 2 * y, x, y),
        size / _best_seconds(jnp.matmul, matrix, vector),
    )
    return Rates(flops, bandwidth)


def _best_seconds(function: Callable[..., jax.Array], *args: jax.Array, tries: int = 5) -> float:
    compiled = jax.jit(function)
    compiled(*args).block_until_ready()
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        compiled(*args).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
