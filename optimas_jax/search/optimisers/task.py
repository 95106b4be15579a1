"""Input and output of an optimiser of prompts, which is one function ``Proposer``: PromptTask -> Proposals.

Optimisers do not run a system, and do not depend on the source of a score. ``PromptTask.gains`` may be the local
reward, which costs one call of the component per input, or the global metric, which also runs all descendants.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from optimas_jax.core.component import Component
from optimas_jax.core.types import Call, Example, Trace
from optimas_jax.core.values import Demo, Prompt, PromptSpace
from optimas_jax.llm.agent import AgentCall, own_instruction
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.component import LanguageModel
from optimas_jax.search.blame import Blame
from optimas_jax.search.optimisers.templates import ScoredInstruction


@dataclasses.dataclass(frozen=True)
class ScoredDemo:
    """A demonstration, the global reward of its output, and the example that it comes from."""

    demo: Demo
    reward: float
    example_id: str


@dataclasses.dataclass(frozen=True)
class Effort:
    """Limits of an optimiser in one iteration.

    Attributes:
      instructions: instructions requested from the proposer; the breadth of COPRO.
      depth: rounds of COPRO.
      rewrites: requests of reflective rewriting.
      demo_sets: sets of bootstrapped demonstrations.
      demo_size: demonstrations per set.
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
      component, space: the component and its space.
      current: its prompt in use.
      runs: training inputs, and traces of the system on them.
      pool: bootstrapped demonstrations.
      labelled: demonstrations whose outputs are gold fields of the training inputs.
      history: earlier instructions with their scores on one scale, under the same configuration and local reward or
        metric.
      current_score: score of the prompt in use on this scale.
      scale: description of the scale, for the proposer.
      proposer: the language model that writes instructions.
      effort: limits.
      seed, rng: sources of all randomness.
      ask: sends requests to the proposer; answers in their order, "" for a failed one.
      gains: mean gain of each prompt over the current one, on the training inputs.
      dropped: callback for rejected answers: (reason, text).
      blame: blame of the components in failed training runs, by example.
      recorded: demonstrations from recorded calls without a score.
    """

    component: Component
    space: PromptSpace
    current: Prompt
    runs: Sequence[tuple[Example, Trace]]
    pool: Sequence[ScoredDemo]
    labelled: Sequence[Demo]
    history: Sequence[ScoredInstruction]
    current_score: float
    scale: str
    proposer: LanguageModel
    effort: Effort
    seed: int
    rng: random.Random
    ask: Callable[[Sequence[CompletionRequest]], Sequence[str]]
    gains: Callable[[Sequence[Prompt]], Sequence[float]]
    dropped: Callable[[str, str], None] = lambda reason, text: None
    blame: Mapping[str, Blame] = dataclasses.field(default_factory=dict)
    recorded: Sequence[Demo] = ()

    def worst(self, count: int) -> list[tuple[Call, Example, Trace]]:
        """The component's steps in the runs with the lowest scores, worst first."""
        name = self.component.name
        reached = [(call, example, trace) for example, trace in self.runs for call in trace.calls_of(name)]
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


def with_own_instruction(component: Component, current: Prompt, runs: Sequence[tuple[Example, Trace]]) -> Prompt:
    """The prompt that proposers improve: the current one, or, where an agent's own system message is in use, one with
    that message as its instruction, if all conversations have the same."""
    call = getattr(component.run, "__self__", None)
    if current.instruction or not isinstance(call, AgentCall) or call.keep:
        return current
    instruction = own_instruction([step.inputs for _, trace in runs for step in trace.calls_of(component.name)])
    fits = isinstance(component.space, PromptSpace) and len(instruction) <= component.space.max_instruction_chars
    return Prompt(instruction, current.demos) if fits else current


Proposals = list[tuple[str, Prompt]]  # (kind, prompt)
Proposer = Callable[[PromptTask], Proposals]
