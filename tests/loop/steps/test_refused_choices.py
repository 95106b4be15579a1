"""Where a local reward may choose among outputs: only ahead of chance, likelihood and majority on report inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from enumerable import ExactRewards, enumerable_system, make_run

from optimas_jax.core.types import Candidate, Group
from optimas_jax.core.values import PerInstance
from optimas_jax.loop.state import State
from optimas_jax.loop.steps.propose import best_of, propose, refuse_choices


class Rewards(ExactRewards):
    """Scores that order outputs as their rewards do, or not at all."""

    knows = True

    def scores(self, name, groups):
        return [[len(text) * self.knows for text in group.candidates] for group in groups]


def groups(count: int) -> tuple[Group, ...]:
    """Of the writer, each on an input of its own; longer outputs have higher rewards."""
    candidates = tuple(Candidate({"a": "x" * size}, "current", (size / 4,)) for size in (1, 2, 4))
    return tuple(Group("writer", f"e{index}", {"q": "one"}, candidates, "any") for index in range(count))


def refused(
    tmp_path: Path, *, count: int = 6, knows: bool = True, **settings
) -> tuple[State, PerInstance | None, list]:
    system = enumerable_system(3)
    engine = Rewards(system, tmp_path)
    engine.knows = knows
    settings = {"mode": "improved", "iterations": 1, "best_of": 4, **settings}
    run = make_run(system, tmp_path, seed=3, engine=engine, **settings)
    lines: list[str] = []
    run.host.progress.line = lines.append  # type: ignore[method-assign]
    config = dataclasses.replace(run.config, offline=dataclasses.replace(run.config.offline, stop=0.0, report=1.0))
    state = State(system.default_configuration(), "name", groups(count), ())
    value = best_of(config, config.optimize, state.configuration["writer"], "name")
    state = refuse_choices(run.host, run.device, config, config.optimize, state, "writer")
    proposals, _ = propose(run.host, run.device, config, config.optimize, state, "writer", (), 0)
    assert (value is not None and not state.is_refused("writer", value)) == any(p.value == value for p in proposals)
    run.tape.close()
    return state, value, [line for line in lines if "does not choose" in line]


def test_a_local_reward_that_is_ahead_may_choose(tmp_path: Path) -> None:
    state, value, lines = refused(tmp_path)
    assert value is not None and value.samples == 4 and not state.is_refused("writer", value) and not lines


@pytest.mark.parametrize(
    ("count", "knows", "why"),
    [
        (6, False, "pair accuracy 0.50 on 6 report inputs, likelihood 0.50, majority 0.50"),
        (4, True, "pair accuracy 1.00 on 4 report inputs"),
        (0, True, "no report input has different rewards"),
    ],
)
def test_one_that_is_not_is_refused_by_name(tmp_path: Path, count: int, knows: bool, why: str) -> None:
    state, value, [line] = refused(tmp_path, count=count, knows=knows)
    assert value is not None and state.is_refused("writer", value)
    assert "writer does not choose outputs by its local reward" in line and why in line


@pytest.mark.parametrize("settings", [{"score": "random"}, {"mode": "paper"}, {"best_of": 0}])
def test_controls_and_the_papers_mode_are_not_asked(tmp_path: Path, settings: dict) -> None:
    state, _, lines = refused(tmp_path, count=0, **settings)
    assert not state.refused and not lines
