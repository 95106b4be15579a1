"""Prefill: prompts through the network, what they share only once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from optimas_jax.models.attention import KeysValues
from optimas_jax.models.backbone import Network, embed, run_layers
from optimas_jax.models.flat import FlatSequence, bucket, flatten, place_flat
from optimas_jax.models.lora import Params
from optimas_jax.models.prefix_cache import BLOCK, Ids, PrefixCache, shares_block

_PASS_PROMPTS = 32
_CELLS = 768  # query-key pairs per token: attention, padding included, stays small beside the rest


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

    def run(self, prompts: Sequence[Ids], write: Callable[[list[int], int, KeysValues], None]) -> None:
        """Runs prompts in as few passes as hold them.

        Args:
          write: is given, for each pass and layer, the indices of the pass's prompts, the layer, and keys and values
            [b, S, K, H], whose first rows are the prompts in that order.
        """
        waiting = list(range(len(prompts)))
        while waiting:
            members, places = self._next_pass(prompts, waiting)
            waiting = [index for index in waiting if index not in members]
            try:
                self._pass([prompts[index] for index in members], places, members, write)
            except BaseException:
                self.prefixes.clear()  # blocks were reserved that nothing was written to
                raise

    def _next_pass(self, prompts: Sequence[Ids], waiting: Sequence[int]) -> tuple[list[int], list[np.ndarray]]:
        """Which of the waiting prompts to run next, longest first, and the places of what is kept of each."""
        kept = {index: self.prefixes.match(prompts[index]) for index in waiting}
        own = {index: len(prompts[index]) - len(kept[index]) for index in waiting}
        members: list[int] = []
        tokens = slots = 0
        for index in sorted(waiting, key=lambda index: -own[index]):
            ids = prompts[index]
            if shares_block(ids, len(kept[index]), [prompts[member] for member in members]):
                continue
            if members:
                cells = (len(members) + 1) * own[members[0]] * max(slots, len(ids))
                fits = tokens + own[index] <= self.tokens and cells <= _CELLS * (tokens + own[index])
                if not fits or len(members) == _PASS_PROMPTS:
                    continue
            members.append(index)
            tokens += own[index]
            slots = max(slots, len(ids))
        return members, [kept[index] for index in members]

    def _pass(
        self,
        prompts: Sequence[Ids],
        places: Sequence[np.ndarray],
        members: list[int],
        write: Callable[[list[int], int, KeysValues], None],
    ) -> None:
        sequences = [FlatSequence(ids[len(kept) :], stored_at=kept) for ids, kept in zip(prompts, places, strict=True)]
        stored = self.prefixes.tokens if any(len(kept) for kept in places) else 0
        flat = flatten(sequences, stored=stored, pad_id=self.pad_id)
        slots = flat.spans.keys.shape[1]
        rows, targets = self._to_keep(prompts, places, slots)

        def keep(layer: int, kv: KeysValues) -> None:
            write(members, layer, kv)
            if len(targets):
                self.prefixes.write(layer, kv, rows, targets)

        flat = place_flat(flat, self.mesh)
        run_layers(
            self.network,
            self.params,
            embed(self.params["embed"], flat.input_ids, self.network.compute.dtype),
            flat.positions,
            flat.spans,
            range(self.network.config.num_layers),
            stored=self.prefixes.layers if stored else None,
            keep=keep,
        )

    def _to_keep(
        self, prompts: Sequence[Ids], places: Sequence[np.ndarray], slots: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which of the flattened [b * slots] keys of a pass to keep, and where: int32 arrays of one length."""
        in_use = {int(place) // BLOCK for kept in places for place in kept[::BLOCK]}
        rows, targets = [], []
        for row, (ids, kept) in enumerate(zip(prompts, places, strict=True)):
            reserved = self.prefixes.reserve(ids, len(kept), in_use)
            rows.append(row * slots + len(kept) + np.arange(len(reserved)))
            targets.append(reserved)
        count = sum(map(len, targets))
        padding = bucket(count, 64) - count if count else 0
        return (
            np.concatenate([*rows, np.zeros(padding)]).astype(np.int32),
            np.concatenate([*targets, np.full(padding, self.prefixes.tokens)]).astype(np.int32),
        )
