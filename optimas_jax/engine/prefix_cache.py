"""Prefix cache: stored keys and values of earlier prompts, for prompts with the same prefix.

Requests of one component begin with the same instruction and demonstrations, and further prompts may differ only in a
few words at the end. A prefix that a new prompt shares with an earlier one is not computed again. Tokens are stored in
blocks. The key of a block is its adapter and all the tokens up to its end. The least recently used blocks are evicted
first. The keys and values of a prompt do not depend on the contents of the store (``models.attention``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from optimas_jax.engine.multi_lora import LoadedAdapter
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.layout import BLOCK, KeysValues, StoredKeysValues, gather
from optimas_jax.parallel.mesh import DATA, MODEL
from optimas_jax.parallel.platform import in_turn
from optimas_jax.parallel.sharding import head_axis, on_each_shard, zeros

Ids = tuple[int, ...]


class BlockTable:
    """Prefix of each block of a store. The same prefix under another adapter has other blocks."""

    def __init__(self, blocks: int):
        """``blocks``: number of blocks of the store."""
        self._count = blocks
        # Adapter and all tokens up to a block's end -> block; oldest first.
        self._blocks: OrderedDict[tuple[LoadedAdapter | None, Ids], int] = OrderedDict()
        self._free = list(range(blocks))

    def match(self, ids: Ids, adapter: LoadedAdapter | None = None) -> list[int]:
        """Blocks of the longest stored prefix of a prompt under an adapter; at least one token is not covered."""
        blocks: list[int] = []
        while (end := (len(blocks) + 1) * BLOCK) < len(ids) and (adapter, ids[:end]) in self._blocks:
            blocks.append(self._blocks[adapter, ids[:end]])
        self._touch(ids, len(blocks), adapter)
        return blocks

    def reserve(self, ids: Ids, matched: int, in_use: set[int], adapter: LoadedAdapter | None = None) -> list[int]:
        """Reserves blocks for the tokens of a prompt after the first ``matched`` blocks.

        Args:
          in_use: blocks that must not be evicted; the new blocks are added to it.

        Returns:
          The new blocks, in order; fewer than the prompt has if there is no room, or if another prompt has reserved the
          same block.
        """
        blocks: list[int] = []
        for end in range((matched + 1) * BLOCK, len(ids) + 1, BLOCK):
            if (adapter, ids[:end]) in self._blocks or (block := self._take(in_use)) is None:
                break
            self._blocks[adapter, ids[:end]] = block
            in_use.add(block)
            blocks.append(block)
        self._touch(ids, matched + len(blocks), adapter)
        return blocks

    def clear(self) -> None:
        """Forgets all prefixes."""
        self._blocks.clear()
        self._free = list(range(self._count))

    def _touch(self, ids: Ids, blocks: int, adapter: LoadedAdapter | None) -> None:
        """Marks a prefix as used, its first block last, so that no block outlives the block before it."""
        for count in range(blocks, 0, -1):
            self._blocks.move_to_end((adapter, ids[: count * BLOCK]))

    def _take(self, in_use: set[int]) -> int | None:
        """A free block, or the least recently used one; None if that one is in use."""
        if self._free:
            return self._free.pop()
        oldest, block = next(iter(self._blocks.items()))
        if block in in_use:
            return None
        del self._blocks[oldest]
        return block


class PrefixCache:
    """A fixed store of blocks, per layer [P / BLOCK, BLOCK, K, H] keys and values; on a mesh each shard has its own.

    Attributes:
      tokens: P, number of tokens of the store.
      tables: table of each shard.
      layers: keys and values by layer; on a mesh [S, P / BLOCK, BLOCK, K, H].
    """

    def __init__(self, config: BackboneConfig, dtype: jnp.dtype, tokens: int, mesh: Mesh | None = None):
        """``tokens``: P, a multiple of ``BLOCK``."""
        shape = (tokens // BLOCK, BLOCK, config.num_kv_heads, config.head_dim)
        shape = shape if mesh is None else (mesh.shape[DATA], *shape)
        axes = (DATA, None, None, MODEL)
        self.tokens, self._mesh = tokens, mesh
        self.tables = [BlockTable(tokens // BLOCK) for _ in range(1 if mesh is None else mesh.shape[DATA])]
        self.layers: list[StoredKeysValues] = [
            (zeros(shape, dtype, mesh, axes), zeros(shape, dtype, mesh, axes)) for _ in range(config.num_layers)
        ]

    def write(self, layer: int, computed: KeysValues, starts: np.ndarray, blocks: np.ndarray) -> None:
        """Stores keys and values of one layer.

        Args:
          computed: [T, K, H] each.
          starts: [n] int32 index of the first token of each block in ``computed``.
          blocks: [n] int32 block that it is written to; a number beyond the last block writes nothing.
        """
        self.layers[layer] = in_turn(_write(self._mesh, self.layers[layer], computed, starts, blocks), self._mesh)

    def clear(self) -> None:
        """Forgets all prefixes."""
        for table in self.tables:
            table.clear()


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _write(
    mesh: Mesh | None, layer: StoredKeysValues, computed: KeysValues, starts: jax.Array, blocks: jax.Array
) -> StoredKeysValues:
    def write(layer: StoredKeysValues, computed: KeysValues, starts: jax.Array, blocks: jax.Array) -> StoredKeysValues:
        tokens = starts[:, None] + jnp.arange(BLOCK)
        keys, values = (
            store.at[blocks].set(gather(part, tokens).astype(store.dtype), mode="drop")
            for store, part in zip(layer, computed, strict=True)
        )
        return keys, values

    heads = head_axis(mesh, layer[0].shape[-2])
    stored = P(None, None, heads, None)
    return on_each_shard(write, mesh, (stored, P(None, heads, None), P(), P()), stored)(layer, computed, starts, blocks)


def shares_block(ids: Ids, matched: int, others: Sequence[Ids], blocks: int = 2) -> bool:
    """Whether a prompt shares ``blocks`` blocks beyond the ``matched`` ones with one of the others. Then it should run
    after that one."""
    end = (matched + blocks) * BLOCK
    return end < len(ids) and any(other[:end] == ids[:end] for other in others)
