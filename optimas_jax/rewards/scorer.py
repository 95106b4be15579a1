"""Scores of outputs under a named local reward. Scoring never trains; scores are recorded on the tape.

Groups with more candidates than fit into a batch are scored in parts.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, NotRequired

import numpy as np
from typing_extensions import TypedDict

from optimas_jax.core.progress import Progress
from optimas_jax.core.selection import LIKELIHOOD, MAJORITY, RANDOM, agreement, random_score
from optimas_jax.core.system import System
from optimas_jax.core.types import Group, StopRun, digest
from optimas_jax.learn.store import CheckpointError, CheckpointStore
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.models.lora import Params
from optimas_jax.parallel.lockstep import Shared, together
from optimas_jax.rewards.batches import BatchFunction, RewardBatches
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.text import TextGroup, output_texts, text_group

Fields = Mapping[str, Any]


class ScoredGroup(NamedTuple):
    """One group with the scores of a local reward and of the controls.

    Attributes:
      configuration: digest of the group's configuration.
      example_id: id of its example.
      rewards, scores, logliks, agreement: global reward, local score, log-likelihood, and agreement with the other
        candidates (``core.selection.agreement``) of each candidate, the output in use first.
    """

    configuration: str
    example_id: str
    rewards: Sequence[float]
    scores: Sequence[float]
    logliks: Sequence[float]
    agreement: Sequence[float]


class LocalReward(TypedDict):
    """Metadata of a checkpoint of local rewards (``rewards.trainer``)."""

    groups: int
    alike: int
    history: list[dict[str, float]]
    backbone: NotRequired[dict[str, Any]]
    base: NotRequired[list[float]]
    held_out: NotRequired[dict[str, list[list[str | list[float]]]]]


Kind = Literal["score", "loglik"]


class RewardScorer:
    """Local rewards and log-likelihoods, memoised on the tape by local reward and text."""

    def __init__(
        self,
        batches: RewardBatches,
        checkpoints: CheckpointStore,
        tape: Tape,
        progress: Progress,
        shared: Shared | None = None,
    ):
        """``shared``: see ``parallel.lockstep``."""
        self.shared = shared
        self._lock = threading.Lock()  # guards the loaded weights, where several processes load and score in turn
        self._batches, self._checkpoints, self._tape, self._progress = batches, checkpoints, tape, progress
        self._loaded: tuple[str, BatchFunction[list[np.ndarray]]] | None = None  # the last one used
        self._fitted: dict[str, Mapping[str, Any]] = {}  # metadata of fitted heads, by name of the local reward

    @property
    def config(self) -> RewardConfig:
        return self._batches.config

    def scores(self, reward: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        """Scores of every candidate of every group under the local reward named ``reward``; ``LIKELIHOOD`` names the
        log-likelihood."""
        if reward == LIKELIHOOD:
            return self.logliks(groups)
        scores = self._memoised("score", reward, groups)
        base = self._of_fitted(reward).get("base")
        if base is None:
            return scores
        weights = dict(zip(self._batches.components, base, strict=True))
        return [
            [score + weights[group.component] * likely for score, likely in zip(row, logliks, strict=True)]
            for group, row, logliks in zip(groups, scores, self.logliks(groups), strict=True)
        ]

    def logliks(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """Log-probability of every candidate given its prefix under the untrained backbone, in nats."""
        return self._memoised("loglik", self.config.model, groups)

    def held_out(self, reward: str) -> dict[str, list[ScoredGroup]]:
        """The groups that heads were fitted on, by component, with held-out scores, that is, from heads fitted without
        their input; empty for trained heads."""
        rows = self._of_fitted(reward).get("held_out", {})
        try:
            return {name: [ScoredGroup(*row) for row in of_component] for name, of_component in rows.items()}
        except TypeError as error:
            folder = self._checkpoints.folder / reward
            raise CheckpointError(f"{folder} is damaged ({error}): delete it, it will be trained again") from error

    def _of_fitted(self, reward: str) -> Mapping[str, Any]:
        if reward not in self._fitted:
            metadata = self._checkpoints.metadata(reward, LocalReward) or {}
            self._fitted[reward] = {key: metadata[key] for key in ("base", "held_out") if key in metadata}
        return self._fitted[reward]

    def check(self, reward: str) -> None:
        """Raises ``StopRun`` if the run has no local reward of that name, or its backbone differs."""
        if reward == LIKELIHOOD:
            return
        metadata = self._checkpoints.metadata(reward, LocalReward)
        if metadata is None:
            raise StopRun(
                f"no local reward {reward!r} in {self._checkpoints.folder}: a configuration that chooses outputs by it "
                "runs in the folder that trained it, or from a whole best/ folder (config.evaluate.folder), which "
                "carries it"
            )
        actual = self._batches.backbone
        trained = metadata.get("backbone", actual)
        if trained != actual:
            raise StopRun(
                f"local reward {reward!r} was trained as {trained}, and config.reward and the system make it {actual}: "
                "set them alike"
            )

    def _memoised(self, kind: Kind, name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        whole, most = groups, self.config.batch.candidates
        parts = [
            (index, dataclasses.replace(group, candidates=group.candidates[start : start + most]))
            for index, group in enumerate(whole)
            for start in range(0, len(group.candidates), most)
        ]
        groups = [part for _, part in parts]
        keys = [[digest(kind, name, g.component, g.prefix, text) for text in g.candidates] for g in groups]
        scored = self._tape.get_scores([key for row in keys for key in row])
        missing = [index for index, row in enumerate(keys) if any(key not in scored for key in row)]
        if missing:
            scored |= self._compute(
                kind, name, [groups[index] for index in missing], [keys[i] for i in missing], scored
            )
        scores: list[list[float]] = [[] for _ in whole]
        for (index, _), row in zip(parts, keys, strict=True):
            scores[index] += [scored[key] for key in row]
        return scores

    def _compute(
        self,
        kind: Kind,
        name: str,
        groups: Sequence[TextGroup],
        keys: Sequence[Sequence[str]],
        known: Mapping[str, float],
    ) -> dict[str, float]:
        """Computes the scores that are not ``known`` yet, by key; each batch is on the tape before the next one begins.

        The scores of one text in two groups may differ in the last digits: the first group's score is kept.
        """
        first = {key: index for index, row in reversed(list(enumerate(keys))) for key in row}
        tokens = [self._batches.fit(group, self._batches.token_group(group)) for group in groups]
        count, computed = len(self._batches.plan(tokens)), dict[str, float]()
        bar = self._progress.bar(f"local {kind}s", count) if count > 1 else nullcontext(lambda: None)
        with bar as advance:
            for members, values in self._by_batch(kind, name, tokens):
                fresh = {
                    key: float(value)
                    for row, index in enumerate(members)
                    for key, value in zip(keys[index], values[row], strict=False)
                    if first[key] == index and key not in known
                }
                self._tape.put_scores(fresh)
                computed |= fresh
                advance()
        return computed

    def _by_batch(
        self, kind: Kind, name: str, groups: Sequence[TokenGroup]
    ) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """Indices of the groups of each batch, and [M] scores or log-likelihoods of each group; other processes compute
        one batch at a time."""
        if self.shared is None:
            yield from self._batches.map(kind, groups, self._function(kind, name))
            return
        for members in self._batches.plan(groups):
            with self._lock:
                self._function(kind, name)  # loads
                values = self.score_batch(kind, name, [groups[index] for index in members])
            yield members, values

    @together
    def score_batch(self, kind: Kind, name: str, groups: list[TokenGroup]) -> list[np.ndarray]:
        """[M] scores under the loaded local reward, or log-likelihoods, of the groups of one batch."""
        rows: list[np.ndarray] = [np.zeros(0)] * len(groups)
        for members, values in self._batches.map(kind, groups, self._function(kind, name)):
            for index, value in zip(members, values, strict=True):
                rows[index] = value
        return rows

    def _function(self, kind: Kind, name: str) -> BatchFunction[list[np.ndarray]]:
        """The function that returns the scores, or log-likelihoods, of a batch, [G, M] float32."""
        if kind == "score":
            return self._load(name)
        return self._batches.logliks

    def _load(self, reward: str) -> BatchFunction[list[np.ndarray]]:
        if self._loaded is None or self._loaded[0] != reward:
            self.use(reward, self._checkpoints.load(reward, self._batches.shapes))
        assert self._loaded is not None
        return self._loaded[1]

    @together
    def use(self, reward: str, trainable: Params) -> None:
        """Loads adapters and heads of a local reward, which replace the loaded ones."""
        self._loaded = reward, self._batches.scoring(self._batches.place(trainable))


def score_outputs(
    scorer: RewardScorer, system: System, reward: str, component: str, rows: Sequence[tuple[Fields, Sequence[Fields]]]
) -> list[list[float]]:
    """Local rewards of several outputs on each of several inputs.

    Args:
      rows: (inputs, outputs to score) of each input.

    Returns:
      Scores by input and output.
    """
    return scorer.scores(reward, [text_group(system, component, inputs, outputs) for inputs, outputs in rows])


def score_groups(scorer: RewardScorer, system: System, reward: str, groups: Sequence[Group]) -> list[ScoredGroup]:
    """Groups with scores of the local reward named ``reward`` and of the controls."""
    texts = [text_group(system, g.component, g.inputs, [c.outputs for c in g.candidates]) for g in groups]
    scores, logliks = scorer.scores(reward, texts), scorer.logliks(texts)
    return [
        ScoredGroup(
            group.configuration,
            group.example_id,
            group.rewards,
            scores[row],
            logliks[row],
            agreement(output_texts(system, group.component, [c.outputs for c in group.candidates])),
        )
        for row, group in enumerate(groups)
    ]


class InstanceScorer:
    """``core.selection.Scorer``: scores the outputs among which a ``PerInstance`` value chooses, while a system runs.

    Choices are scored one after the other in a separate thread, so that requests in flight continue, and each in a
    separate batch, so that scores do not depend on other choices.
    """

    def __init__(self, scorer: RewardScorer, system: System, seed: int):
        """``seed``: seed of the run, for random numbers instead of local rewards."""
        self._scorer, self._system, self._seed = scorer, system, seed
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="local-rewards")

    async def scores(
        self, component: str, example_id: str, inputs: Fields, outputs: Sequence[Fields], reward: str
    ) -> Sequence[float]:
        """Scores of outputs on one input; raises ``StopRun`` if the run has no such local reward."""
        if reward == MAJORITY:
            return agreement(output_texts(self._system, component, outputs))
        if reward == RANDOM:
            return [random_score(self._seed, component, example_id, fields) for fields in outputs]

        def score() -> list[float]:
            self._scorer.check(reward)
            [row] = score_outputs(self._scorer, self._system, reward, component, [(inputs, outputs)])
            return row

        return await asyncio.get_running_loop().run_in_executor(self._thread, score)
