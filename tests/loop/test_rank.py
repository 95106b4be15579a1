"""What proposals are ranked by, and what ranking costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from enumerable import EXAMPLES, ExactRewards, enumerable_system, make_run, mean_score

from optimas_jax.core.values import value_digest, value_from_json
from optimas_jax.loop.budget import OutOfTokens
from optimas_jax.loop.context import Run
from optimas_jax.loop.iteration import optimize
from optimas_jax.rewards.text import TextGroup


def _events(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]


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
    events = _events(tmp_path)
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
        events = _events(workdir)
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
    events = _events(tmp_path)
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


@pytest.mark.parametrize("score", ["local", "global"])
def test_only_the_better_half_of_the_proposals_is_tried_on_more_inputs(tmp_path: Path, score: str) -> None:
    system = enumerable_system(3)
    engine = ExactRewards(system, tmp_path)
    run = make_run(
        system, tmp_path, seed=3, mode="improved", engine=engine, iterations=1, adapt="never", rounds=2, score=score
    )
    optimize(dataclasses.replace(run, components=("tuner",)), "exact" if score == "local" else "", [])
    run.tape.close()
    proposals = [event for event in _events(tmp_path) if event["event"] == "proposal"]
    tried = [event["inputs"] for event in proposals]
    assert tried == sorted(tried, reverse=True) and set(tried) <= {2, 3}  # of three inputs: two, then all
    assert 1 <= tried.count(3) <= 2  # of three other values of the grid
    last = [event["expected_gain"] for event in proposals if event["inputs"] == 3]
    assert last == sorted(last, reverse=True)


def test_in_the_last_round_gains_are_those_of_all_inputs_at_once(tmp_path: Path) -> None:
    """Exact scores, and as many survivors as proposals: rounds then change nothing but the order of the calls."""
    found = []
    for rounds in (1, 3):
        system, workdir = enumerable_system(5), tmp_path / str(rounds)
        engine = ExactRewards(system, workdir)
        settings = {"iterations": 1, "adapt": "never", "gate_top": 3, "rounds": rounds}
        run = make_run(system, workdir, seed=5, mode="improved", engine=engine, **settings)
        optimize(dataclasses.replace(run, components=("tuner",)), "exact", [])
        run.tape.close()
        events = [event for event in _events(workdir) if event["event"] in ("proposal", "gate")]
        found.append([{**event, "time": 0} for event in events])
    assert found[0] == found[1] and found[0]


def test_what_is_known_of_training_inputs_is_not_run_again(tmp_path: Path) -> None:
    """Nothing passes the gate, and the components take turns on the same inputs: they are run once."""
    ran: list[int] = []
    for iterations in (1, 3):
        system, workdir = enumerable_system(6), tmp_path / str(iterations)
        run = make_run(
            system,
            workdir,
            seed=6,
            mode="improved",
            engine=ExactRewards(system, workdir),
            iterations=iterations,
            adapt="never",
            gate_top=0,
        )
        optimize(run, "exact", [])
        run.tape.close()
        assert run.system.meter is not None
        ran.append(run.system.meter.runs)
    assert ran[0] == ran[1] == 2 * len(EXAMPLES)  # validation, and once each on the training inputs


def test_the_best_proposal_pays_for_the_gate_and_another_only_if_a_gain_is_expected_of_it(tmp_path: Path) -> None:
    gates = 0
    for seed in range(4):
        system, workdir = enumerable_system(seed), tmp_path / str(seed)
        engine = ExactRewards(system, workdir)
        run = make_run(system, workdir, seed=seed, mode="improved", engine=engine, iterations=6, gate_top=3)
        optimize(run, "exact", [])
        run.tape.close()
        before = ""
        for event in _events(workdir):
            if event["event"] == "gate":
                gates += 1
                assert event["expected_gain"] > 0 or before != "gate"
            before = event["event"]
    assert gates > 4
