"""Random search, the baseline that every optimiser should beat: prompts and listed values drawn blindly."""

from __future__ import annotations

import random
from collections.abc import Sequence

from optimas_jax.core.types import derive_seed
from optimas_jax.core.values import Prompt, Value
from optimas_jax.search.optimisers.instructions import propose_instructions
from optimas_jax.search.optimisers.task import PromptTask, Proposals
from optimas_jax.search.optimisers.templates import render_blind

_TEMPERATURE = 1.0


def propose(task: PromptTask) -> Proposals:
    """Proposes random pairs of an instruction, written without knowledge of scores, and a random set of
    demonstrations."""
    component, effort = task.component, task.effort
    turns = render_blind(component.description, component.inputs, component.outputs, task.proposer.style)
    seeds = [derive_seed(task.seed, "random", component.name, index) for index in range(effort.instructions)]
    answers = task.ask([task.request(turns, temperature=_TEMPERATURE, seed=seed) for seed in seeds])
    proposed = propose_instructions(answers, Prompt(task.current.instruction), task.space, task.dropped)
    instructions = [task.current.instruction, *(prompt.instruction for prompt in proposed)]
    pool = [*task.labelled, *(scored.demo for scored in task.pool)]
    rng = random.Random(derive_seed(task.seed, "random", component.name))
    most = min(effort.demo_size, task.space.max_demos, len(pool)) if effort.demo_sets else 0
    prompts: list[Prompt] = []
    for _ in range(effort.instructions + effort.demo_sets):
        prompt = Prompt(rng.choice(instructions), tuple(rng.sample(pool, rng.randint(0, most))))
        if prompt != task.current and prompt not in prompts:
            prompts.append(prompt)
    return [("random", prompt) for prompt in prompts]


def draw_values(values: Sequence[Value], count: int, seed: int) -> list[Value]:
    """Up to ``count`` of the values, drawn at random without replacement."""
    return random.Random(seed).sample(list(values), min(count, len(values)))
