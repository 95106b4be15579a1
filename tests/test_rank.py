"""What proposals are ranked by, and what ranking costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from enumerable import ExactRewards, enumerable_system, make_run, mean_score

from optimas_jax.core.values import value_digest, value_from_json
from optimas_jax.loop.cost import OutOfTokens
from optimas_jax.loop.local_reward import TextGroup
from optimas_jax.loop.optimize import optimize
from optimas_jax.loop.run import Run


@pytest.mark.parametrize("score", ["local", "global"])
def test_ranking_ends_within_a_block_of_the_search_s_tokens(
    tmp_path: Path, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[int] = []

    def third_look_says_stop(run: Run) -> None:
        assert run.system.meter is not None
        executed.append(run.system.meter.executions)
        if len(executed) == 3:
            raise OutOfTokens

    monkeypatch.setattr("optimas_jax.loop.rank._BLOCK", 2)
    monkeypatch.setattr("optimas_jax.loop.rank.check_tokens", third_look_says_stop)
    system = enumerable_system(2)
    run = make_run(
        system,
        tmp_path,
        seed=2,
        mode="improved",
        engine=ExactRewards(system, tmp_path),
        iterations=1,
        score=score,
        rounds=1,
    )
    state = optimize(dataclasses.replace(run, components=("writer",)), "exact" if score == "local" else "", [])
    run.tape.close()
    first, second, third = executed
    most = 2 * (1 if score == "local" else len(system.components))
    assert 0 < second - first <= most and 0 < third - second <= most
    assert state.configuration == system.default_configuration()


def test_local_rewards_are_adapted_on_what_they_rank_next(tmp_path: Path) -> None:
    system = enumerable_system(2)
    engine = ExactRewards(system, tmp_path)
    run = make_run(system, tmp_path, seed=2, mode="improved", engine=engine, iterations=1, adapt="every")
    state = optimize(dataclasses.replace(run, components=("writer",)), "exact", [])
    run.tape.close()
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    proposed = [value_from_json(event["value"]) for event in events if event["event"] == "proposal"]
    sources = {candidate.source for group in state.groups for candidate in group.candidates}
    assert proposed and {f"value:{value_digest(value)}" for value in proposed} == sources - {"current"}
    assert [event["event"] for event in events].index("adaptation") < [e["event"] for e in events].index("proposal")


class WrongRewards(ExactRewards):
    """Local rewards that prefer what is worse."""

    def scores(self, name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        return [[-score for score in row] for row in super().scores(name, groups)]


@pytest.mark.parametrize(("component", "corrected"), [("tuner", True), ("router", False)])
def test_rewards_of_the_last_component_are_known_and_correct_its_local_reward(
    tmp_path: Path, component: str, corrected: bool
) -> None:
    found: list[bool] = []  # whether a gain is expected where there is one, and a loss where there is one
    for seed in range(6):
        system, workdir = enumerable_system(seed), tmp_path / str(seed)
        run = make_run(
            system,
            workdir,
            seed=seed,
            mode="improved",
            engine=WrongRewards(system, workdir),
            iterations=1,
            adapt="never",
        )
        optimize(dataclasses.replace(run, components=(component,)), "exact", [])
        run.tape.close()
        events = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
        before = system.default_configuration()
        gains = [
            (event["expected_gain"], mean_score(system, before.replace(component, value_from_json(event["value"]))))
            for event in events
            if event["event"] == "proposal"
        ]
        base = mean_score(system, before)
        found += [(expected > 0) == (score > base) for expected, score in gains if score != base]
    assert len(found) >= 4 and set(found) == {corrected}


def test_proposals_that_change_no_output_are_dropped(tmp_path: Path) -> None:
    system = enumerable_system(0)
    run = make_run(system, tmp_path, seed=0, mode="improved", engine=ExactRewards(system, tmp_path), iterations=12)
    optimize(run, "exact", [])
    run.tape.close()
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    proposed: dict[str, list[list[str]]] = {}
    for event in events:
        if event["event"] == "pick":
            proposed.setdefault(event["component"], []).append([])
        if event["event"] == "proposal":
            proposed[event["component"]][-1].append(json.dumps(event["value"], sort_keys=True))
    rounds = [values for picks in proposed.values() for values in picks if values]
    assert rounds and all(len(set(values)) == len(values) for values in rounds)
    # Eight answers name three instructions; the current one and what writes the same words are not proposals.
    assert all(len(values) <= 2 for values in proposed.get("writer", []))
