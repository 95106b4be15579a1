"""Local reward functions from the host's side: text to batches, training calls, memoised scores.

A ``RewardEngine`` owns the device side. A *local reward* itself is only a name, the digest of the training call that
made it: scores are kept on the tape under that name and checkpoints under the same, so a resumed run neither trains
nor scores anything twice.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from optimas_jax.core.progress import Progress
from optimas_jax.core.render import render_reward_candidate, render_reward_prefix
from optimas_jax.core.system import System
from optimas_jax.core.types import Group, StopRun, digest
from optimas_jax.engine.pool import Engines, LoadedModel
from optimas_jax.learn.batches import GroupBatch, candidate_tokens, make_batch, plan_batches, split
from optimas_jax.learn.features import FeatureCache
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup, truncate
from optimas_jax.learn.train_state import init_state, init_trainable, learning_rate, make_optimizer, means
from optimas_jax.llm.tape import Tape
from optimas_jax.models.flat import place_flat
from optimas_jax.models.lora import Params, merge_lora
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.mesh import DATA
from optimas_jax.parallel.platform import return_free_memory
from optimas_jax.parallel.sharding import replicate
from optimas_jax.rewards.config import RewardConfig


@dataclasses.dataclass(frozen=True)
class TextGroup:
    """What a local reward function reads: one prefix and M candidates."""

    component: str
    prefix: str
    candidates: tuple[str, ...]


def text_group(
    system: System, component: str, inputs: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]
) -> TextGroup:
    """Renders an input of a component and candidate outputs."""
    node = system.by_name[component]
    prefix = render_reward_prefix(node.description, inputs, node.inputs)
    return TextGroup(component, prefix, tuple(render_reward_candidate(made, node.outputs) for made in outputs))


T = TypeVar("T")

_TRAINING_GROUP = 128  # tokens: a batch of T has at most T / 128 groups, so that its step has few shapes


class NonFiniteLoss(StopRun):
    """Training diverged; nothing of it was kept."""


class RewardEngine:
    """Trains and evaluates local reward functions of one system."""

    def __init__(
        self,
        config: RewardConfig,
        components: Sequence[str],
        engines: Engines,
        tape: Tape,
        checkpoints: CheckpointStore,
        progress: Progress,
    ):
        """``components``: the tunable ones; their order numbers the heads."""
        self.config = config
        self._components = tuple(components)
        self._engines, self._tape, self._checkpoints, self._progress = engines, tape, checkpoints, progress
        self._active: tuple[str, Params, Params] | None = None  # name, merged params, head
        self._kept_features = FeatureCache()

    @cached_property
    def _model(self) -> LoadedModel:
        return self._engines.model(self.config.model)

    @cached_property
    def _functions(self) -> RewardFunctions:
        network = self._model.for_training(self.config.batch)
        return RewardFunctions(network, self.config.lora, self.config.loss, make_optimizer())

    @property
    def _batch_tokens(self) -> int:
        return self.config.batch.tokens * self._model.mesh.shape[DATA]

    @cached_property
    def _lanes(self) -> Lanes:
        return Lanes.of(self._model.network.compute, self._model.mesh)

    def _batch(self, groups: Sequence[TokenGroup], tokens: int = 0) -> tuple[GroupBatch, Any]:
        """A batch on the devices, and its features where they are kept, else None."""
        batch = make_batch(
            groups,
            candidates=self.config.batch.candidates,
            pad_id=self._model.tokenizer.pad_id,
            tiled=self._model.network.compute.tiled,
            tokens=tokens,
        )
        flat = place_flat(batch.flat, self._model.mesh)
        placed = replicate(batch._replace(flat=None), self._model.mesh)._replace(flat=flat)
        return placed, self._kept_features.get(groups, len(flat.input_ids)) if self._functions.first else None

    def _parts(self, groups: Sequence[TokenGroup]) -> list[tuple[GroupBatch, Any]]:
        """A training batch, in as many parts as there are lanes."""
        made = []
        for part in split(groups, self._lanes.count):
            # A step that is one program takes minutes to compile: one size for all.
            layerwise = self._model.network.compute.layerwise
            batch, features = self._batch(part, 0 if layerwise else self._batch_tokens)
            if features is None:
                features = self._functions.features(self._model.params, batch.flat)
            made.append((batch, features))
        return made

    def _over_batches(
        self,
        kind: str,
        groups: Sequence[TokenGroup],
        plan: Sequence[list[int]],
        function: Callable[[list[TokenGroup], GroupBatch, jax.Array], T],
    ) -> Iterator[tuple[list[int], T]]:
        """``function(groups, batch, features)`` of the batches of a plan, side by side; keeps the features."""
        params, keep = self._model.params, self._functions.first > 0

        def prepare(members: list[int]) -> tuple[list[TokenGroup], GroupBatch, Any]:
            chosen = [groups[index] for index in members]
            return chosen, *self._batch(chosen)

        def run(item: tuple[list[TokenGroup], GroupBatch, Any]) -> tuple[T, np.ndarray | None]:
            chosen, batch, features = item
            if features is not None:
                return function(chosen, batch, features), None
            features = self._functions.features(params, batch.flat)
            return function(chosen, batch, features), np.asarray(features) if keep else None

        def shape(item: tuple[list[TokenGroup], GroupBatch, Any]) -> tuple[str, int, bool]:
            _, batch, features = item
            return kind, len(batch.flat.input_ids), features is None

        for members, (value, features) in zip(plan, self._lanes.map(run, map(prepare, plan), shape), strict=True):
            if features is not None:
                self._kept_features.put([groups[index] for index in members], features)
            yield members, value

    def _keep_features(self, groups: Sequence[TokenGroup]) -> None:
        """Computes the features of all groups, in batches that suit it better than those of training."""
        missing = [group for group in groups if group not in self._kept_features]
        if not missing or not self._functions.first:
            return
        plan = plan_batches(missing, self._batch_tokens)
        with self._progress.bar("features", len(plan)) as advance:
            for _ in self._over_batches("features", missing, plan, lambda *_: None):
                advance()

    def _token_group(self, group: TextGroup, rewards: Sequence[float] | None = None) -> TokenGroup:
        """Prefix and candidates are tokenised apart, so that packed and single layouts have the same ids."""
        tokenizer = self._model.tokenizer
        ends = tuple(tokenizer.eos_ids[:1])
        candidates = tuple((*tokenizer.encode(text), *ends) for text in group.candidates)
        tokens = TokenGroup(
            prefix_ids=tuple(tokenizer.encode(group.prefix)),
            candidate_ids=candidates,
            rewards=tuple(rewards) if rewards is not None else (0.0,) * len(candidates),
            component=self._components.index(group.component),
        )
        return truncate(tokens, self.config.batch.group_tokens)

    def check(self, name: str) -> None:
        """Raises ``StopRun`` if there is no local reward of that name here, or one of another backbone."""
        metadata = self._checkpoints.metadata(name)
        if metadata is None:
            raise StopRun(
                f"no local reward {name!r} in {self._checkpoints.folder}: a configuration that chooses outputs by it "
                "runs in the folder that trained it, or from a whole best/ folder (config.evaluate.folder), which "
                "carries it"
            )
        trained, here = metadata.get("backbone", self._backbone), self._backbone
        if trained != here:
            raise StopRun(
                f"local reward {name!r} was trained as {trained}, and config.reward and the system make it {here}: "
                "set them alike"
            )

    @property
    def _backbone(self) -> dict[str, Any]:
        """What the arrays of a checkpoint belong to, as JSON has it."""
        lora = json.loads(json.dumps(dataclasses.asdict(self.config.lora)))
        return {"model": self.config.model, "lora": lora, "components": list(self._components)}

    def scores(self, name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        """Local rewards of every candidate under the local reward called ``name``."""
        return self._memoised("score", name, groups)

    def logliks(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """Log-probability of every candidate under the untrained backbone."""
        return self._memoised("loglik", self.config.model, groups)

    def _memoised(self, kind: Literal["score", "loglik"], name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        keys = [[digest(kind, name, g.component, g.prefix, text) for text in g.candidates] for g in groups]
        known = self._tape.get_scores([key for row in keys for key in row])
        missing = [index for index, row in enumerate(keys) if any(key not in known for key in row)]
        # The same text in two groups differs in the last digits: the first group's score is the one that counts,
        # whatever is known already.
        first = {key: index for index, row in reversed(list(enumerate(keys))) for key in row}
        tokens = [self._token_group(groups[index]) for index in missing]
        plan = plan_batches(tokens, self._batch_tokens)
        if plan:
            bar = self._progress.bar(f"local {kind}s", len(plan)) if len(plan) > 1 else nullcontext(lambda: None)
            with bar as advance:
                for members, values in self._over_batches(kind, tokens, plan, self._evaluation(kind, name)):
                    fresh = {
                        key: float(value)
                        for place, member in enumerate(members)
                        for key, value in zip(keys[missing[member]], values[place], strict=False)
                        if first[key] == missing[member] and key not in known
                    }
                    self._tape.put_scores(fresh)
                    known.update(fresh)
                    advance()
        return [[known[key] for key in row] for row in keys]

    def _evaluation(self, kind: Literal["score", "loglik"], name: str) -> Callable[..., np.ndarray]:
        """The function of a batch that ``_over_batches`` is to run."""

        def loglik(groups: list[TokenGroup], batch: GroupBatch, features: jax.Array) -> np.ndarray:
            tokens = replicate(candidate_tokens(groups, batch), self._model.mesh)
            return np.asarray(self._functions.loglik(self._model.params, batch, features, tokens))

        return loglik if kind == "loglik" else self._scoring(*self._activate(name))

    def _scoring(self, params: Params, head: Params) -> Callable[..., np.ndarray]:
        return lambda _, batch, features: np.asarray(self._functions.score(params, head, batch, features))

    def _activate(self, name: str) -> tuple[Params, Params]:
        """The weights behind a local reward, adapters merged; the last one used stays loaded."""
        if self._active is None or self._active[0] != name:
            trainable = replicate(self._checkpoints.load(name, self._fresh(0)), self._model.mesh)
            merged = merge_lora(self._model.params, trainable["lora"], self.config.lora.scale)
            self._active = (name, merged, trainable["head"])
        return self._active[1], self._active[2]

    def _fresh(self, seed: int) -> Params:
        return init_trainable(self._model.network.config, self.config.lora, len(self._components), jax.random.key(seed))

    def train(
        self,
        system: System,
        parent: str | None,
        train: Sequence[Group],
        held_out: Sequence[Group],
        *,
        epochs: int,
        seed: int,
    ) -> tuple[str, dict[str, Any]]:
        """One training call: from ``parent`` (None: from fresh adapters and heads) on ``train``.

        Held-out groups decide when to stop and which epoch is kept; without any, the last epoch is kept.

        Returns:
          The name of the new local reward, and what happened: loss and pair accuracies per epoch.
        """
        config = dataclasses.asdict(self.config)
        data = [[_group_digest(group) for group in part] for part in (train, held_out)]
        name = digest("train", config, self._components, parent, data, epochs, seed)
        metadata = self._checkpoints.metadata(name)
        if metadata is None:
            trainable, history = self._train(system, parent, train, held_out, epochs, seed)
            metadata = {"parent": parent, "seed": seed, "groups": len(train), "history": history}
            metadata["backbone"] = self._backbone
            self._checkpoints.save(name, trainable, metadata)
            return_free_memory()
        return name, metadata

    def _train(
        self,
        system: System,
        parent: str | None,
        train: Sequence[Group],
        held_out: Sequence[Group],
        epochs: int,
        seed: int,
    ) -> tuple[Params, list[dict[str, float]]]:
        rng = np.random.default_rng(seed)
        trainable = self._fresh(seed) if parent is None else self._checkpoints.load(parent, self._fresh(0))
        learnable = [self._tokens(system, g) for g in train if _has_pairs(g, self.config.loss.threshold)]
        evaluated = [self._tokens(system, g) for g in held_out if _has_pairs(g, self.config.loss.threshold)]
        if not learnable:
            return trainable, []
        self._model.check_memory(self.config.lora, self.config.batch, "config.reward")
        most = max(1, self._batch_tokens // _TRAINING_GROUP)
        plans = [plan_batches(learnable, self._batch_tokens, most=most, rng=rng) for _ in range(epochs)]
        total_steps = sum(map(len, plans))
        self._keep_features(learnable)
        state = replicate(init_state(trainable, make_optimizer()), self._model.mesh)
        best, best_accuracy, since_best, history, step = jax.device_get(trainable), -1.0, 0, [], 0
        with self._progress.bar("training steps", total_steps) as advance:
            for epoch, plan in enumerate(plans):
                metrics = []
                for members in plan:
                    rate = learning_rate(step, total_steps, self.config.learning_rate)
                    step += 1
                    parts = self._parts([learnable[index] for index in members])
                    state, step_metrics = self._functions.train_step(
                        state, self._model.params, parts, rate, self._lanes
                    )
                    metrics.append(step_metrics)
                    advance()
                row = means(jax.device_get(metrics))
                if not np.isfinite(row["loss"]):
                    raise NonFiniteLoss(
                        f"the loss became {row['loss']} in epoch {epoch + 1}: lower config.reward.learning_rate "
                        f"({self.config.learning_rate})"
                    )
                row["held_out_pair_accuracy"] = self._pair_accuracy(state.trainable, evaluated)
                history.append(row)
                if row["held_out_pair_accuracy"] > best_accuracy or not evaluated:
                    best, best_accuracy, since_best = jax.device_get(state.trainable), row["held_out_pair_accuracy"], 0
                else:
                    since_best += 1
                if since_best >= self.config.patience:
                    break
        return best, history

    def _tokens(self, system: System, group: Group) -> TokenGroup:
        text = text_group(system, group.component, group.inputs, [c.outputs for c in group.candidates])
        return self._token_group(text, group.rewards)

    def _pair_accuracy(self, trainable: Params, groups: Sequence[TokenGroup]) -> float:
        """Share of held-out pairs in the right order; 0.5 without any pair."""
        params = merge_lora(self._model.params, trainable["lora"], self.config.lora.scale)
        right = total = 0.0
        plan, scoring = plan_batches(groups, self._batch_tokens), self._scoring(params, trainable["head"])
        for members, scores in self._over_batches("score", groups, plan, scoring):
            for place, index in enumerate(members):
                hits, pairs = count_pairs(scores[place], groups[index].rewards, self.config.loss.threshold)
                right, total = right + hits, total + pairs
        return right / total if total else 0.5


def count_pairs(scores: Sequence[float], rewards: Sequence[float], threshold: float) -> tuple[float, int]:
    """How many ordered pairs the scores order alike (equal scores count half), and how many there are."""
    right, pairs = 0.0, 0
    for i, better in enumerate(rewards):
        for j, worse in enumerate(rewards):
            if better - worse > threshold:
                pairs += 1
                right += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return right, pairs


def _has_pairs(group: Group, threshold: float) -> bool:
    return max(group.rewards) - min(group.rewards) > threshold


def _group_digest(group: Group) -> str:
    candidates = [[candidate.outputs, candidate.rewards] for candidate in group.candidates]
    return digest(group.component, group.example_id, group.inputs, candidates)
