"""Groups on the devices: token ids, flat batches, and features of the frozen layers, shared by training and scoring."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from optimas_jax.core.progress import Progress
from optimas_jax.engine.pool import Engines, LoadedModel
from optimas_jax.learn.batches import GroupBatch, candidate_tokens, deal, make_batches, plan_batches
from optimas_jax.learn.features import FeatureCache
from optimas_jax.learn.policy_batch import sampled_tokens
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.token_group import TokenGroup, truncate
from optimas_jax.learn.train_state import init_trainable, make_optimizer
from optimas_jax.models.lora import Params, merge_lora
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.sharding import place
from optimas_jax.parallel.transfer import fetch
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.text import TextGroup

T = TypeVar("T")


class DeviceBatch(NamedTuple):
    """A batch on the devices.

    Attributes:
      parts: groups of each shard, in order; a single part on one device.
      batch: layout of the groups.
      features: [T, D] output of the frozen layers, on a mesh [S, T, D]; None until it is computed.
    """

    parts: list[list[TokenGroup]]
    batch: GroupBatch
    features: Any

    def by_group(self, values: Any) -> list[np.ndarray]:
        """Splits results for all groups, [G, ...] or [S, G, ...], into arrays of single groups, part after part."""
        rows = fetch(values)
        rows = rows[None] if len(self.batch.ends.shape) == 2 else rows
        return [of_part[row] for of_part, groups in zip(rows, self.parts, strict=True) for row in range(len(groups))]


BatchFunction = Callable[[DeviceBatch], T]


class RewardBatches:
    """The backbone of local rewards, and the batches on it. The model is loaded on first use."""

    def __init__(self, config: RewardConfig, components: Sequence[str], engines: Engines, progress: Progress):
        """``components``: the tunable components; their order numbers the heads."""
        self.config, self.components = config, tuple(components)
        self._engines, self._progress = engines, progress
        self._kept_features = FeatureCache()

    @cached_property
    def model(self) -> LoadedModel:
        return self._engines.model(self.config.model)

    @cached_property
    def functions(self) -> RewardFunctions:
        network = self.model.for_training(self.config.batch)
        return RewardFunctions(network, self.config.lora, self.config.loss, make_optimizer())

    @cached_property
    def lanes(self) -> Lanes:
        return Lanes.of(self.model.network.compute, self.model.mesh)

    @property
    def max_tokens(self) -> int:
        """Tokens of a batch of a training step, all devices together."""
        return self.config.batch.tokens

    @property
    def backbone(self) -> dict[str, Any]:
        """Identity of the arrays of a checkpoint, as JSON: backbone, LoRA settings and components."""
        lora = json.loads(json.dumps(dataclasses.asdict(self.config.lora)))
        return {"model": self.config.model, "lora": lora, "components": list(self.components)}

    def initial(self, seed: int) -> Params:
        """Fresh adapters and heads, float32."""
        return self._initial(jax.random.key(seed))

    @cached_property
    def shapes(self) -> Params:
        """``initial`` as ``jax.ShapeDtypeStruct``."""
        return jax.eval_shape(self._initial, jax.random.key(0))

    def _initial(self, key: jax.Array) -> Params:
        return init_trainable(self.model.network.config, self.config.lora, len(self.components), key)

    def place(self, trainable: T) -> T:
        """Moves adapters and heads, or a state of their training, to the devices."""
        return place(trainable, self.model.mesh)

    def scoring(self, trainable: Params) -> BatchFunction[list[np.ndarray]]:
        """The function that scores a batch: [M] float32 for each group."""
        params, adapters = self.model.params, trainable["lora"]
        if self.model.network.compute.merge_adapters:
            merged = merge_lora(params, adapters, self.config.lora.scale)
            params, adapters = place(merged, self.functions.network.mesh), None
        head = trainable["head"]
        return lambda item: item.by_group(self.functions.score(params, head, item.batch, item.features, adapters))

    def hidden(self, item: DeviceBatch) -> list[np.ndarray]:
        """phi of the candidates of a batch: [M, D] float32 for each group."""
        return item.by_group(self.functions.hidden(self.model.params, item.batch, item.features))

    def logliks(self, item: DeviceBatch) -> list[np.ndarray]:
        """Log-likelihood of the candidates of a batch under the untrained backbone: [M] float32 for each group."""
        least = max(sum(map(sampled_tokens, part)) for part in item.parts)
        room, chunk = item.batch.ends.shape[-2:], self.model.network.compute.vocab_chunk
        tokens = self.model.put([candidate_tokens(part, room, least, multiple=chunk) for part in item.parts])
        return item.by_group(self.functions.loglik(self.model.params, item.batch, item.features, tokens))

    def token_group(self, group: TextGroup, rewards: Sequence[float] = ()) -> TokenGroup:
        """Prefix and candidates as token ids, of any length. Each text is tokenised separately, so that packed and
        single layouts have the same ids."""
        tokenizer = self.model.tokenizer
        ends = tuple(tokenizer.eos_ids[:1])
        candidates = tuple((*tokenizer.encode(text), *ends) for text in group.candidates)
        return TokenGroup(
            prefix_ids=tuple(tokenizer.encode(group.prefix)),
            candidate_ids=candidates,
            rewards=tuple(rewards) or (0.0,) * len(candidates),
            component=self.components.index(group.component),
        )

    def fit(self, text: TextGroup, group: TokenGroup) -> TokenGroup:
        """The ``token_group`` of ``text``, truncated to ``config.batch.group_tokens``."""
        most = self.config.batch.group_tokens
        if group.length <= most:
            return group
        return truncate(group, most, task=len(self.model.tokenizer.encode(text.task)))

    def map(self, kind: str, groups: Sequence[TokenGroup], function: BatchFunction[T]) -> Iterator[tuple[list[int], T]]:
        """Applies ``function`` to groups of similar length in batches, concurrently on all lanes; keeps their features.

        Args:
          kind: name of ``function``; programs are compiled by kind and shape.

        Yields:
          Indices of the groups of a batch, and its result.
        """
        plan = [self._deal(groups, members) for members in self.plan(groups)]
        items = (self._to_devices([[groups[index] for index in part] for part in parts]) for parts in plan)
        keep = self.functions.first > 0

        def run(item: DeviceBatch) -> tuple[T, np.ndarray | None]:
            if item.features is not None:
                return function(item), None
            features = self.functions.features(self.model.params, item.batch.flat)
            return function(item._replace(features=features)), fetch(features) if keep else None

        def shape(item: DeviceBatch) -> tuple[str, int, bool]:
            return kind, item.batch.flat.input_ids.shape[-1], item.features is None

        for parts, (result, features) in zip(plan, self.lanes.map(run, items, shape), strict=True):
            if features is not None:
                of_shards = features[None] if features.ndim == 2 else features
                for part, of_shard in zip(parts, of_shards, strict=True):
                    self._kept_features.put([groups[index] for index in part], of_shard)
            yield [index for part in parts for index in part], result

    def plan(self, groups: Sequence[TokenGroup]) -> list[list[int]]:
        """Indices of the groups of each batch of ``map``."""
        return plan_batches(groups, self.config.batch.tokens * self.model.shards)

    def keep_features(self, groups: Sequence[TokenGroup]) -> None:
        """Computes the features of all groups in large batches of similar lengths, before training."""
        missing = [group for group in groups if group not in self._kept_features]
        if not missing or not self.functions.first:
            return

        def nothing_more(item: DeviceBatch) -> None:
            """``map`` itself keeps the features."""

        with self._progress.bar("features", len(self.plan(missing))) as advance:
            for _ in self.map("features", missing, nothing_more):
                advance()

    def training_parts(self, groups: Sequence[TokenGroup]) -> list[tuple[GroupBatch, Any]]:
        """A training batch with its features, dealt to the shards of a mesh, or to as many parts as there are lanes."""
        lengths = [group.length for group in groups]
        if self.model.mesh.size == 1:
            batches = [[part] for part in deal(lengths, min(self.lanes.count, len(groups)))]
        else:
            batches = [deal(lengths, self.model.shards)]
        one_size = self.model.mesh.size == 1 and self.model.network.compute.one_size
        parts = []
        for dealt in batches:
            item = self._to_devices(
                [[groups[index] for index in part] for part in dealt], self.max_tokens if one_size else 0
            )
            features = item.features
            if features is None:
                features = self.functions.features(self.model.params, item.batch.flat)
            parts.append((item.batch, features))
        return parts

    def _deal(self, groups: Sequence[TokenGroup], members: Sequence[int]) -> list[list[int]]:
        """The members of a batch by shard."""
        if self.model.mesh.size == 1:
            return [list(members)]
        dealt = deal([groups[index].length for index in members], self.model.shards)
        return [[members[number] for number in part] for part in dealt]

    def _to_devices(self, parts: list[list[TokenGroup]], tokens: int = 0) -> DeviceBatch:
        """A batch on the devices, with its features if they are kept.

        Args:
          parts: groups of each shard.
        """
        batches = make_batches(
            parts,
            candidates=self.config.batch.candidates,
            pad_id=self.model.tokenizer.pad_id,
            tiled=self.model.network.compute.tiled,
            tokens=tokens,
        )
        return DeviceBatch(parts, self.model.put(batches), self._features(parts, len(batches[0].flat.input_ids)))

    def _features(self, parts: list[list[TokenGroup]], tokens: int) -> Any:
        """Kept features on the devices, [tokens, D] for each shard; None if any group has no kept features."""
        if not self.functions.first:
            return None
        features_by_part = [self._kept_features.get(part, tokens) if part else () for part in parts]
        if any(features is None for features in features_by_part):
            return None
        nothing = np.zeros_like(features_by_part[0])  # the first shard has the longest group
        return self.model.put([nothing if isinstance(features, tuple) else features for features in features_by_part])
