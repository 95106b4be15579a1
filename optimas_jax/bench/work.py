"""The work of a measurement: drawn from a seed, the same for every side. Numpy and the standard library only.

A ``Case`` defines sizes, ``draw`` fills it with token ids, and ``Work`` is sent to every side as JSON. Peers import
this module in environments without JAX, so it must not import JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from optimas_jax.learn.token_group import TokenGroup

Task = Literal["score", "train", "generate", "ppo", "grpo"]


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of a piece of work. A repeat takes the next ``per_repeat`` of ``total`` groups or requests, cyclically.

    Attributes:
      suite: name of its suite.
      name: unique within the suite.
      task: what is done with groups (``score``, ``train``), requests (``generate``) or prompts (``ppo``, ``grpo``:
        sample answers, compute their statistics, update).
      total, per_repeat: groups, requests or prompts; ``total`` is a multiple of ``per_repeat``.
      candidates: M of a group; number of answers to a prompt.
      prefix: tokens shared by the candidates of a group, or by all requests.
      tokens: fewest and most tokens of a candidate, or of the part of a prompt after the shared prefix.
      rank: LoRA rank on all layers, for training.
      new_tokens: exact number of tokens of every answer; greedy for ``generate``, else at temperature 1.
      together: most requests in one batch.
      epochs: epochs over a rollout, one step each.
    """

    suite: str
    name: str
    task: Task
    total: int
    per_repeat: int
    candidates: int = 1
    prefix: int = 0
    tokens: tuple[int, int] = (64, 64)
    rank: int = 32
    new_tokens: int = 32
    together: int = 64
    epochs: int = 2

    @property
    def is_policy(self) -> bool:
        return self.task in ("ppo", "grpo")

    def units(self) -> dict[str, float]:
        """Number of units of one repeat, by name of the rate; divided by its seconds they are the compared rates."""
        if self.task == "generate":
            return {"requests/s": self.per_repeat, "sampled tokens/s": self.per_repeat * self.new_tokens}
        if self.is_policy:
            return {"episodes/s": self.per_repeat * self.candidates}
        if self.task == "train":
            return {"groups/s": self.per_repeat}
        units = {"candidates/s": float(self.per_repeat * self.candidates)}
        if self.candidates == 1:
            units["tokens/s"] = float(self.per_repeat * (self.prefix + self.tokens[1]))
        return units


@dataclasses.dataclass(frozen=True)
class Work:
    """A case with its data.

    Attributes:
      case: its sizes.
      model: spec of the weights (``checkpoints.sources``).
      groups: for ``score`` and ``train``; the rewards of a group are all different, so every pair is ordered.
      head: [D] weights of the reward head.
      prompts: token ids; the first ``case.prefix`` tokens of all prompts are equal.
      folder: the same weights as a Hugging Face folder, for peers; empty if not needed.
      gguf: the GGUF file of the weights; empty if they have another format.
    """

    case: Case
    model: str
    groups: tuple[TokenGroup, ...] = ()
    head: tuple[float, ...] = ()
    prompts: tuple[tuple[int, ...], ...] = ()
    folder: str = ""
    gguf: str = ""

    def groups_of(self, repeat: int) -> list[TokenGroup]:
        return [self.groups[index] for index in self._indices(repeat)]

    def prompts_of(self, repeat: int) -> list[tuple[int, ...]]:
        return [self.prompts[index] for index in self._indices(repeat)]

    def _indices(self, repeat: int) -> Iterator[int]:
        start = repeat * self.case.per_repeat
        return (index % self.case.total for index in range(start, start + self.case.per_repeat))


def draw(case: Case, model: str, vocabulary: Sequence[int], embed_dim: int, seed: int = 0) -> Work:
    """Draws token ids of a case uniformly from ``vocabulary`` (no special tokens), and a reward head."""
    rng = np.random.default_rng(seed)
    ids = np.asarray(vocabulary)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.choice(ids, count).tolist())

    def part() -> tuple[int, ...]:
        return tokens(int(rng.integers(case.tokens[0], case.tokens[1] + 1)))

    if case.task == "generate" or case.is_policy:
        shared = tokens(case.prefix)
        return Work(case, model, prompts=tuple((*shared, *part()) for _ in range(case.total)))
    groups = [
        TokenGroup(
            prefix_ids=tokens(case.prefix),
            candidate_ids=tuple(part() for _ in range(case.candidates)),
            rewards=tuple((rng.permutation(case.candidates) / case.candidates).tolist()),
            component=0,
        )
        for _ in range(case.total)
    ]
    head = rng.standard_normal(embed_dim) / embed_dim**0.5
    return Work(case, model, groups=tuple(groups), head=tuple(head.tolist()))


def score(answer: Sequence[int]) -> float:
    """The reward of an answer: the share of even token ids. It takes no time on any side."""
    return sum(token % 2 == 0 for token in answer) / len(answer)


def to_json(work: Work) -> dict[str, Any]:
    return dataclasses.asdict(work)


def from_json(data: Mapping[str, Any]) -> Work:
    """The inverse of ``to_json``, after JSON has turned tuples into lists."""
    case = Case(**{**data["case"], "tokens": tuple(data["case"]["tokens"])})
    groups = tuple(
        TokenGroup(
            tuple(group["prefix_ids"]),
            tuple(map(tuple, group["candidate_ids"])),
            tuple(group["rewards"]),
            group["component"],
        )
        for group in data["groups"]
    )
    prompts = tuple(map(tuple, data["prompts"]))
    return Work(case, data["model"], groups, tuple(data["head"]), prompts, data["folder"], data["gguf"])
