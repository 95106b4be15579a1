"""OPRO (Yang et al., 2023): a language model writes new instructions after seeing old ones with their scores.

Unlike the released Optimas code, the proposer sees the current instruction with its own score, what was tried before,
and examples on which the current one fails; and its answer is parsed whole, however many lines it has.
"""

from __future__ import annotations

from optimas_jax.core.types import derive_seed
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.search.instructions import propose_instructions
from optimas_jax.search.task import PromptTask, Proposals
from optimas_jax.search.templates import ScoredInstruction, render_opro

_TEMPERATURE = 0.7  # the paper's
_SHOWN = 5  # instructions with scores
_FAILURES = 3


def opro_requests(task: PromptTask) -> list[CompletionRequest]:
    """``effort.instructions`` requests for one instruction each, equal but for their seeds."""
    component = task.component
    history = [*task.history, ScoredInstruction(task.current.instruction, 0.0)][-_SHOWN:]
    failures = [(step, trace.score) for step, _, trace in task.worst(_FAILURES)]
    style = task.proposer.style
    turns = render_opro(component.description, component.inputs, component.outputs, history, failures, style)
    return [
        task.request(turns, temperature=_TEMPERATURE, seed=derive_seed(task.seed, "opro", component.name, index))
        for index in range(task.effort.instructions)
    ]


def propose(task: PromptTask) -> Proposals:
    """New instructions with the current demonstrations."""
    answers = task.ask(opro_requests(task)) if task.effort.instructions else []
    prompts = propose_instructions(answers, task.current, task.space, task.dropped)
    return [("instruction", prompt) for prompt in prompts]
