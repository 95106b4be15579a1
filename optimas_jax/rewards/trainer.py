"""Training of local rewards: groups in, the name of a local reward out.

A *local reward* is a name, the digest of the arguments of its training call. Its arrays are a checkpoint of that name,
so a resumed run trains nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from optimas_jax.core.progress import Progress
from optimas_jax.core.selection import agreement
from optimas_jax.core.system import System
from optimas_jax.core.types import Group, StopRun, digest
from optimas_jax.learn.batches import plan_batches
from optimas_jax.learn.fit import fit_head, held_out_scores, score_outputs
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup, are_alike
from optimas_jax.learn.train_state import TrainState, init_state, learning_rate, make_optimizer, means
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lockstep import Shared, together
from optimas_jax.parallel.platform import return_free_memory
from optimas_jax.parallel.transfer import fetch
from optimas_jax.rewards.alignment import pair_accuracy
from optimas_jax.rewards.batches import RewardBatches
from optimas_jax.rewards.pairs import count_pairs, is_informative
from optimas_jax.rewards.scorer import LocalReward
from optimas_jax.rewards.text import output_texts, text_group

_TRAINING_GROUP = 128  # tokens: a batch of T has at most T / 128 groups, so that its step has few shapes


class NonFiniteLoss(StopRun):
    """Training diverged; no checkpoint was saved."""


class RewardTrainer:
    """Trains local rewards of one system."""

    def __init__(
        self,
        batches: RewardBatches,
        checkpoints: CheckpointStore,
        progress: Progress,
        shared: Shared | None = None,
    ):
        """``shared``: see ``parallel.lockstep``."""
        self.shared = shared
        self._batches, self._checkpoints, self._progress = batches, checkpoints, progress
        self._config = batches.config
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # results of _states by digest of the group

    def train(
        self,
        system: System,
        parent: str | None,
        train: Sequence[Group],
        stop: Sequence[Group],
        *,
        epochs: int,
        seed: int,
    ) -> tuple[str, dict[str, Any]]:
        """Trains on the groups with a pair (``rewards.pairs``); fitted heads compute held-out scores of all groups.

        From fresh weights the learning rate warms up to its peak and decays. From a parent it is a constant share of
        the peak (``RewardConfig.adapt_rate``), so that a few fresh groups do not overwrite the parent. Fitted heads
        need no parent, epochs or seed: the caller passes all groups, also those without a pair.

        Args:
          system: renders the groups.
          parent: local reward to start from; None for fresh adapters and heads.
          train: groups to learn from.
          stop: groups whose pair accuracy decides when to stop and which epoch is kept; without groups the last epoch.
            Fitted heads have no epochs.
          epochs: most epochs.
          seed: seed of initial weights and of the order of groups.

        Returns:
          The name of the new local reward, or ``parent`` if no group has a pair; and metadata: ``groups``, the number
          of groups with a pair; ``alike``, the number of groups whose candidates became equal by truncation;
          ``history``, loss and pair accuracies by epoch. For fitted heads also ``base``, the weight of the
          log-likelihood by component, and ``held_out``, the fields of a ``ScoredGroup`` for each group of ``train``, by
          component.

        Raises:
          NonFiniteLoss: if the loss is not finite.
          StopRun: if a step does not fit into memory, or the disk is full.
        """
        learnable, evaluated = self._informative(train), self._informative(stop)
        if parent is not None and not learnable:
            return parent, {"parent": parent, "groups": 0, "alike": 0, "history": []}
        config = dataclasses.asdict(self._config)
        fitted = self._config.heads == "fitted"
        if fitted:
            learnable = [group for group in train if len(group.candidates) > 1]
        data = [[_group_digest(group) for group in part] for part in (learnable, evaluated)]
        how = ("fit",) if fitted else (parent, epochs, seed)
        name = digest("train", config, self._batches.components, data, *how)
        metadata = self._checkpoints.metadata(name, LocalReward)
        if metadata is None:
            if fitted:
                trainable, metadata = self._fit(system, learnable)
            else:
                trainable, metadata = self._train(system, parent, learnable, evaluated, epochs, seed)
            metadata |= {"parent": parent, "seed": seed, "backbone": self._batches.backbone}
            self._checkpoints.save(name, trainable, metadata)
            return_free_memory()
        if metadata["alike"]:
            self._progress.line(
                f"  {metadata['alike']} of {metadata['groups']} groups have candidates that are alike within "
                f"config.reward.batch.group_tokens = {self._config.batch.group_tokens}: raise it"
            )
        return name, metadata

    def _train(
        self,
        system: System,
        parent: str | None,
        train: Sequence[Group],
        stop: Sequence[Group],
        epochs: int,
        seed: int,
    ) -> tuple[Params, dict[str, Any]]:
        batches, config = self._batches, self._config
        trainable = batches.initial(seed) if parent is None else self._checkpoints.load(parent, batches.shapes)
        (learnable, alike), (evaluated, _) = (
            self._tokens(system, self._informative([part for _, part in _in_parts(groups, config.batch.candidates)]))
            for groups in (train, stop)
        )
        metadata = {"groups": len(learnable), "alike": alike, "history": []}
        if not learnable:
            return trainable, metadata
        kept, history = self.learn(fetch(trainable), learnable, evaluated, epochs, seed, parent is None)
        return kept, {**metadata, "history": history}

    @together
    def learn(
        self,
        trainable: Params,
        learnable: list[TokenGroup],
        evaluated: list[TokenGroup],
        epochs: int,
        seed: int,
        fresh: bool,
    ) -> tuple[Params, list[dict[str, float]]]:
        """Trains adapters and heads on groups; see ``train``.

        Args:
          trainable: initial adapters and heads, numpy arrays.
          fresh: whether ``trainable`` has learned nothing before.

        Returns:
          The arrays of the epoch that is kept, and the metrics of each epoch.
        """
        batches, config = self._batches, self._config
        batches.model.check_memory(config.lora, config.batch, "config.reward", shards=batches.model.shards)
        rng = np.random.default_rng(seed)
        most = config.batch_groups or max(1, batches.max_tokens // _TRAINING_GROUP)
        plans = [plan_batches(learnable, batches.max_tokens, most=most, rng=rng) for _ in range(epochs)]
        batches.keep_features(learnable)
        rate = self._offline_rate if fresh else self._adaptation_rate
        kept, best, since_best, history = trainable, -1.0, 0, list[dict[str, float]]()
        for state, row in self._epochs(trainable, learnable, plans, rate):
            row["held_out_pair_accuracy"] = self._pair_accuracy(state.trainable, evaluated)
            history.append(row)
            since_best += 1
            if row["held_out_pair_accuracy"] >= best or not evaluated:  # the later one of equal epochs
                kept, best, since_best = fetch(state.trainable), row["held_out_pair_accuracy"], 0
            if since_best >= config.patience:
                break
        return kept, history

    def _fit(self, system: System, train: Sequence[Group]) -> tuple[Params, dict[str, Any]]:
        """Fits heads in closed form (``learn.fit``); adapters change nothing; metadata as in ``train``."""
        batches, threshold = self._batches, self._config.loss.threshold
        parts = _in_parts(train, self._config.batch.candidates)
        tokens, _ = self._tokens(system, [part for _, part in parts])
        hidden, logliks = (_joined(rows, [index for index, _ in parts]) for rows in self._states(tokens))
        kernel = np.zeros(batches.shapes["head"]["kernel"].shape, np.float32)
        base, held_out = [], {}
        fitted, unseen, labels = [], [], []
        for index, name in enumerate(batches.components):
            groups = [row for row, group in enumerate(train) if group.component == name]
            rewards = [train[row].rewards for row in groups]
            arguments = [hidden[row] for row in groups], [logliks[row] for row in groups], rewards
            head, weight = fit_head(*arguments, threshold)
            if len(head):
                kernel[:, index] = head
            base.append(weight)
            scores = held_out_scores(*arguments, [train[row].example_id for row in groups], threshold)
            held_out[name] = [
                _held_out(system, train[row], logliks[row], of_group)
                for row, of_group in zip(groups, scores, strict=True)
            ]
            fitted += [score_outputs(kernel[:, index], weight, hidden[row], logliks[row]).tolist() for row in groups]
            unseen += [of_group.tolist() for of_group in scores]
            labels += rewards
        informative = self._informative(train)
        row = {
            "pair_accuracy": pair_accuracy(fitted, labels, threshold)[0],
            "held_out_pair_accuracy": pair_accuracy(unseen, labels, threshold)[0],
        }
        metadata = {"groups": len(informative), "alike": self._tokens(system, informative)[1]}
        trainable = {**fetch(batches.initial(0)), "head": {"kernel": kernel}}
        return trainable, {
            **metadata,
            "history": [row] if informative else [],
            "base": base,
            "held_out": held_out,
        }

    def _states(self, groups: Sequence[TokenGroup]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Hidden state [M, D] and log-likelihood [M] of the candidates of each group. The backbone is frozen, so
        results of earlier fits are reused."""
        keys = [digest(group.text) for group in groups]
        new = {key: group for key, group in zip(keys, groups, strict=True) if key not in self._known}
        hidden, logliks = (self.by_group(kind, list(new.values())) for kind in ("hidden", "logliks"))
        self._known |= dict(zip(new, zip(hidden, logliks, strict=True), strict=True))
        return [self._known[key][0] for key in keys], [self._known[key][1] for key in keys]

    @together
    def by_group(self, kind: Literal["hidden", "logliks"], groups: list[TokenGroup]) -> list[np.ndarray]:
        """Hidden states [M, D] or log-likelihoods [M] of the candidates of each group."""
        function = self._batches.hidden if kind == "hidden" else self._batches.logliks
        rows: list[np.ndarray] = [np.zeros(0)] * len(groups)
        for members, values in self._batches.map(kind, groups, function):
            for row, index in enumerate(members):
                rows[index] = values[row][: len(groups[index].candidate_ids)]
        return rows

    def _offline_rate(self, step: int, total: int) -> float:
        return learning_rate(step, total, self._config.learning_rate)

    def _adaptation_rate(self, step: int, total: int) -> float:
        """Warm-up over a tenth of the steps, as the moments of Adam are fresh, then constant; ``step`` counts from
        0."""
        warmup = max(1, total // 10)
        return self._config.learning_rate * self._config.adapt_rate * min(1.0, (step + 1) / warmup)

    def _informative(self, groups: Sequence[Group]) -> list[Group]:
        return [group for group in groups if is_informative(group.rewards, self._config.loss.threshold)]

    def _tokens(self, system: System, groups: Sequence[Group]) -> tuple[list[TokenGroup], int]:
        """Groups as token ids, and the number of groups whose candidates became equal by truncation."""
        tokens, alike = [], 0
        for group in groups:
            text = text_group(system, group.component, group.inputs, [c.outputs for c in group.candidates])
            whole = self._batches.token_group(text, group.rewards)
            tokens.append(self._batches.fit(text, whole))
            alike += are_alike(whole, tokens[-1])
        return tokens, alike

    def _epochs(
        self,
        trainable: Params,
        groups: Sequence[TokenGroup],
        plans: Sequence[Sequence[Sequence[int]]],
        rate: Callable[[int, int], float],
    ) -> Iterator[tuple[TrainState, dict[str, float]]]:
        """The state after each epoch, and its mean metrics; ``plans`` has the batches of each epoch,
        ``rate`` the learning rate by step and number of steps."""
        batches = self._batches
        state = batches.place(init_state(trainable, make_optimizer()))
        total, step = sum(map(len, plans)), 0
        with self._progress.bar("training steps", total) as advance:
            for epoch, plan in enumerate(plans):
                metrics = []
                for members in plan:
                    parts = batches.training_parts([groups[index] for index in members])
                    state, step_metrics = batches.functions.train_step(
                        state, batches.model.params, parts, rate(step, total), batches.lanes
                    )
                    metrics.append(step_metrics)
                    step += 1
                    advance()
                row = means(fetch(metrics))
                if not np.isfinite(row["loss"]):
                    raise NonFiniteLoss(
                        f"the loss became {row['loss']} in epoch {epoch + 1}: lower config.reward.learning_rate "
                        f"({self._config.learning_rate})"
                    )
                yield state, row

    def _pair_accuracy(self, trainable: Params, groups: Sequence[TokenGroup]) -> float:
        """Share of the pairs in the right order; 0.5 without any pair."""
        right = total = 0.0
        scoring = self._batches.scoring(trainable)
        for members, scores in self._batches.map("score", groups, scoring):
            for row, index in enumerate(members):
                hits, pairs = count_pairs(scores[row].tolist(), groups[index].rewards, self._config.loss.threshold)
                right, total = right + hits, total + pairs
        return right / total if total else 0.5


def _in_parts(groups: Sequence[Group], most: int) -> list[tuple[int, Group]]:
    """Groups split into parts that fit into a batch, each with the index of the whole group. Pairs across the parts of
    a group are left out where heads are trained by gradient steps."""
    return [
        (index, dataclasses.replace(group, candidates=group.candidates[start : start + most]))
        for index, group in enumerate(groups)
        for start in range(0, len(group.candidates), most)
    ]


def _joined(parts: Sequence[np.ndarray], wholes: Sequence[int]) -> list[np.ndarray]:
    """One array for each whole group: the arrays of its parts, which follow each other."""
    rows: dict[int, list[np.ndarray]] = {}
    for part, whole in zip(parts, wholes, strict=True):
        rows.setdefault(whole, []).append(part)
    return [np.concatenate(of_whole) for of_whole in rows.values()]


def _held_out(system: System, group: Group, logliks: np.ndarray, scores: np.ndarray) -> list[Any]:
    """The fields of a ``ScoredGroup``."""
    agreed = agreement(output_texts(system, group.component, [c.outputs for c in group.candidates]))
    by_candidate = [list(group.rewards), scores.tolist(), logliks.tolist(), agreed]
    return [group.configuration, group.example_id, *by_candidate]


def _group_digest(group: Group) -> str:
    candidates = [[candidate.outputs, candidate.rewards] for candidate in group.candidates]
    occurrence = (group.occurrence,) if group.occurrence else ()
    return digest(group.component, group.example_id, group.configuration, group.inputs, candidates, *occurrence)
