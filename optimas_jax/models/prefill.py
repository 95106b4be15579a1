"""Prefill: prompts through the network, what they share only once.

Requests of one component begin alike: instruction and demonstrations are the same, the input differs. The keys and
values of such a prefix are computed once and kept (``PrefixCache``); a prompt then costs its own part. Equal prompts
cost one.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from jax.sharding import Mesh

from optimas_jax.models.attention import KeysValues
from optimas_jax.models.backbone import Network, embed, run_layers
from optimas_jax.models.flat import FlatSequence, flatten, place_flat
from optimas_jax.models.lora import Params

_PREFIX_TOKENS = 4096  # kept at most
_LEAST_PREFIX = 16  # shorter ones are not worth their own pass
_BATCH_SEQUENCES = 32

Ids = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt to run: its tokens, and how many of them other prompts share."""

    ids: Ids
    shared: int = 0

    @property
    def prefix(self) -> Ids:
        """The part worth keeping; at least one token is left over."""
        shared = min(self.shared, len(self.ids) - 1)
        return self.ids[:shared] if shared >= _LEAST_PREFIX else ()


class PrefixCache:
    """Keys and values of prefixes, by their tokens; the least recently used go first. Per layer and prefix [P, K, H]
    each, P a multiple of 64."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Ids, list[KeysValues]] = OrderedDict()

    def __contains__(self, prefix: Ids) -> bool:
        return prefix in self._entries

    def get(self, prefix: Ids) -> list[KeysValues]:
        self._entries.move_to_end(prefix)
        return self._entries[prefix]

    def put(self, prefix: Ids, layers: list[KeysValues]) -> None:
        self._entries[prefix] = layers
        while sum(entry[0][0].shape[0] for entry in self._entries.values()) > _PREFIX_TOKENS and len(self._entries) > 1:
            self._entries.popitem(last=False)


@dataclasses.dataclass(frozen=True)
class Prefiller:
    """Runs prompts; see ``models.sampler.Sampler`` for the attributes.

    Attributes:
      tokens: of one pass, at most (a longer prompt has a pass of its own).
    """

    network: Network
    params: Params
    pad_id: int
    mesh: Mesh | None
    tokens: int
    prefixes: PrefixCache = dataclasses.field(default_factory=PrefixCache)

    def run(self, prompts: Sequence[Prompt], write: Callable[[list[int], int, KeysValues], None]) -> None:
        """Runs prompts in as few passes as hold them.

        Args:
          write: is given, for each pass and layer, the indices of the pass's prompts, the layer, and keys and values
            [b, S, K, H], whose first rows are the prompts in that order.
        """
        by_prefix: dict[Ids, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_prefix.setdefault(prompt.prefix, []).append(index)
        lengths = [len(prompt.ids) - len(prompt.prefix) for prompt in prompts]
        for prefix, members in by_prefix.items():
            stored = self._stored(prefix) if prefix else None
            for batch in _passes(members, lengths, self.tokens):
                sequences = [FlatSequence(prompts[index].ids[len(prefix) :], len(prefix)) for index in batch]
                self._pass(sequences, stored, partial(write, batch))

    def _stored(self, prefix: Ids) -> Sequence[KeysValues]:
        """Keys and values of a prefix, computed if they are not kept."""
        if prefix not in self.prefixes:
            layers: list[KeysValues] = []
            self._pass([FlatSequence(prefix)], None, lambda layer, kv: layers.append((kv[0][0], kv[1][0])))
            self.prefixes.put(prefix, layers)
        return self.prefixes.get(prefix)

    def _pass(
        self,
        sequences: Sequence[FlatSequence],
        stored: Sequence[KeysValues] | None,
        keep: Callable[[int, KeysValues], None],
    ) -> None:
        size = 0 if stored is None else stored[0][0].shape[0]
        flat = place_flat(flatten(sequences, stored=size, pad_id=self.pad_id), self.mesh)
        x = embed(self.params["embed"], flat.input_ids, self.network.compute.dtype)
        layers = range(self.network.config.num_layers)
        run_layers(self.network, self.params, x, flat.positions, flat.spans, layers, stored=stored, keep=keep)


def _passes(members: Sequence[int], lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Cuts sequences, shortest first, into passes."""
    batch: list[int] = []
    for index in sorted(members, key=lambda index: lengths[index]):
        if batch and (
            len(batch) == _BATCH_SEQUENCES or sum(lengths[other] for other in batch) + lengths[index] > tokens
        ):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
