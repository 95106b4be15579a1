"""Every choice that depends on the accelerator, in one place."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh

T = TypeVar("T")

_ROWS_ON_CPU_MESH = 8  # rows of a decode batch on each shard: more are slower for few requests, fewer for many


@dataclasses.dataclass(frozen=True)
class Compute:
    """How arrays are computed on one kind of device.

    Attributes:
      dtype: dtype of frozen weights and activations. Reductions, softmax, log-probs, LoRA, heads and optimiser state
        are float32 whatever it says.
      attention: ``tiled`` (loops over tiles of queries and keys, best on CPU), ``chunked`` (many pairs of tiles at
        once, by XLA) or ``kernel`` (the same pairs by Pallas, for TPU); see ``models.layout``. None stores scores.
      one_size: whether batches of training are filled up to one size, so that few programs are compiled; else they have
        sizes of their own, and compute no padding.
      remat: whether the backward pass computes a layer again from its input alone; else its products and attention's
        output are kept, and the rest is computed again.
      merge_adapters: whether scoring merges adapters into a copy of the weights: thin products are slow on CPU, and a
        second copy of a large model does not fit elsewhere.
      vocab_chunk: tokens whose distributions over the vocabulary exist at a time; sampled tokens are a multiple of it.
      lanes: independent batches that are computed side by side, see ``parallel.lanes``.
      cpu_forms: whether products, sums and the arg max take the forms of ``models.cpu``, which XLA's CPU code computes
        faster, or with equal bits for any number of rows. Elsewhere the plain operations are traced.
      decode_rows: numbers of rows that a decode batch can have, ascending. On CPU: numbers with which a row gets the
        same bits from XLA, which orders products differently with 25 to 32 and with more than 48 rows.
      prefill_tokens: prompts of about this many tokens together make up one pass.
      cache_tokens: rows x slots of a decode batch with more than the fewest rows, at most, on each device along
        ``data``; 0 for as many as its memory holds (``engine.memory``).
      prefix_tokens: keys and values of this many tokens are kept for prompts that begin alike, fewer where
        ``cache_tokens`` is 0 and memory is short.
    """

    dtype: jnp.dtype
    attention: Literal["tiled", "chunked", "kernel"]
    one_size: bool = False
    remat: bool = False
    merge_adapters: bool = False
    vocab_chunk: int = 64
    lanes: int = 1
    cpu_forms: bool = False
    decode_rows: tuple[int, ...] = (4, 8, 16, 32, 64)
    prefill_tokens: int = 512
    cache_tokens: int = 10 * 1024  # SmolLM2-135M in float32 takes 0.47 GB of it in each lane
    prefix_tokens: int = 8192

    @property
    def tiled(self) -> bool:
        """Whether batches are laid out in tiles."""
        return self.attention == "tiled"


def default_compute(platform: str | None = None) -> Compute:
    """Settings for ``platform`` ("cpu", "gpu" or "tpu"; default: the backend that JAX runs on)."""
    platform = platform or jax.default_backend()
    if platform == "cpu":
        return Compute(
            dtype=jnp.dtype(jnp.float32),
            attention="tiled",
            merge_adapters=True,
            lanes=2,
            cpu_forms=True,
            decode_rows=(4, 8, 16, 24, 40),
        )
    return Compute(
        dtype=jnp.dtype(jnp.bfloat16),
        one_size=True,
        vocab_chunk=512,
        attention="kernel" if platform == "tpu" else "chunked",
        decode_rows=(8, 16, 32, 64, 128, 256),
        prefill_tokens=4096,
        cache_tokens=0,
        prefix_tokens=65536,
    )


def for_several_devices(compute: Compute) -> Compute:
    """Settings for a mesh of several devices. On CPU its decode batches have one size: XLA orders a sum by the size of
    its batch, and ``cpu_forms`` prevent that on one device only. So an answer on a mesh along ``data`` does not depend
    on how many requests share its batch, to the bit, if all have the same adapter or none has one."""
    if not compute.cpu_forms:
        return compute
    return dataclasses.replace(compute, cpu_forms=False, decode_rows=(_ROWS_ON_CPU_MESH,))


def free_memory(device: Any) -> int | None:
    """Bytes that can still be allocated on a ``jax.Device`` (on CPU: in main memory); None if unknown."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None


def in_turn(tree: T, mesh: Mesh | None) -> T:
    """On a mesh of CPU devices waits until the arrays are computed; elsewhere, and inside a jitted function, does
    nothing.

    XLA's CPU devices share few threads. Programs that wait for each other's devices may take all threads, and then the
    process aborts. So one program runs at a time.
    """
    if mesh is None or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.block_until_ready(tree) if mesh.devices.flat[0].platform == "cpu" else tree


def forget_programs() -> None:
    """On CPU drops compiled programs and returns their memory: each decode program holds 50 MB. Does nothing elsewhere.
    A program that is needed again is read from JAX's compilation cache."""
    if forgets_programs():
        jax.clear_caches()
        return_free_memory()


def forgets_programs() -> bool:
    """Whether ``forget_programs`` does anything here."""
    return jax.default_backend() == "cpu"


def return_free_memory() -> None:
    """Returns freed memory to the system, on CPU under glibc; does nothing elsewhere. Takes milliseconds.

    Compilers free a lot: half of the 100 MB by which a decode program makes the process grow.
    """
    if jax.default_backend() != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
