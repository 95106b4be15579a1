"""MIPROv2 (Opsahl-Ong et al., 2024): instructions and demonstrations together.

Sets of demonstrations come from labelled examples and from good runs. A language model proposes instructions from a
summary of the data, a draw of the demonstrations and an aim. TPE searches the product of both. It scores every point on
all training inputs of the iteration, because a local reward makes this cheap; MIPROv2 scores on minibatches, and only
the best points on all inputs.
"""

from __future__ import annotations

import random

from optimas_jax.core.types import derive_seed
from optimas_jax.core.values import Demo, Prompt
from optimas_jax.search.optimisers.choices import maximise
from optimas_jax.search.optimisers.demos import labelled_sets, propose_demos
from optimas_jax.search.optimisers.instructions import propose_instructions
from optimas_jax.search.optimisers.task import PromptTask, Proposals
from optimas_jax.search.optimisers.templates import render_data_summary, render_grounded

_TEMPERATURE = 1.0
_SUMMARISED = 5  # runs in the request for a summary
_AIMS = (
    "Keep it short and plain.",
    "Say exactly what form the answer has.",
    "Say what to look at first, and what to leave out.",
    "Name the mistake that is easiest to make, and how to avoid it.",
    "Address an expert in this very task.",
    "Be original.",
)


def demo_candidates(task: PromptTask) -> list[tuple[Demo, ...]]:
    """Sets of demonstrations to choose from: none, the ones in use, labelled ones, and ``effort.demo_sets``
    bootstrapped sets."""
    size = min(task.effort.demo_size, task.space.max_demos)
    sets: list[tuple[Demo, ...]] = [(), task.current.demos, *labelled_sets(task, 1)]
    if size:
        bootstrapped = propose_demos(task.pool, task.current, size=size, count=task.effort.demo_sets, rng=task.rng)
        sets += [prompt.demos for prompt in bootstrapped]
    return [demos for index, demos in enumerate(sets) if demos not in sets[:index]]


def grounded_instructions(task: PromptTask, sets: list[tuple[Demo, ...]]) -> list[str]:
    """The instruction in use, and new ones written with a summary of the data in the request."""
    component, style = task.component, task.proposer.style
    described = (component.description, component.inputs, component.outputs)
    name = component.name
    steps = [trace.first(name) for _, trace in task.runs if trace.reaches(name)][:_SUMMARISED]
    summary_request = task.request(
        render_data_summary(*described, steps, style), temperature=0.0, seed=derive_seed(task.seed, "summary", name)
    )
    requests = []
    if task.effort.instructions:
        [summary] = task.ask([summary_request])
        for index in range(task.effort.instructions):
            seed = derive_seed(task.seed, "mipro", name, index)
            rng = random.Random(seed)
            turns = render_grounded(
                *described, task.current.instruction, summary, rng.choice(sets), rng.choice(_AIMS), style
            )
            requests.append(task.request(turns, temperature=_TEMPERATURE, seed=seed))
    answers = task.ask(requests) if requests else []
    prompts = propose_instructions(answers, Prompt(task.current.instruction), task.space, task.dropped)
    return [task.current.instruction, *(prompt.instruction for prompt in prompts)]


def propose(task: PromptTask) -> Proposals:
    """Proposes every pair of instruction and demonstrations that the search scored."""
    sets = demo_candidates(task)
    instructions = grounded_instructions(task, sets)

    def prompt(point: dict[str, int]) -> Prompt:
        return Prompt(instructions[point["instruction"]], sets[point["demos"]])

    tried = maximise(
        {"instruction": range(len(instructions)), "demos": range(len(sets))},
        lambda points: task.gains([prompt(point) for point in points]),
        trials=task.effort.trials,
        seed=derive_seed(task.seed, "tpe", task.component.name),
    )
    return [("mipro", prompt(point)) for point, _ in tried if prompt(point) != task.current]
