"""COPRO (DSPy; Khattab et al., 2023): coordinate ascent over instructions.

The first of ``depth`` rounds rewrites the instruction in use; the request of every later one shows the instructions
tried so far with their scores, worst first, and asks for better ones.
"""

from __future__ import annotations

from optimas_jax.core.types import derive_seed
from optimas_jax.core.values import Prompt
from optimas_jax.search.optimisers.instructions import propose_instructions
from optimas_jax.search.optimisers.task import PromptTask, Proposals
from optimas_jax.search.optimisers.templates import ScoredInstruction, render_copro

_TEMPERATURE = 1.0  # rewrites of one text have to differ
_SHOWN = 6  # number of tried instructions in a request, the best ones


def propose(task: PromptTask) -> Proposals:
    """Proposes every instruction of every round, with the current demonstrations."""
    component, effort = task.component, task.effort
    tried: dict[Prompt, float] = {task.current: 0.0}
    for level in range(effort.depth if effort.instructions else 0):
        ranked = sorted(tried.items(), key=lambda item: item[1])[-_SHOWN:]
        turns = render_copro(
            component.description,
            component.inputs,
            component.outputs,
            [ScoredInstruction(prompt.instruction, gain) for prompt, gain in ranked],
            task.proposer.style,
        )
        seeds = [derive_seed(task.seed, "copro", component.name, level, index) for index in range(effort.instructions)]
        answers = task.ask([task.request(turns, temperature=_TEMPERATURE, seed=seed) for seed in seeds])
        prompts = propose_instructions(answers, task.current, task.space, task.dropped)
        fresh = [prompt for prompt in prompts if prompt not in tried]
        tried.update(zip(fresh, task.gains(fresh), strict=True))
    return [("copro", prompt) for prompt in tried if prompt != task.current]
