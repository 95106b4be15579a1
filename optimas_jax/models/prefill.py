"""Prefill: prompts through the network, what they share only once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from optimas_jax.models.attention import BLOCK, KeysValues, StoredKeysValues
from optimas_jax.models.backbone import Network, keys_values
from optimas_jax.models.flat import FlatSequence, flatten, place_flat, stored_places
from optimas_jax.models.lora import Params
from optimas_jax.models.prefix_cache import Ids, PrefixCache, shares_block

_PASS_PROMPTS = 32

# Given a layer, what was stored before the pass, and the pass's own keys and values.
Writer = Callable[[int, StoredKeysValues, KeysValues], None]


@dataclasses.dataclass(frozen=True)
class Prefiller:
    """Runs prompts; see ``models.sampler.Sampler`` for the attributes.

    Attributes:
      tokens: of one pass, at most (a longer prompt has a pass of its own).
      prefixes: what earlier prompts left.
    """

    network: Network
    params: Params
    pad_id: int
    mesh: Mesh | None
    tokens: int
    prefixes: PrefixCache

    def run(self, prompts: Sequence[Ids], begin: Callable[[list[int], list[np.ndarray]], Writer]) -> None:
        """Runs prompts in as few passes as hold them.

        Args:
          begin: is called for each pass with the indices of its prompts, and where the keys of each will stand in
            ``[stored | own]`` (``models.attention.gather``); what it returns is called for each layer.
        """
        waiting = list(range(len(prompts)))
        while waiting:
            members, kept = self._next_pass(prompts, waiting)
            waiting = [index for index in waiting if index not in members]
            try:
                self._pass([prompts[index] for index in members], kept, functools.partial(begin, members))
            except BaseException:
                self.prefixes.clear()  # blocks were reserved that nothing was written to
                raise

    def _next_pass(self, prompts: Sequence[Ids], waiting: Sequence[int]) -> tuple[list[int], list[list[int]]]:
        """Which of the waiting prompts to run next, and the blocks that are kept of each. Longest first; those that
        begin alike stand side by side, because attention then reads their common blocks once."""
        kept = {index: self.prefixes.match(prompts[index]) for index in waiting}
        own = {index: len(prompts[index]) - len(kept[index]) * BLOCK for index in waiting}
        members: list[int] = []
        tokens = 0
        for index in sorted(waiting, key=lambda index: -own[index]):
            if shares_block(prompts[index], len(kept[index]), [prompts[member] for member in members]):
                continue
            if not members or (tokens + own[index] <= self.tokens and len(members) < _PASS_PROMPTS):
                members.append(index)
                tokens += own[index]
        members.sort(key=lambda index: kept[index])
        return members, [kept[index] for index in members]

    def _pass(
        self, prompts: Sequence[Ids], kept: Sequence[list[int]], begin: Callable[[list[np.ndarray]], Writer]
    ) -> None:
        config = self.network.config
        sequences = [FlatSequence(ids[len(at) * BLOCK :], at) for ids, at in zip(prompts, kept, strict=True)]
        flat = flatten(
            sequences,
            pad_id=self.pad_id,
            tiled=self.network.compute.tiled,
            stored=self.prefixes.tokens,
            slots=config.max_positions,
        )
        begins = np.cumsum([0, *(len(one.ids) for one in sequences)])
        write = begin(
            [
                np.concatenate([stored_places(one.blocks), self.prefixes.tokens + start + np.arange(len(one.ids))])
                for start, one in zip(begins, sequences, strict=False)
            ]
        )
        in_use = {block for blocks in kept for block in blocks}
        reserved = [self.prefixes.reserve(ids, len(at), in_use) for ids, at in zip(prompts, kept, strict=True)]
        blocks = np.asarray([block for some in reserved for block in some], np.int32)
        places = np.concatenate(
            [start + BLOCK * np.arange(len(some)) for start, some in zip(begins, reserved, strict=False)]
        ).astype(np.int32)

        def keep(layer: int, own: KeysValues) -> None:
            write(layer, self.prefixes.layers[layer], own)
            if len(blocks):
                more = own[0].shape[0] // BLOCK - len(blocks)
                beyond = self.prefixes.tokens // BLOCK
                self.prefixes.write(
                    layer, own, np.pad(places, (0, more)), np.pad(blocks, (0, more), constant_values=beyond)
                )

        flat = place_flat(flat, self.mesh)
        keys_values(self.network, self.params, flat.input_ids, flat.positions, flat.layout, self.prefixes.layers, keep)
