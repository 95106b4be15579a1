"""Reflective rewriting, after GEPA (Agrawal et al., 2025): a language model reads failed runs and rewrites the
instruction to prevent such failures.

GEPA validates every rewrite that is better on a few examples. Here many rewrites are made, each from other failures;
scores on the training inputs screen them, and only the best reach the gate.
"""

from __future__ import annotations

import random

from optimas_jax.core.types import derive_seed
from optimas_jax.search.optimisers.instructions import propose_instructions
from optimas_jax.search.optimisers.task import PromptTask, Proposals
from optimas_jax.search.optimisers.templates import FailedRun, render_reflect

_TEMPERATURE = 1.0
_READ = 3  # failed runs in the request for one rewrite
_REFUSED = 3  # refused instructions in a request, the latest ones


def propose(task: PromptTask) -> Proposals:
    """Proposes ``effort.rewrites`` rewrites of the current instruction, each from a draw of the worse half of the
    runs."""
    component = task.component
    worse = task.worst((len(task.runs) + 1) // 2)
    if not worse:
        return []
    refused = list({item.instruction: item for item in task.history if item.refused}.values())[-_REFUSED:]
    requests = []
    for index in range(task.effort.rewrites):
        seed = derive_seed(task.seed, "reflect", component.name, index)
        drawn = random.Random(seed).sample(worse, min(_READ, len(worse)))
        runs = [
            FailedRun(call, trace.outputs, example.gold, trace.score, trace.feedback, _blamed(task, example.id))
            for call, example, trace in drawn
        ]
        turns = render_reflect(
            component.description,
            component.inputs,
            component.outputs,
            task.current.instruction,
            runs,
            task.proposer.style,
            refused,
        )
        requests.append(task.request(turns, temperature=_TEMPERATURE, seed=seed))
    prompts = propose_instructions(task.ask(requests), task.current, task.space, task.dropped)
    return [("reflect", prompt) for prompt in prompts]


def _blamed(task: PromptTask, example_id: str) -> str:
    """Sentence on the component that is most likely at fault in a run, and whether it is this one; "" if unknown."""
    blame = task.blame.get(example_id)
    if blame is None or not blame.component:
        return ""
    share = f"{blame.shares[blame.component]:.0%} of the blame"
    if blame.component == task.component.name:
        return f"Likeliest at fault: this component ({share})"
    return f"Likeliest at fault: {blame.component} ({share}), not this component"
