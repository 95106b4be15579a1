"""Bootstrapped and labelled demonstrations.

Bootstrapped demonstrations are a component's best candidates by Monte Carlo reward (DSPy's few-shot bootstrapping does
this for whole programs). Labelled demonstrations are for components whose outputs are gold fields of the examples."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

from optimas_jax.core.component import Component
from optimas_jax.core.types import Example, Group, Trace, derive_seed, digest, thaw
from optimas_jax.core.values import Demo, Prompt
from optimas_jax.search.optimisers.task import PromptTask, Proposals, ScoredDemo


def demo_pool(
    groups: Sequence[Group], *, max_chars: int = 1500, component: Component | None = None
) -> list[ScoredDemo]:
    """The best candidate of every group if its reward is above the mean over all candidates: best first, then latest.

    Among equally rewarded candidates of a group the shortest is taken; groups whose demonstration would be longer than
    ``max_chars`` are left out.

    Args:
      component: component of the groups. For an agent, demonstrations show only the conversation among its inputs.
    """
    of_agent = component.inputs if component is not None and component.route is not None else ()
    pool: dict[str, ScoredDemo] = {}
    rewards = [reward for group in groups for reward in group.rewards]
    mean = statistics.fmean(rewards) if rewards else 0.0
    for group in reversed(groups):
        answered = [candidate for candidate in group.candidates if candidate.outputs]
        if not answered:
            continue
        best = min(answered, key=lambda c: (-c.reward, len(str(dict(c.outputs)))))
        read = {name: thaw(group.inputs[name]) for name in of_agent} if of_agent else dict(group.inputs)
        length = len(str(read)) + len(str(dict(best.outputs)))
        if best.reward > mean and not math.isclose(best.reward, mean) and length <= max_chars:
            shown = Demo(group.inputs, best.outputs, group.example_id, best.recorded)
            demo = ScoredDemo(shown, best.reward, group.example_id)
            pool.setdefault(digest(group.example_id, group.inputs, best.outputs, best.reward), demo)
    return sorted(pool.values(), key=lambda scored: -scored.reward)


def propose_demos(
    pool: Sequence[ScoredDemo], current: Prompt, *, size: int, count: int, rng: random.Random
) -> list[Prompt]:
    """Up to ``count`` prompts with the current instruction and ``size`` demonstrations each.

    The first prompt has the best of the pool; the others are drawn without replacement, with probabilities in
    proportion to the square of the reward above the lowest of the pool, scaled to any range of the metric. No two
    demonstrations of a prompt come from the same example.
    """
    prompts: list[Prompt] = []
    rewards = [scored.reward for scored in pool]
    low, high = min(rewards, default=0.0), max(rewards, default=0.0)
    weights = [((reward - low) / (high - low)) ** 2 + 1e-6 if high > low else 1.0 for reward in rewards]
    for index in range(4 * count):
        if len(prompts) == count:
            break
        drawn = list(pool) if index == 0 else _weighted_order(pool, weights, rng)
        chosen: list[ScoredDemo] = []
        for scored in drawn:
            if len(chosen) < size and scored.example_id not in {earlier.example_id for earlier in chosen}:
                chosen.append(scored)
        prompt = Prompt(current.instruction, tuple(scored.demo for scored in chosen))
        if chosen and prompt != current and prompt not in prompts:
            prompts.append(prompt)
    return prompts


def propose(task: PromptTask) -> Proposals:
    """Proposes the current instruction with bootstrapped demonstrations, and for every three such sets one labelled set
    and one of recorded calls without a score."""
    size, count = min(task.effort.demo_size, task.space.max_demos), task.effort.demo_sets
    bootstrapped = propose_demos(task.pool, task.current, size=size, count=count, rng=task.rng)
    sets = [("demos", prompt.demos) for prompt in bootstrapped]
    sets += [("labelled", demos) for demos in labelled_sets(task, -(-count // 3))]
    sets += [("recorded", demos) for demos in _random_sets(task, "recorded", task.recorded, -(-count // 3))]
    return [(kind, Prompt(task.current.instruction, demos)) for kind, demos in sets]


def labelled_sets(task: PromptTask, count: int) -> list[tuple[Demo, ...]]:
    """Random sets of labelled demonstrations; empty without labels."""
    return _random_sets(task, "labelled", task.labelled, count)


def _random_sets(task: PromptTask, name: str, demos: Sequence[Demo], count: int) -> list[tuple[Demo, ...]]:
    size = min(task.effort.demo_size, task.space.max_demos, len(demos))
    rng = random.Random(derive_seed(task.seed, name))
    return [tuple(rng.sample(list(demos), size)) for _ in range(count)] if size else []


def is_labelled(component: Component, example: Example) -> bool:
    """Whether the outputs of a component are gold fields of an example."""
    return all(isinstance(example.gold.get(name), str) for name in component.outputs)


def labelled_demos(component: Component, runs: Sequence[tuple[Example, Trace]], max_chars: int = 1500) -> list[Demo]:
    """Demonstrations of a component whose outputs are gold fields of the examples; empty for other components."""
    demos = []
    for example, trace in runs:
        if trace.reaches(component.name) and is_labelled(component, example):
            outputs = {name: example.gold[name] for name in component.outputs}
            demo = Demo(trace.first(component.name).inputs, outputs, example.id)
            if len(str(dict(demo.inputs))) + len(str(dict(demo.outputs))) <= max_chars:
                demos.append(demo)
    return demos


def _weighted_order(pool: Sequence[ScoredDemo], weights: Sequence[float], rng: random.Random) -> list[ScoredDemo]:
    """A random order in which heavy items tend to come first (Efraimidis and Spirakis, 2006)."""
    keys = [rng.random() ** (1.0 / weight) for weight in weights]
    return [scored for _, scored in sorted(zip(keys, pool, strict=True), key=lambda item: -item[0])]
