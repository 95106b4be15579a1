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
from optimas_jax.learn.batches import GroupBatch, candidate_tokens, make_batch, plan_batches, split
from optimas_jax.learn.features import FeatureCache
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.token_group import TokenGroup, truncate
from optimas_jax.learn.train_state import init_trainable, make_optimizer
from optimas_jax.models.flat import place_flat
from optimas_jax.models.lora import Params, merge_lora
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.mesh import DATA
from optimas_jax.parallel.sharding import replicate
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.text import TextGroup

T = TypeVar("T")


class DeviceBatch(NamedTuple):
    """A batch on the devices.

    Attributes:
      groups: in the order of the batch.
      batch: their layout.
      features: [T, D] output of the frozen layers; None until it is computed.
    """

    groups: list[TokenGroup]
    batch: GroupBatch
    features: Any


BatchFunction = Callable[[DeviceBatch], T]


class RewardBatches:
    """The backbone of local rewards, and the batches on it. The model is loaded on first use."""

    def __init__(self, config: RewardConfig, components: Sequence[str], engines: Engines, progress: Progress):
        """``components``: the tunable ones; their order numbers the heads."""
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
        """T: tokens of a batch, all devices together."""
        return self.config.batch.tokens * self.model.mesh.shape[DATA]

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

    def merged(self, trainable: Params) -> Params:
        """Weights of the backbone with adapters merged."""
        return merge_lora(self.model.params, trainable["lora"], self.config.lora.scale)

    def scoring(self, merged: Params, head: Params) -> BatchFunction[np.ndarray]:
        """The function that scores a batch: [G, M] float32."""
        return lambda item: np.asarray(self.functions.score(merged, head, item.batch, item.features))

    def hidden(self, item: DeviceBatch) -> np.ndarray:
        """phi of the candidates of a batch: [G, M, D] float32."""
        return np.asarray(self.functions.hidden(self.model.params, item.batch, item.features))

    def logliks(self, item: DeviceBatch) -> np.ndarray:
        """Log-likelihood of the candidates of a batch under the untrained backbone: [G, M] float32."""
        tokens = replicate(candidate_tokens(item.groups, item.batch), self.model.mesh)
        return np.asarray(self.functions.loglik(self.model.params, item.batch, item.features, tokens))

    def token_group(self, group: TextGroup, rewards: Sequence[float] = ()) -> TokenGroup:
        """Prefix and candidates in ids, of any length. Each is tokenised alone, so that packed and single layouts have
        the same ids."""
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
        """The ``token_group`` of ``text`` within ``config.batch.group_tokens``."""
        most = self.config.batch.group_tokens
        if group.length <= most:
            return group
        return truncate(group, most, task=len(self.model.tokenizer.encode(text.task)))

    def map(self, kind: str, groups: Sequence[TokenGroup], function: BatchFunction[T]) -> Iterator[tuple[list[int], T]]:
        """Applies ``function`` to groups of similar length in batches, concurrently on all lanes; keeps their features.

        Args:
          kind: names what ``function`` compiles.

        Yields:
          Indices of the groups of a batch, and its result.
        """
        plan = self.plan(groups)
        items = (self._to_devices([groups[index] for index in members]) for members in plan)
        keep = self.functions.first > 0

        def run(item: DeviceBatch) -> tuple[T, np.ndarray | None]:
            if item.features is not None:
                return function(item), None
            features = self.functions.features(self.model.params, item.batch.flat)
            return function(item._replace(features=features)), np.asarray(features) if keep else None

        def shape(item: DeviceBatch) -> tuple[str, int, bool]:
            return kind, len(item.batch.flat.input_ids), item.features is None

        for members, (result, features) in zip(plan, self.lanes.map(run, items, shape), strict=True):
            if features is not None:
                self._kept_features.put([groups[index] for index in members], features)
            yield members, result

    def plan(self, groups: Sequence[TokenGroup]) -> list[list[int]]:
        """Indices of the groups of each batch of ``map``."""
        return plan_batches(groups, self.max_tokens)

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
        """A training batch in as many parts as there are lanes, each with its features."""
        # A step that is one program takes minutes to compile: one size for all.
        tokens = 0 if self.model.network.compute.layerwise else self.max_tokens
        parts = []
        for part in split(groups, self.lanes.count):
            _, batch, features = self._to_devices(part, tokens)
            if features is None:
                features = self.functions.features(self.model.params, batch.flat)
            parts.append((batch, features))
        return parts

    def _to_devices(self, groups: list[TokenGroup], tokens: int = 0) -> DeviceBatch:
        """A batch on the devices, with features where they are kept."""
        batch = make_batch(
            groups,
            candidates=self.config.batch.candidates,
            pad_id=self.model.tokenizer.pad_id,
            tiled=self.model.network.compute.tiled,
            tokens=tokens,
        )
        flat = place_flat(batch.flat, self.model.mesh)
        placed = replicate(batch._replace(flat=None), self.model.mesh)._replace(flat=flat)
        features = self._kept_features.get(groups, len(flat.input_ids)) if self.functions.first else None
        return DeviceBatch(groups, placed, features)
