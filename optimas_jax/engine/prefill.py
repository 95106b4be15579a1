"""Prefill: computes the keys and values of prompts; prefixes that prompts share are computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from optimas_jax.engine.multi_lora import AdapterStore, LoadedAdapter, Stack
from optimas_jax.engine.prefix_cache import Ids, PrefixCache, shares_block
from optimas_jax.models.attention import BLOCK, KeysValues, StoredKeysValues
from optimas_jax.models.backbone import Network
from optimas_jax.models.flat import Flat, FlatSequence, flatten, place_flat, stored_indices
from optimas_jax.models.forward import keys_values
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes

_PASS_PROMPTS = 32  # most prompts of one pass
_WORTH_DEALING = 384  # tokens: fewer are run in one pass, which is as fast, and padded once


class _Pass(NamedTuple):
    """Prompts that run together.

    Attributes:
      members: indices of the prompts.
      sequences: the part of each prompt that is not stored yet.
      flat: the flat batch of these sequences.
      begins: [n] index of each sequence's first token in the flat batch.
      adapters: (stack, gate of each token), or None when no prompt uses an adapter.
    """

    members: list[int]
    sequences: list[FlatSequence]
    flat: Flat
    begins: np.ndarray
    adapters: tuple[Stack, np.ndarray] | None


class Prompt(NamedTuple):
    """A prompt, and the adapter that it is run with (None for the base)."""

    ids: Ids
    adapter: LoadedAdapter | None = None


@dataclasses.dataclass(frozen=True)
class Prefilled:
    """Keys and values of the prompts of one pass.

    Attributes:
      prompts: prompts of the pass.
      indices: for each prompt, [length] index of each token's key in ``[stored | computed]``
        (``models.attention.gather``).
      stored: by layer, keys and values of earlier passes.
      computed: by layer, keys and values of this pass.
    """

    prompts: list[Prompt]
    indices: list[np.ndarray]
    stored: list[StoredKeysValues]
    computed: list[KeysValues]


@dataclasses.dataclass(frozen=True)
class Prefiller:
    """Runs prompts; see ``engine.sampler.Sampler`` for the other attributes.

    Attributes:
      lanes: passes that are computed side by side.
      tokens: most tokens of one pass (a longer prompt has a pass of its own).
      prefixes: keys and values of earlier prompts.
      adapters: stacks adapters.
    """

    network: Network
    params: Params
    pad_id: int
    mesh: Mesh | None
    lanes: Lanes
    tokens: int
    prefixes: PrefixCache
    adapters: AdapterStore

    def run(self, prompts: Sequence[Prompt]) -> Iterator[Prefilled]:
        """Runs prompts, all different, in as few passes as hold them; yields the result of each pass."""
        waiting = list(range(len(prompts)))
        while waiting:
            stored = {index: self.prefixes.match(*prompts[index]) for index in waiting}
            parts = self._next_passes(prompts, stored)
            members = [index for part in parts for index in part]
            waiting = [index for index in waiting if index not in members]
            passes = [self._lay_out(prompts, part, stored) for part in parts]
            computed = list(
                self.lanes.map(self._compute, passes, lambda prefill_pass: len(prefill_pass.flat.input_ids))
            )
            in_use = {block for index in members for block in stored[index]}
            for prefill_pass, layers in zip(passes, computed, strict=True):
                in_pass = [prompts[index] for index in prefill_pass.members]
                yield Prefilled(in_pass, self._indices(prefill_pass), list(self.prefixes.layers), layers)
                self._store(in_pass, prefill_pass, layers, in_use)

    def _next_passes(self, prompts: Sequence[Prompt], stored: dict[int, list[int]]) -> list[list[int]]:
        """Chooses the waiting prompts to run next, for each lane.

        Longest first. Prompts with equal prefixes are neighbours, because attention then reads their common blocks
        once.

        Args:
          stored: index of each waiting prompt -> its stored blocks.
        """
        new_tokens = {index: len(prompts[index].ids) - len(blocks) * BLOCK for index, blocks in stored.items()}
        parts: list[list[int]] = [[] for _ in range(self.lanes.count)]
        tokens = [0] * len(parts)
        for index in sorted(new_tokens, key=lambda index: -new_tokens[index]):
            ids, adapter = prompts[index]
            chosen = [prompts[member] for part in parts for member in part]
            if shares_block(ids, len(stored[index]), [other.ids for other in chosen if other.adapter is adapter]):
                continue
            lane = tokens.index(min(tokens))
            if not chosen or (tokens[lane] + new_tokens[index] <= self.tokens and len(parts[lane]) < _PASS_PROMPTS):
                parts[lane].append(index)
                tokens[lane] += new_tokens[index]
        if sum(tokens) < _WORTH_DEALING and sum(map(len, parts)) <= _PASS_PROMPTS:
            parts = [[index for part in parts for index in part]]
        return [sorted(part, key=lambda index: stored[index]) for part in parts if part]

    def _lay_out(self, prompts: Sequence[Prompt], members: list[int], stored: dict[int, list[int]]) -> _Pass:
        sequences = [FlatSequence(prompts[index].ids[len(stored[index]) * BLOCK :], stored[index]) for index in members]
        flat = flatten(
            sequences,
            pad_id=self.pad_id,
            tiled=self.network.compute.tiled,
            stored=self.prefixes.tokens,
            slots=self.network.config.max_positions,
        )
        begins = np.cumsum([0, *(len(sequence.ids) for sequence in sequences)])[:-1]
        adapters = [prompts[index].adapter for index in members]
        stack = self.adapters.stack(adapters)
        if stack is None:
            return _Pass(members, sequences, place_flat(flat, self.mesh), begins, None)
        gate = np.zeros((len(flat.input_ids), stack.gates.shape[1]), np.float32)
        per_token = np.repeat(stack.gate(adapters), [len(sequence.ids) for sequence in sequences], axis=0)
        gate[: len(per_token)] = per_token
        return _Pass(members, sequences, place_flat(flat, self.mesh), begins, (stack, gate))

    def _compute(self, prefill_pass: _Pass) -> list[KeysValues]:
        """Keys and values of a pass, by layer."""
        flat, stored = prefill_pass.flat, self.prefixes.layers
        run = partial(keys_values, self.network, self.params, flat.input_ids, flat.positions, flat.layout, stored)
        if prefill_pass.adapters is None:
            return run()
        stack, gate = prefill_pass.adapters
        return run(stack.config, stack.params, jnp.asarray(gate))

    def _indices(self, prefill_pass: _Pass) -> list[np.ndarray]:
        """For each prompt of a pass, the index of each token's key in ``[stored | computed]``."""
        return [
            np.concatenate([stored_indices(part.blocks), self.prefixes.tokens + begin + np.arange(len(part.ids))])
            for part, begin in zip(prefill_pass.sequences, prefill_pass.begins, strict=True)
        ]

    def _store(
        self, prompts: Sequence[Prompt], prefill_pass: _Pass, layers: Sequence[KeysValues], in_use: set[int]
    ) -> None:
        """Stores the blocks of a pass for later prompts; blocks ``in_use`` are not overwritten."""
        try:
            reserved = [
                self.prefixes.reserve(ids, len(part.blocks), in_use, adapter)
                for (ids, adapter), part in zip(prompts, prefill_pass.sequences, strict=True)
            ]
            blocks = np.asarray([block for of_prompt in reserved for block in of_prompt], np.int32)
            if not len(blocks):
                return
            starts = np.concatenate(
                [begin + BLOCK * np.arange(len(new)) for begin, new in zip(prefill_pass.begins, reserved, strict=True)]
            ).astype(np.int32)
            padding, beyond = layers[0][0].shape[0] // BLOCK - len(blocks), self.prefixes.tokens // BLOCK
            starts, blocks = np.pad(starts, (0, padding)), np.pad(blocks, (0, padding), constant_values=beyond)
            for layer, computed in enumerate(layers):
                self.prefixes.write(layer, computed, starts, blocks)
        except BaseException:
            self.prefixes.clear()  # blocks were reserved that nothing was written to
            raise
