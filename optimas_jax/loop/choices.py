"""What choosing among several outputs of a component brings, by local reward and by what needs no label."""

from __future__ import annotations

from collections.abc import Sequence

from optimas_jax.core.execution import Job
from optimas_jax.core.selection import LIKELIHOOD, MAJORITY, RANDOM
from optimas_jax.core.types import Example, StopRun
from optimas_jax.core.values import Configuration, PerInstance
from optimas_jax.loop.context import Host

ONE, LOCAL = "one output", "local reward"
RULES = (ONE, RANDOM, MAJORITY, LIKELIHOOD, LOCAL)


def measure_choices(
    host: Host,
    configuration: Configuration,
    name: str,
    reward: str,
    examples: Sequence[Example],
    *,
    samples: int,
    temperature: float,
) -> dict[str, list[float]]:
    """Global scores by rule (``RULES``): of the component's own output, and of the one that a rule keeps of it and
    ``samples - 1`` samples more. All rules choose among the same outputs, and everything after the component runs on
    the one that is kept.

    Args:
      configuration: of all components. Where the component chooses among samples already, its value is what it samples.
      reward: name of the local reward.
      temperature: of the samples.

    Raises:
      StopRun: the component chooses among several values, not samples of one.
    """
    value = configuration[name]
    if isinstance(value, PerInstance):
        value, *others = value.values
        if others:
            raise StopRun(f"{name} chooses among values for every input: best-of-N is of a single one")
        configuration = configuration.replace(name, value)
    chosen = {RANDOM: RANDOM, MAJORITY: MAJORITY, LIKELIHOOD: LIKELIHOOD, LOCAL: reward}
    tried = {rule: PerInstance((value,), by, samples, "argmax", temperature) for rule, by in chosen.items()}
    kept = host.run(ONE, [Job(configuration, example, host.seed) for example in examples])
    scores = {ONE: [trace.score for trace in kept]}
    for rule, choice in tried.items():
        changed = configuration.replace(name, choice)
        jobs = [
            Job(changed, example, host.seed, host.system.kept(trace, name))
            for example, trace in zip(examples, kept, strict=True)
        ]
        scores[rule] = [trace.score for trace in host.run(f"{name}: {rule}", jobs)]
    return scores
