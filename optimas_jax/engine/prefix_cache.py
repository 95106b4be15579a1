"""Keys and values of what was prefilled, for prompts that begin alike.

Requests of one component begin with the same instruction and demonstrations; candidates for one input are followed by
prompts that differ in a few words at the end. Whatever a new prompt shares with an earlier one is not computed again.
Tokens are kept in blocks, each known by its adapter and all the tokens up to its end, and the least recently used
blocks go first.
What a prompt gets does not depend on what is kept (``models.attention``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.engine.multi_lora import LoadedAdapter
from optimas_jax.models.attention import BLOCK, KeysValues, StoredKeysValues, gather
from optimas_jax.models.config import BackboneConfig

Ids = tuple[int, ...]


class PrefixCache:
    """A fixed store of blocks, per layer [P / BLOCK, BLOCK, K, H] keys and values."""

    def __init__(self, config: BackboneConfig, dtype: jnp.dtype, tokens: int):
        """``tokens``: P, a multiple of ``BLOCK``."""
        shape = (tokens // BLOCK, BLOCK, config.num_kv_heads, config.head_dim)
        self.tokens = tokens
        self.layers: list[StoredKeysValues] = [
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_layers)
        ]
        # Adapter and all tokens up to a block's end -> block; oldest first.
        self._blocks: OrderedDict[tuple[LoadedAdapter | None, Ids], int] = OrderedDict()
        self._free = list(range(tokens // BLOCK))

    def match(self, ids: Ids, adapter: LoadedAdapter | None = None) -> list[int]:
        """Blocks of the longest kept prefix of a prompt under an adapter; at least one token is left over."""
        blocks: list[int] = []
        while (end := (len(blocks) + 1) * BLOCK) < len(ids) and (adapter, ids[:end]) in self._blocks:
            blocks.append(self._blocks[adapter, ids[:end]])
        self._touch(ids, len(blocks), adapter)
        return blocks

    def reserve(self, ids: Ids, matched: int, in_use: set[int], adapter: LoadedAdapter | None = None) -> list[int]:
        """Makes blocks for the tokens of a prompt after the first ``matched`` blocks.

        Args:
          in_use: blocks that must stay; the new ones are added.

        Returns:
          The new blocks, in order; fewer than the prompt has if there is no room, or if another prompt makes the same
          block.
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

    def write(self, layer: int, own: KeysValues, places: np.ndarray, blocks: np.ndarray) -> None:
        """Keeps keys and values of one layer: of ``own`` [T, K, H] each, what stands from ``places`` [n] int32 on goes
        into ``blocks`` [n] int32 (beyond the last one: nowhere)."""
        self.layers[layer] = _write(self.layers[layer], own, places, blocks)

    def clear(self) -> None:
        """Forgets everything."""
        self._blocks.clear()
        self._free = list(range(self.tokens // BLOCK))

    def _touch(self, ids: Ids, blocks: int, adapter: LoadedAdapter | None) -> None:
        """Marks a prefix as used, its first block last: no block outlives the one that it continues."""
        for count in range(blocks, 0, -1):
            self._blocks.move_to_end((adapter, ids[: count * BLOCK]))

    def _take(self, in_use: set[int]) -> int | None:
        """A free block, or the one least recently used; None if that must stay."""
        if self._free:
            return self._free.pop()
        oldest, block = next(iter(self._blocks.items()))
        if block in in_use:
            return None
        del self._blocks[oldest]
        return block


@partial(jax.jit, donate_argnums=0)
def _write(layer: StoredKeysValues, own: KeysValues, places: jax.Array, blocks: jax.Array) -> StoredKeysValues:
    tokens = places[:, None] + jnp.arange(BLOCK)

    def write(store: jax.Array, part: jax.Array) -> jax.Array:
        return store.at[blocks].set(gather(part, tokens).astype(store.dtype), mode="drop")

    return write(layer[0], own[0]), write(layer[1], own[1])


def shares_block(ids: Ids, matched: int, others: Sequence[Ids], blocks: int = 2) -> bool:
    """Whether a prompt shares ``blocks`` more blocks than the ``matched`` ones with one of the others: it had better
    wait until that one is kept."""
    end = (matched + blocks) * BLOCK
    return end < len(ids) and any(other[:end] == ids[:end] for other in others)
