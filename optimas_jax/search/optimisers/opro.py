"""OPRO (Yang et al., 2023): a language model writes new instructions from old ones with their scores.

Unlike the released Optimas code, the request has the current instruction with its score, earlier instructions, and
examples on which the current one fails; and the whole answer is parsed, not one line.
"""

from __future__ import annotations

from optimas_jax.core.types import derive_seed
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.search.optimisers.instructions import propose_instructions
from optimas_jax.search.optimisers.task import PromptTask, Proposals
from optimas_jax.search.optimisers.templates import ScoredInstruction, render_opro

_TEMPERATURE = 0.7  # the same as in the released code
_SHOWN = 5  # instructions with scores in a request
_FAILURES = 3  # failed examples in a request


def shown(task: PromptTask) -> list[ScoredInstruction]:
    """The best instructions so far and the one in use, each once, worst first."""
    latest = {item.instruction: item for item in task.history}  # a repeated instruction has its latest score
    latest.pop(task.current.instruction, None)
    best = sorted(latest.values(), key=lambda item: -item.score)[: _SHOWN - 1]
    tried = [*best, ScoredInstruction(task.current.instruction, task.current_score)]
    return sorted(tried, key=lambda item: item.score)


def opro_requests(task: PromptTask) -> list[CompletionRequest]:
    """``effort.instructions`` requests for one instruction each; they differ only in their seeds."""
    component = task.component
    failures = [(call, trace.score, trace.feedback) for call, _, trace in task.worst(_FAILURES)]
    turns = render_opro(
        component.description,
        component.inputs,
        component.outputs,
        shown(task),
        task.current.instruction,
        failures,
        task.scale,
        task.proposer.style,
    )
    return [
        task.request(turns, temperature=_TEMPERATURE, seed=derive_seed(task.seed, "opro", component.name, index))
        for index in range(task.effort.instructions)
    ]


def propose(task: PromptTask) -> Proposals:
    """Proposes new instructions with the current demonstrations."""
    answers = task.ask(opro_requests(task)) if task.effort.instructions else []
    return [("opro", prompt) for prompt in propose_instructions(answers, task.current, task.space, task.dropped)]
