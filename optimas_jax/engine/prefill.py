"""Prefill: prompts through the network, what they share only once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from optimas_jax.engine.multi_lora import AdapterStore, LoadedAdapter, Stack
from optimas_jax.engine.prefix_cache import Ids, PrefixCache, shares_block
from optimas_jax.models.attention import BLOCK, KeysValues, StoredKeysValues
from optimas_jax.models.backbone import Network
from optimas_jax.models.flat import Flat, FlatSequence, flatten, place_flat, stored_places
from optimas_jax.models.forward import keys_values
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes

_PASS_PROMPTS = 32

_WORTH_DEALING = 384  # tokens: fewer are one pass, which is as fast, and padded once


class _Pass(NamedTuple):
    """Prompts that run together.

    Attributes:
      members: their indices.
      sequences: what of each is not stored yet.
      flat: these, laid out.
      begins: [n] where each begins in it.
      adapters: those of its tokens, and the gate of each token; None if it is the base alone.
    """

    members: list[int]
    sequences: list[FlatSequence]
    flat: Flat
    begins: np.ndarray
    adapters: tuple[Stack, np.ndarray] | None


class Prompt(NamedTuple):
    """A prompt, and the adapter that reads it."""

    ids: Ids
    adapter: LoadedAdapter | None = None


# Given a layer, what was stored before the pass, and the pass's own keys and values.
Writer = Callable[[int, StoredKeysValues, KeysValues], None]
Begin = Callable[[list[int], list[np.ndarray]], Writer]


@dataclasses.dataclass(frozen=True)
class Prefiller:
    """Runs prompts; see ``engine.sampler.Sampler`` for the attributes.

    Attributes:
      lanes: passes that are computed side by side.
      tokens: of one pass, at most (a longer prompt has a pass of its own).
      prefixes: what earlier prompts left.
      adapters: puts adapters side by side.
    """

    network: Network
    params: Params
    pad_id: int
    mesh: Mesh | None
    lanes: Lanes
    tokens: int
    prefixes: PrefixCache
    adapters: AdapterStore

    def run(self, prompts: Sequence[Prompt], begin: Begin) -> None:
        """Runs prompts in as few passes as hold them.

        Args:
          begin: is called for each pass with the indices of its prompts, and where the keys of each will stand in
            ``[stored | own]`` (``models.attention.gather``); what it returns is called for each layer.
        """
        waiting = list(range(len(prompts)))
        while waiting:
            kept = {index: self.prefixes.match(*prompts[index]) for index in waiting}
            parts = self._next_passes(prompts, kept)
            members = [index for part in parts for index in part]
            waiting = [index for index in waiting if index not in members]
            passes = [self._lay_out(prompts, part, kept) for part in parts]
            try:
                made = list(self.lanes.map(self._compute, passes, lambda one: len(one.flat.input_ids)))
                in_use = {block for index in members for block in kept[index]}
                for one, own in zip(passes, made, strict=True):
                    self._keep([prompts[index] for index in one.members], one, own, in_use, begin)
            except BaseException:
                self.prefixes.clear()  # blocks were reserved that nothing was written to
                raise

    def _next_passes(self, prompts: Sequence[Prompt], kept: dict[int, list[int]]) -> list[list[int]]:
        """Which of the waiting prompts to run next, for each lane; ``kept`` has the stored blocks of each. Longest
        first; those that begin alike stand side by side, because attention then reads their common blocks once."""
        own = {index: len(prompts[index].ids) - len(blocks) * BLOCK for index, blocks in kept.items()}
        parts: list[list[int]] = [[] for _ in range(self.lanes.count)]
        tokens = [0] * len(parts)
        for index in sorted(own, key=lambda index: -own[index]):
            ids, adapter = prompts[index]
            chosen = [prompts[member] for part in parts for member in part]
            if shares_block(ids, len(kept[index]), [other.ids for other in chosen if other.adapter is adapter]):
                continue
            lane = tokens.index(min(tokens))
            if not chosen or (tokens[lane] + own[index] <= self.tokens and len(parts[lane]) < _PASS_PROMPTS):
                parts[lane].append(index)
                tokens[lane] += own[index]
        if sum(tokens) < _WORTH_DEALING and sum(map(len, parts)) <= _PASS_PROMPTS:
            parts = [[index for part in parts for index in part]]
        return [sorted(part, key=lambda index: kept[index]) for part in parts if part]

    def _lay_out(self, prompts: Sequence[Prompt], members: list[int], kept: dict[int, list[int]]) -> _Pass:
        sequences = [FlatSequence(prompts[index].ids[len(kept[index]) * BLOCK :], kept[index]) for index in members]
        flat = flatten(
            sequences,
            pad_id=self.pad_id,
            tiled=self.network.compute.tiled,
            stored=self.prefixes.tokens,
            slots=self.network.config.max_positions,
        )
        begins = np.cumsum([0, *(len(one.ids) for one in sequences)])[:-1]
        adapters = [prompts[index].adapter for index in members]
        stack = self.adapters.stack(adapters)
        if stack is None:
            return _Pass(members, sequences, place_flat(flat, self.mesh), begins, None)
        gate = np.zeros((len(flat.input_ids), stack.gates.shape[1]), np.float32)
        per_token = np.repeat(stack.gate(adapters), [len(one.ids) for one in sequences], axis=0)
        gate[: len(per_token)] = per_token
        return _Pass(members, sequences, place_flat(flat, self.mesh), begins, (stack, gate))

    def _compute(self, one: _Pass) -> list[KeysValues]:
        """Keys and values of a pass, by layer."""
        flat, stored = one.flat, self.prefixes.layers
        run = partial(keys_values, self.network, self.params, flat.input_ids, flat.positions, flat.layout, stored)
        if one.adapters is None:
            return run()
        stack, gate = one.adapters
        return run(stack.config, stack.params, jnp.asarray(gate))

    def _keep(
        self, prompts: Sequence[Prompt], one: _Pass, own: Sequence[KeysValues], in_use: set[int], begin: Begin
    ) -> None:
        """Hands out what a pass made, and keeps its blocks for later prompts; blocks ``in_use`` stay."""
        parts = list(zip(one.sequences, one.begins, strict=True))
        write = begin(
            one.members,
            [
                np.concatenate([stored_places(part.blocks), self.prefixes.tokens + start + np.arange(len(part.ids))])
                for part, start in parts
            ],
        )
        reserved = [
            self.prefixes.reserve(ids, len(part.blocks), in_use, adapter)
            for (ids, adapter), part in zip(prompts, one.sequences, strict=True)
        ]
        blocks = np.asarray([block for some in reserved for block in some], np.int32)
        places = np.concatenate(
            [start + BLOCK * np.arange(len(some)) for start, some in zip(one.begins, reserved, strict=True)]
        ).astype(np.int32)
        more, beyond = own[0][0].shape[0] // BLOCK - len(blocks), self.prefixes.tokens // BLOCK
        to = np.pad(places, (0, more)), np.pad(blocks, (0, more), constant_values=beyond)
        for layer, made in enumerate(own):
            write(layer, self.prefixes.layers[layer], made)
            if len(blocks):
                self.prefixes.write(layer, made, *to)
