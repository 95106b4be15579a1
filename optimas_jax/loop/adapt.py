"""Adapt: fresh groups under the current configuration, a replay buffer, and further training (paper, section 4.2)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimas_jax.core.types import Example, Group, Trace
from optimas_jax.core.values import Adapter, PerInstance, Value
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.context import Run
from optimas_jax.loop.offline import demo_values, select_pairs
from optimas_jax.rewards.collect import collect
from optimas_jax.rewards.data import save_groups
from optimas_jax.rewards.pairs import count_pairs, is_informative
from optimas_jax.rewards.split import is_held_out
from optimas_jax.rewards.text import text_group

if TYPE_CHECKING:
    from optimas_jax.loop.iteration import State


def is_due(when: str) -> bool:
    """Whether a component's local reward meets what it is to rank, in every iteration."""
    return when in ("every", "on_drift")


def adapt(
    run: Run,
    config: OptimizeConfig,
    state: State,
    components: Sequence[str],
    runs: Sequence[tuple[Example, Trace]],
    seed: int,
    values: Sequence[Value] = (),
) -> State:
    """Collects fresh groups of ``components`` and trains the local reward on them and a sample of earlier groups.

    With ``on_drift`` the training is left out when the local reward still orders the fresh pairs well.

    Args:
      runs: training inputs, and the system's runs on them under ``state.configuration``.
      values: that the local reward is to rank next: they are the candidates, in place of hotter samples and of
        demonstrations, unless they are choices per instance or weights.
    """
    fresh = collect(
        run.system,
        state.configuration,
        dict.fromkeys(components, runs),
        run.config.collect,
        seed=run.config.seed,
        concurrency=run.config.concurrency,
        progress=run.progress,
        propose_values=demo_values(run, state.configuration, config),
        instead=[value for value in values if not isinstance(value, PerInstance | Adapter)],
    )
    fresh = select_pairs(fresh, config.pairs)
    round_name = f"round-{state.adaptations:03d}-{'-'.join(components) if len(components) == 1 else 'all'}"
    save_groups(run.folder.path / "groups" / round_name, fresh)
    accuracy, pairs = _pair_accuracy(run, state.reward, fresh)
    groups = (*state.groups, *fresh)
    learnable = _learnable(run, fresh)
    trained = bool(learnable) and not (config.adapt == "on_drift" and pairs and accuracy >= config.drift_accuracy)
    reward = state.reward
    if trained:
        earlier = _learnable(run, state.groups)
        replay = random.Random(seed).sample(earlier, min(config.buffer, len(earlier)))
        reward, _ = run.engine.trainer.train(
            run.system, state.reward, [*learnable, *replay], (), epochs=run.config.reward.adapt_epochs, seed=seed
        )
    run.folder.emit(
        "adaptation",
        components=list(components),
        fresh_groups=len(fresh),
        fresh_pairs=pairs,
        pair_accuracy_before=accuracy,
        trained=trained,
        reward=reward,
    )
    run.progress.line(
        f"  {'adapted' if trained else 'no drift'}: {len(fresh)} fresh groups, pair accuracy before {accuracy:.2f} "
        f"({pairs} pairs)"
    )
    return dataclasses.replace(state, groups=groups, reward=reward, adaptations=state.adaptations + 1)


def _learnable(run: Run, groups: Sequence[Group]) -> list[Group]:
    """Groups with something to learn from, on inputs that are not held out."""
    share, threshold = run.config.offline.held_out, run.config.reward.loss.threshold
    return [g for g in groups if is_informative(g.rewards, threshold) and not is_held_out(g.example_id, share)]


def _pair_accuracy(run: Run, reward: str, groups: Sequence[Group]) -> tuple[float, int]:
    """Pooled pair accuracy on fresh groups, and the number of pairs; 0.5 without any."""
    threshold = run.config.reward.loss.threshold
    texts = [text_group(run.system, g.component, g.inputs, [c.outputs for c in g.candidates]) for g in groups]
    scores = run.engine.scorer.scores(reward, texts)
    counts = [count_pairs(s, g.rewards, threshold) for s, g in zip(scores, groups, strict=True)]
    right, pairs = sum(c[0] for c in counts), sum(c[1] for c in counts)
    return (right / pairs if pairs else 0.5), pairs
