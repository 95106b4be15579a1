"""Prefill: computes the keys and values of prompts; prefixes that prompts share are computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from optimas_jax.engine.multi_lora import AdapterStore, LoadedAdapter, Stack
from optimas_jax.engine.prefix_cache import BlockTable, Ids, PrefixCache, shares_block
from optimas_jax.models.backbone import Network
from optimas_jax.models.flat import Flat, FlatSequence, flatten, stored_indices
from optimas_jax.models.forward import keys_values
from optimas_jax.models.layout import BLOCK, KeysValues, StoredKeysValues
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.sharding import put_shards

PASS_PROMPTS = 32  # most prompts of one pass
WORTH_DEALING = 384  # tokens: fewer are computed in one pass, which is as fast, and padded only once


class _Pass(NamedTuple):
    """Prompts that run together, by shard of the mesh; on one device there is one shard.

    Attributes:
      members: indices of the prompts.
      sequences: the part of each prompt whose keys and values are not stored yet.
      flat: the flat batch of these sequences, on the devices.
      begins: [n] index of each sequence's first token in the flat batch of its shard.
      adapters: (stack, gate of each token), or None if no prompt uses an adapter.
    """

    members: list[list[int]]
    sequences: list[list[FlatSequence]]
    flat: Flat
    begins: list[np.ndarray]
    adapters: tuple[Stack, Any] | None


class Prompt(NamedTuple):
    """A prompt, the adapter that it is run with (None for the base), and the shard of the mesh that runs it."""

    ids: Ids
    adapter: LoadedAdapter | None = None
    shard: int = 0


@dataclasses.dataclass(frozen=True)
class Prefilled:
    """Keys and values of the prompts of one pass.

    Attributes:
      prompts: prompts of the pass.
      indices: for each prompt, [length] index of each token's key in ``[stored | computed]``
        (``models.layout.gather``).
      stored: by layer, keys and values of earlier passes.
      computed: by layer, keys and values of this pass.

    Indices refer to the arrays of the prompt's shard.
    """

    prompts: list[Prompt]
    indices: list[np.ndarray]
    stored: list[StoredKeysValues]
    computed: list[KeysValues]


@dataclasses.dataclass(frozen=True)
class Prefiller:
    """Computes keys and values of prompts; see ``engine.sampler.Sampler`` for the other attributes.

    Attributes:
      lanes: in which passes are computed side by side.
      tokens: most tokens of one pass (a longer prompt has a pass of its own).
      prefixes: keys and values of earlier prompts.
      adapters: store that stacks the adapters of a pass.
    """

    network: Network
    params: Params
    pad_id: int
    lanes: Lanes
    tokens: int
    prefixes: PrefixCache
    adapters: AdapterStore

    @property
    def shards(self) -> int:
        """Number of devices along ``data``, each of which runs prompts of its own."""
        return len(self.prefixes.tables)

    def run(self, prompts: Sequence[Prompt]) -> Iterator[Prefilled]:
        """Runs prompts, all different, in as few passes as possible; yields the result of each pass."""
        waiting = list(range(len(prompts)))
        while waiting:
            stored = {index: self._table(prompts[index]).match(*prompts[index][:2]) for index in waiting}
            passes = [self._lay_out(prompts, members, stored) for members in self._next_passes(prompts, stored)]
            members = [
                index for prompt_pass in passes for shard_members in prompt_pass.members for index in shard_members
            ]
            waiting = [index for index in waiting if index not in members]
            computed = list(
                self.lanes.map(self._compute, passes, lambda prompt_pass: prompt_pass.flat.input_ids.shape[-1])
            )
            in_use: list[set[int]] = [set() for _ in range(self.shards)]
            for index in members:
                in_use[prompts[index].shard].update(stored[index])
            for prompt_pass, layers in zip(passes, computed, strict=True):
                in_pass = [prompts[index] for shard_members in prompt_pass.members for index in shard_members]
                yield Prefilled(in_pass, self._indices(prompt_pass), list(self.prefixes.layers), layers)
                self._store(prompts, prompt_pass, layers, in_use)

    def _table(self, prompt: Prompt) -> BlockTable:
        return self.prefixes.tables[prompt.shard]

    def _next_passes(self, prompts: Sequence[Prompt], stored: dict[int, list[int]]) -> list[list[list[int]]]:
        """Chooses the waiting prompts to run next: a pass for each lane, or one pass for all shards of a mesh.

        Longest prompts first. Prompts with equal prefixes are neighbours in a pass, so that attention reads their
        common blocks once.

        Args:
          stored: index of each waiting prompt -> its stored blocks.

        Returns:
          For each pass the prompts of each shard.
        """
        new_tokens = {index: len(prompts[index].ids) - len(blocks) * BLOCK for index, blocks in stored.items()}
        parts: list[list[int]] = [[] for _ in range(max(self.lanes.count, self.shards))]
        tokens = [0] * len(parts)
        for index in sorted(new_tokens, key=lambda index: -new_tokens[index]):
            ids, adapter, shard = prompts[index]
            chosen = [prompts[member] for part in parts for member in part if prompts[member].shard == shard]
            if shares_block(ids, len(stored[index]), [other.ids for other in chosen if other.adapter is adapter]):
                continue
            number = shard if self.shards > 1 else tokens.index(min(tokens))
            fits = tokens[number] + new_tokens[index] <= self.tokens and len(parts[number]) < PASS_PROMPTS
            if fits or not chosen:
                parts[number].append(index)
                tokens[number] += new_tokens[index]
        if self.shards == 1 and sum(tokens) < WORTH_DEALING and sum(map(len, parts)) <= PASS_PROMPTS:
            parts = [[index for part in parts for index in part]]
        parts = [sorted(part, key=lambda index: stored[index]) for part in parts]
        return [parts] if self.shards > 1 else [[part] for part in parts if part]

    def _lay_out(self, prompts: Sequence[Prompt], parts: list[list[int]], stored: dict[int, list[int]]) -> _Pass:
        sequences = [
            [FlatSequence(prompts[index].ids[len(stored[index]) * BLOCK :], stored[index]) for index in part]
            for part in parts
        ]
        longest = max((sequence for part in sequences for sequence in part), key=lambda sequence: sequence.length)
        most = max(len(sequence.ids) for part in sequences for sequence in part)
        like = [longest, FlatSequence((self.pad_id,) * most)]
        flats = [
            flatten(
                part,
                pad_id=self.pad_id,
                tiled=self.network.compute.tiled,
                stored=self.prefixes.tokens,
                slots=self.network.config.max_positions,
                tokens=max(sum(len(sequence.ids) for sequence in shard_sequences) for shard_sequences in sequences),
                like=[*like, *[longest] * (max(map(len, sequences)) - 2)] if self.shards > 1 else (),
            )
            for part in sequences
        ]
        begins = [np.cumsum([0, *(len(sequence.ids) for sequence in part)])[:-1] for part in sequences]
        stack = self.adapters.stack([prompts[index].adapter for part in parts for index in part])
        adapters = None
        if stack is not None:
            tokens = len(flats[0].input_ids)
            gates = [
                self._gate(stack, [prompts[index].adapter for index in part], of_part, tokens)
                for part, of_part in zip(parts, sequences, strict=True)
            ]
            adapters = stack, put_shards(gates, self.network.mesh)
        return _Pass(parts, sequences, put_shards(flats, self.network.mesh), begins, adapters)

    def _gate(
        self,
        stack: Stack,
        adapters: Sequence[LoadedAdapter | None],
        sequences: Sequence[FlatSequence],
        tokens: int,
    ) -> np.ndarray:
        """[tokens, R] scale of each adapter column for each token of a shard."""
        gate = np.zeros((tokens, stack.gates.shape[1]), np.float32)
        per_token = np.repeat(stack.gate(adapters), [len(sequence.ids) for sequence in sequences], axis=0)
        gate[: len(per_token)] = per_token
        return gate

    def _compute(self, prompt_pass: _Pass) -> list[KeysValues]:
        """Keys and values of a pass, by layer."""
        flat, stored = prompt_pass.flat, self.prefixes.layers
        run = partial(keys_values, self.network, self.params, flat.input_ids, flat.positions, flat.layout, stored)
        if prompt_pass.adapters is None:
            return run()
        stack, gate = prompt_pass.adapters
        return run(stack.config, stack.params, gate)

    def _indices(self, prompt_pass: _Pass) -> list[np.ndarray]:
        """For each prompt of a pass, the index of each token's key in ``[stored | computed]`` of its shard."""
        return [
            np.concatenate(
                [stored_indices(sequence.blocks), self.prefixes.tokens + begin + np.arange(len(sequence.ids))]
            )
            for sequences, begins in zip(prompt_pass.sequences, prompt_pass.begins, strict=True)
            for sequence, begin in zip(sequences, begins, strict=True)
        ]

    def _store(
        self, prompts: Sequence[Prompt], prompt_pass: _Pass, layers: Sequence[KeysValues], in_use: Sequence[set[int]]
    ) -> None:
        """Stores the blocks of a pass for later prompts; blocks ``in_use``, by shard, are not overwritten."""
        try:
            count = layers[0][0].shape[-3] // BLOCK
            by_shard = [
                self._reserve([prompts[index] for index in members], sequences, begins, used, count)
                for members, sequences, begins, used in zip(
                    prompt_pass.members, prompt_pass.sequences, prompt_pass.begins, in_use, strict=True
                )
            ]
            if any(len(reserved) for _, _, reserved in by_shard):
                mesh = self.network.mesh
                starts = put_shards([starts for starts, _, _ in by_shard], mesh)
                blocks = put_shards([blocks for _, blocks, _ in by_shard], mesh)
                for layer, computed in enumerate(layers):
                    self.prefixes.write(layer, computed, starts, blocks)
        except BaseException:
            self.prefixes.clear()  # some reserved blocks were never written
            raise

    def _reserve(
        self,
        prompts: Sequence[Prompt],
        sequences: Sequence[FlatSequence],
        begins: np.ndarray,
        in_use: set[int],
        count: int,
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Reserves blocks for the prompts of a shard.

        Returns:
          Index of each block's first token in the pass [count]; number of the block that it is written to [count], a
          number beyond the last block for none; and the reserved blocks.
        """
        reserved = [
            self._table(prompt).reserve(prompt.ids, len(sequence.blocks), in_use, prompt.adapter)
            for prompt, sequence in zip(prompts, sequences, strict=True)
        ]
        blocks = [block for prompt_blocks in reserved for block in prompt_blocks]
        firsts = [begin + BLOCK * np.arange(len(new)) for begin, new in zip(begins, reserved, strict=True)]
        starts, targets = np.zeros(count, np.int32), np.full(count, self.prefixes.tokens // BLOCK, np.int32)
        starts[: len(blocks)], targets[: len(blocks)] = np.concatenate([*firsts, []]), blocks
        return starts, targets, blocks
