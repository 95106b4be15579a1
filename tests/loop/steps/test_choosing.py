"""Where a local reward may choose among outputs: only where it is shown to be ahead of what needs no label, on groups
of the configuration in use that it was not trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from enumerable import ExactRewards, enumerable_system, make_run

from optimas_jax.core.types import Candidate, Group
from optimas_jax.core.values import PerInstance, Prompt
from optimas_jax.loop.state import State
from optimas_jax.loop.steps.choosing import best_of, with_choosers
from optimas_jax.loop.steps.propose import propose
from optimas_jax.rewards.scorer import ScoredGroup


class Rewards(ExactRewards):
    """Scores that order outputs as their rewards do, or not at all."""

    knows = True
    unseen: tuple[ScoredGroup, ...] = ()

    def scores(self, name, groups):
        return [[len(text) * self.knows for text in group.candidates] for group in groups]

    def held_out(self, name) -> dict[str, Any]:
        return {"writer": list(self.unseen)}


SYSTEM = enumerable_system(3)
DEFAULT = SYSTEM.default_configuration()


def groups(count: int, configuration: str = DEFAULT.digest) -> tuple[Group, ...]:
    """Of the writer, each on an input of its own; longer outputs have higher rewards."""
    candidates = tuple(Candidate({"a": "x" * size}, "current", (size / 4,)) for size in (1, 2, 4))
    return tuple(Group("writer", f"e{index}", {"q": "one"}, candidates, configuration) for index in range(count))


def decided(
    tmp_path: Path, evidence: tuple[Group, ...], *, knows: bool = True, unseen: tuple[ScoredGroup, ...] = (), **settings
) -> tuple[str | None, list[str], list[PerInstance]]:
    """Why the writer does not choose, what is said of it, and the proposals that do."""
    engine = Rewards(SYSTEM, tmp_path)
    engine.knows, engine.unseen = knows, unseen
    run = make_run(
        SYSTEM, tmp_path, seed=3, engine=engine, **{"mode": "improved", "best_of": 4, "iterations": 1, **settings}
    )
    lines: list[str] = []
    run.host.progress.line = lines.append  # type: ignore[method-assign]
    offline = dataclasses.replace(run.config.offline, stop=0.0, report=1.0)
    config = dataclasses.replace(run.config, offline=offline)
    state = with_choosers(run.host, run.device, config, State(DEFAULT, "name", evidence, ()))
    proposals, _ = propose(run.host, run.device, config, config.optimize, state, "writer", (), 0)
    run.tape.close()
    said = [line for line in lines if "does not choose outputs by its local reward" in line]
    return state.no_choice.get("writer"), said, [p.value for p in proposals if isinstance(p.value, PerInstance)]


def test_a_local_reward_that_is_ahead_may_choose(tmp_path: Path) -> None:
    why, said, [value] = decided(tmp_path, groups(6))
    assert why is None and not said and value.samples == 4


@pytest.mark.parametrize(
    ("count", "knows", "expected"),
    [
        (6, False, "pair accuracy 0.50 [0.50, 0.50] on 6 inputs, likelihood 0.50, majority 0.50"),
        (4, True, "4 inputs have different rewards, and 5 are needed"),
        (0, True, "0 inputs have different rewards"),
    ],
)
def test_one_that_is_not_is_refused_and_named(tmp_path: Path, count: int, knows: bool, expected: str) -> None:
    why, [line], values = decided(tmp_path, groups(count), knows=knows)
    assert why is not None and expected in why and why in line and "writer" in line and not values


def test_what_it_knew_of_another_configuration_does_not_count(tmp_path: Path) -> None:
    why, _, values = decided(tmp_path, groups(6, "another"))
    assert why is not None and "0 inputs" in why and not values


def test_groups_scored_by_heads_that_have_not_seen_them_count(tmp_path: Path) -> None:
    rewards, flat = (0.0, 1.0), (0.0, 0.0)
    unseen = tuple(ScoredGroup(DEFAULT.digest, f"h{i}", rewards, rewards, flat, flat) for i in range(3))
    assert decided(tmp_path / "enough", groups(2), unseen=unseen)[0] is None
    other = tuple(group._replace(configuration="another") for group in unseen)
    why, _, _ = decided(tmp_path / "other", groups(2), unseen=other)
    assert why is not None and "2 inputs" in why


@pytest.mark.parametrize("settings", [{"score": "random"}, {"mode": "paper"}])
def test_controls_and_the_papers_ranking_are_not_asked(tmp_path: Path, settings: dict[str, Any]) -> None:
    why, said, values = decided(tmp_path, (), **settings)
    assert why is None and not said and len(values) == 1


def test_best_of_is_of_a_single_value(tmp_path: Path) -> None:
    run = make_run(SYSTEM, tmp_path, seed=3, mode="improved", engine=None, iterations=1, best_of=2)
    search, value = run.config.optimize, Prompt("red")
    made = best_of(run.config, search, value, "name")
    assert made is not None and made.values == (value,) and best_of(run.config, search, made, "name") is None
    assert best_of(run.config, dataclasses.replace(search, best_of=0), value, "name") is None
    run.tape.close()
