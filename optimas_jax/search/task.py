"""What a proposer of prompts is given, and what it gives back. Every optimiser of prompts is one function of this kind.

Optimisers decide; they neither run a system nor know where a score comes from. ``PromptTask.gains`` may be the local
reward, which costs one call of the component per input, or the global metric, which runs everything behind it again.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from optimas_jax.core.system import Component
from optimas_jax.core.types import Example, Step, Trace
from optimas_jax.core.values import Demo, Prompt, PromptSpace
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel
from optimas_jax.search.demos import ScoredDemo
from optimas_jax.search.templates import ScoredInstruction


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much an optimiser may try in one iteration.

    Attributes:
      instructions: that a proposer is asked for; the breadth of COPRO.
      depth: rounds of COPRO.
      rewrites: of reflective rewriting.
      demo_sets: sets of bootstrapped demonstrations.
      demo_size: demonstrations of a set.
      trials: points that TPE may score.
    """

    instructions: int
    depth: int
    rewrites: int
    demo_sets: int
    demo_size: int
    trials: int


@dataclasses.dataclass(frozen=True)
class PromptTask:
    """One component whose prompt is to be improved.

    Attributes:
      component, space, current: what is tuned, and its prompt in use.
      runs: training inputs and what the system did on them.
      pool: demonstrations taken from good runs.
      labelled: demonstrations whose outputs are gold fields of the training inputs.
      history: instructions tried before, with their gains.
      proposer: the language model to ask.
      effort: how much to try.
      seed, rng: name all randomness.
      ask: answers of the proposer to requests, in their order; "" for an answer that failed.
      gains: mean gain of each prompt over the current one, on the training inputs.
      dropped: is told the reason and the text of every answer that is no instruction.
    """

    component: Component
    space: PromptSpace
    current: Prompt
    runs: Sequence[tuple[Example, Trace]]
    pool: Sequence[ScoredDemo]
    labelled: Sequence[Demo]
    history: Sequence[ScoredInstruction]
    proposer: LanguageModel
    effort: Effort
    seed: int
    rng: random.Random
    ask: Callable[[Sequence[CompletionRequest]], Sequence[str]]
    gains: Callable[[Sequence[Prompt]], Sequence[float]]
    dropped: Callable[[str, str], None] = lambda reason, text: None

    def worst(self, count: int) -> list[tuple[Step, Example, Trace]]:
        """What the component did in the badly scored runs, worst first."""
        name = self.component.name
        reached = [(trace.steps[name], example, trace) for example, trace in self.runs if name in trace.steps]
        return sorted(reached, key=lambda item: item[2].score)[:count]

    def request(self, turns: Sequence[tuple[str, str]], *, temperature: float, seed: int) -> CompletionRequest:
        """A request to the proposer."""
        return CompletionRequest(
            model=self.proposer.model,
            messages=tuple(Message(role, text) for role, text in turns),
            max_tokens=self.proposer.max_tokens,
            temperature=temperature,
            stop=("\n\n",) if self.proposer.style == "text" else (),
            seed=seed,
            role="proposer",
        )


Proposals = list[tuple[str, Prompt]]  # (kind, prompt)
Proposer = Callable[[PromptTask], Proposals]
