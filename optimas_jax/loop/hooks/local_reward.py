"""An own local reward, which replaces trained ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

from optimas_jax.core.running.execution import gather
from optimas_jax.core.scoring import is_finite_score, is_number
from optimas_jax.core.selection import OWN_REWARD
from optimas_jax.core.types import digest, thaw
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.hooks.calls import called, returned
from optimas_jax.programs.identity import identity_of
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.engine import RewardEngine
from optimas_jax.rewards.scorer import RewardScorer, ScoredGroup
from optimas_jax.rewards.text import TextGroup
from optimas_jax.search.hooks import function_name, title


@dataclasses.dataclass(frozen=True)
class OwnScorer:
    """Scorer with an own local reward under the name ``OWN_REWARD``; under other names as ``RewardScorer``.

    Scores are on the tape, under keys from the function's code and all candidates of a group: a repetition makes no
    call.

    Attributes:
      function: ``(component, inputs, candidates) -> numbers``, plain or ``async``.
      inner: scorer for other names.
      tape: tape of the run.
      concurrency: calls in flight.
    """

    function: Callable[..., Any]
    inner: RewardScorer
    tape: Tape
    concurrency: int

    @property
    def config(self) -> RewardConfig:
        return self.inner.config

    def scores(self, reward: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        """Scores of every candidate of every group.

        Raises:
          HookBug: the function raised an exception, or did not return a finite number for each candidate.
        """
        if reward != OWN_REWARD:
            return self.inner.scores(reward, groups)
        keys = [self._keys(group) for group in groups]
        scores = self.tape.get_scores([key for row in keys for key in row])
        missing = {tuple(row): group for row, group in zip(keys, groups, strict=True) if not scores.keys() >= set(row)}
        calls = [functools.partial(self._call, keys, group) for keys, group in missing.items()]
        for fresh in gather(calls, concurrency=self.concurrency):
            scores |= fresh
        return [[scores[key] for key in row] for row in keys]

    def logliks(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        """As ``RewardScorer.logliks``."""
        return self.inner.logliks(groups)

    def held_out(self, reward: str) -> dict[str, list[ScoredGroup]]:
        """As ``RewardScorer.held_out``; empty for an own local reward, which is not trained."""
        return {} if reward == OWN_REWARD else self.inner.held_out(reward)

    def check(self, reward: str) -> None:
        """As ``RewardScorer.check``; an own local reward always exists."""
        if reward != OWN_REWARD:
            self.inner.check(reward)

    @functools.cached_property
    def _code(self) -> str:
        return digest(identity_of(self.function))

    def _keys(self, group: TextGroup) -> list[str]:
        whole = digest(OWN_REWARD, self._code, group.component, group.fields, group.outputs)
        return [digest(whole, index) for index in range(len(group.candidates))]

    async def _call(self, keys: Sequence[str], group: TextGroup) -> dict[str, float]:
        """Calls the function on a group, writes the scores to the tape, and returns them by their keys."""
        what, count = title("local reward", function_name(self.function)), len(group.outputs)
        candidates = [thaw(outputs) for outputs in group.outputs]
        value = await called(what, self.function, group.component, thaw(group.fields), candidates)
        scores = value.tolist() if hasattr(value, "tolist") else value
        if (
            not isinstance(scores, list | tuple)
            or len(scores) != count
            or not all(is_number(score) and is_finite_score(score) for score in scores)
        ):
            raise returned(
                what, value, f"a list of {count} finite numbers, one for each candidate of {group.component!r}"
            )
        fresh = {key: float(score) for key, score in zip(keys, scores, strict=True)}
        self.tape.put_scores(fresh)
        return fresh


def with_own_reward(
    rewards: RewardEngine, function: Callable[..., Any] | None, tape: Tape, concurrency: int
) -> RewardEngine:
    """Trainer and scorer of a run, with an own local reward if there is one."""
    if function is None:
        return rewards
    return dataclasses.replace(rewards, scorer=with_own_scores(rewards.scorer, function, tape, concurrency))


def with_own_scores(scorer: RewardScorer, function: Callable[..., Any], tape: Tape, concurrency: int) -> RewardScorer:
    """A scorer that scores by an own local reward under ``OWN_REWARD``, too."""
    return cast(RewardScorer, OwnScorer(function, scorer, tape, concurrency))
