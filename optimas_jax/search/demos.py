"""Demonstrations: bootstrapped from the best trajectories, as DSPy's few-shot bootstrapping does for whole programs,
where here each component draws on its own candidates and their Monte Carlo rewards; and labelled ones, for components
whose outputs the examples have."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimas_jax.core.system import Component
from optimas_jax.core.types import Example, Group, Trace, derive_seed, digest
from optimas_jax.core.values import Demo, Prompt

if TYPE_CHECKING:
    from optimas_jax.search.task import PromptTask, Proposals


@dataclasses.dataclass(frozen=True)
class ScoredDemo:
    """A demonstration, the global reward that its output led to, and the example it came from."""

    demo: Demo
    reward: float
    example_id: str


def demo_pool(groups: Sequence[Group], *, min_reward: float, max_chars: int = 1500) -> list[ScoredDemo]:
    """The best candidate of every group whose reward is at least ``min_reward``: best first, then the latest, which the
    system as it is now made.

    Among equally rewarded candidates of a group the shortest is taken; groups whose demonstration would be longer than
    ``max_chars`` are left out.
    """
    pool: dict[str, ScoredDemo] = {}
    for group in reversed(groups):
        made = [candidate for candidate in group.candidates if candidate.outputs]
        if not made:
            continue
        best = min(made, key=lambda c: (-c.reward, len(str(dict(c.outputs)))))
        length = len(str(dict(group.inputs))) + len(str(dict(best.outputs)))
        if best.reward >= min_reward and length <= max_chars:
            one = ScoredDemo(Demo(group.inputs, best.outputs), best.reward, group.example_id)
            pool.setdefault(digest(group.example_id, group.inputs, best.outputs, best.reward), one)
    return sorted(pool.values(), key=lambda scored: -scored.reward)


def propose_demos(
    pool: Sequence[ScoredDemo], current: Prompt, *, size: int, count: int, rng: random.Random
) -> list[Prompt]:
    """Up to ``count`` prompts with the current instruction and ``size`` demonstrations each.

    The first takes the best of the pool; the others draw without replacement, with chances in proportion to the
    square of the reward. No two demonstrations of a prompt come from the same example.
    """
    prompts: list[Prompt] = []
    for index in range(4 * count):
        if len(prompts) == count:
            break
        weights = [scored.reward**2 + 1e-6 for scored in pool]
        drawn = list(pool) if index == 0 else _weighted_order(pool, weights, rng)
        chosen: list[ScoredDemo] = []
        for scored in drawn:
            if len(chosen) < size and scored.example_id not in {other.example_id for other in chosen}:
                chosen.append(scored)
        prompt = Prompt(current.instruction, tuple(scored.demo for scored in chosen))
        if chosen and prompt != current and prompt not in prompts:
            prompts.append(prompt)
    return prompts


def propose(task: PromptTask) -> Proposals:
    """The current instruction with bootstrapped demonstrations; and for every three such sets one of labelled ones."""
    size, count = min(task.effort.demo_size, task.space.max_demos), task.effort.demo_sets
    made = propose_demos(task.pool, task.current, size=size, count=count, rng=task.rng)
    labelled = [Prompt(task.current.instruction, demos) for demos in labelled_sets(task, -(-count // 3))]
    return [("demos", prompt) for prompt in made] + [("labelled", prompt) for prompt in labelled]


def labelled_sets(task: PromptTask, count: int) -> list[tuple[Demo, ...]]:
    """Random sets of labelled demonstrations; none where there are no labels."""
    size = min(task.effort.demo_size, task.space.max_demos, len(task.labelled))
    rng = random.Random(derive_seed(task.seed, "labelled"))
    return [tuple(rng.sample(list(task.labelled), size)) for _ in range(count)] if size else []


def labelled_demos(component: Component, runs: Sequence[tuple[Example, Trace]], max_chars: int = 1500) -> list[Demo]:
    """Demonstrations of a component whose outputs the examples have as gold fields; none of other components."""
    made = []
    for example, trace in runs:
        if component.name in trace.steps and all(isinstance(example.gold.get(o), str) for o in component.outputs):
            demo = Demo(trace.steps[component.name].inputs, {name: example.gold[name] for name in component.outputs})
            if len(str(dict(demo.inputs))) + len(str(dict(demo.outputs))) <= max_chars:
                made.append(demo)
    return made


def _weighted_order(pool: Sequence[ScoredDemo], weights: Sequence[float], rng: random.Random) -> list[ScoredDemo]:
    """A random order in which heavy items tend to come first (Efraimidis and Spirakis, 2006)."""
    keys = [rng.random() ** (1.0 / weight) for weight in weights]
    return [scored for _, scored in sorted(zip(keys, pool, strict=True), key=lambda item: -item[0])]
