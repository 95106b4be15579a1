"""Reflective rewriting, after GEPA (Agrawal et al., 2025): a language model reads runs that failed and rewrites the
instruction so that they would not.

GEPA pays a validation for every rewrite that looks better on a few examples. Here many rewrites are written, each from
other failures; scores on the training inputs screen them, and only the best reach the gate.
"""

from __future__ import annotations

import random

from optimas_jax.core.types import derive_seed
from optimas_jax.search.optimisers.instructions import propose_instructions
from optimas_jax.search.optimisers.task import PromptTask, Proposals
from optimas_jax.search.optimisers.templates import FailedRun, render_reflect

_TEMPERATURE = 1.0
_READ = 3  # failed runs that one rewrite is made from
_REFUSED = 3  # instructions that it is told of, the latest


def propose(task: PromptTask) -> Proposals:
    """``effort.rewrites`` rewrites of the current instruction, each from a draw of the worse half of the runs."""
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
    """Which component is likeliest at fault in a run, and whether it is this one; "" where that is not known."""
    known = task.blame.get(example_id)
    if known is None or not known.component:
        return ""
    share = f"{known.shares[known.component]:.0%} of the blame"
    if known.component == task.component.name:
        return f"Likeliest at fault: this component ({share})"
    return f"Likeliest at fault: {known.component} ({share}), not this component"
