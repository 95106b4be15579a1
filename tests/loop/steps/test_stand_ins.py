"""What stands in the place of local rewards: the oracle, likelihood, a judge, and nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from enumerable import ExactRewards, enumerable_system, make_run, search, values_of

from optimas_jax.core.selection import LIKELIHOOD, ORACLE
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.iteration import start, with_base_runs
from optimas_jax.loop.steps.trials import answer, follow, local_scores
from optimas_jax.rewards.judge import Judgement


class NoRewards(ExactRewards):
    """Fails where a local reward is asked for; knows likelihoods."""

    def scores(self, name, groups):
        assert name == LIKELIHOOD, "no local reward is there"
        return [[-float(len(text)) for text in group.candidates] for group in groups]


def searched(workdir: Path, score: str, reward: str = "", **settings):
    """The final state, the events and the ledger of a search."""
    system = enumerable_system(3)
    run = make_run(
        system,
        workdir,
        mode="improved",
        engine=NoRewards(system, workdir),
        seed=3,
        score=score,
        **{"iterations": 3, "labels": 1, **settings},
    )
    host = dataclasses.replace(run.host, judge=LanguageModel("judge", style="text"))
    state = search(dataclasses.replace(run, host=host), reward)
    events = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
    return state, events, run.host.ledger.to_json()


def test_the_oracle_knows_the_global_reward_and_what_it_runs_is_not_charged(tmp_path: Path) -> None:
    _, events, _ = searched(tmp_path / "oracle", ORACLE, ORACLE, components=("writer",), iterations=1)
    proposals = [event for event in events if event["event"] == "proposal"]
    assert proposals and any(event["labelled"] < event["inputs"] for event in proposals)
    by_metric = searched(tmp_path / "metric", "global", components=("writer",), iterations=1)[1]
    gains = {str(event["value"]): event["expected_gain"] for event in by_metric if event["event"] == "proposal"}
    local = {str(event["value"]): event["local_gain"] for event in proposals}
    shared = set(gains) & set(local)
    assert shared and all(local[value] == pytest.approx(gains[value]) for value in shared)


def test_what_the_oracle_runs_is_outside_all_accounts_of_the_search(tmp_path: Path) -> None:
    system = enumerable_system(3)
    run = make_run(system, tmp_path, seed=3, mode="improved", engine=NoRewards(system, tmp_path), iterations=1)
    host = run.host
    with host.ledger.limit() as allowance:
        state = start(host, run.config.optimize, ORACLE, ())
        state, runs = with_base_runs(host, state, "writer", host.splits["train"])
        values = [value for value in values_of(system, "writer") if value != state.configuration["writer"]]
        trials = answer(host, "writer", values, runs, {})
        before = (allowance.used, host.system.meter.runs, host.system.meter.executions)
        scores = local_scores(host, run.device, state, "writer", trials, runs)
        assert (allowance.used, host.system.meter.runs, host.system.meter.executions) == before
        followed = follow(host, state, "writer", trials, runs, 1)
        assert host.system.meter.runs > before[1]  # the same by the search itself is counted
    assert scores == {key: trial.reward for key, trial in followed.items()} and len(set(scores.values())) > 1
    run.tape.close()
    host.folder.close()


def test_off_is_ranked_by_the_labels_alone(tmp_path: Path) -> None:
    _, events, _ = searched(tmp_path, "off")
    races = [event for event in events if event["event"] == "race"]
    assert races and not any(event["local_reward"] for event in races)
    proposals = [event for event in events if event["event"] == "proposal"]
    assert all(event["expected_gain"] == pytest.approx(event["labelled_gain"] or 0.0) for event in proposals)


def test_likelihood_is_used_without_any_training(tmp_path: Path) -> None:
    _, events, _ = searched(tmp_path, LIKELIHOOD, LIKELIHOOD, fewest_groups=100)
    races = {event["component"]: event["local_reward"] for event in events if event["event"] == "race"}
    assert races.pop("tuner", False) is False and races and all(races.values())
    assert not [event for event in events if event["event"] == "adaptation"]


def test_a_judge_sees_labelled_answers_to_other_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def judge(completer, model, groups, examples, *, seed, concurrency):
        asked.append((groups, examples))
        return Judgement([[float(len(text)) for text in group.candidates] for group in groups], 1)

    monkeypatch.setattr("optimas_jax.loop.steps.trials.judge_scores", judge)
    _, events, _ = searched(tmp_path, "judge", "judge", components=("writer",), iterations=4, inputs=2)
    assert [event["local_reward"] for event in events if event["event"] == "race"] == [True] * 4
    for groups, examples in asked:
        judged = {group.prefix for group in groups}
        assert all(example.prefix not in judged for rows in examples.values() for example in rows)
    assert any(examples.get("writer") for _, examples in asked)
    assert all(len(set(group.candidates)) > 1 for groups, _ in asked for group in groups)  # nothing else to judge


@pytest.mark.parametrize("score", ["oracle", "judge", "off", "global"])
def test_what_cannot_choose_outputs_is_said(score: str) -> None:
    with pytest.raises(ValueError, match="best_of needs local rewards"):
        OptimizeConfig.improved(score=score, best_of=4)
    config = OptimizeConfig.improved(score=score)
    assert (config.adapt, config.per_instance) == ("never", "never")


def test_labels_alone_cannot_be_a_mean_of_local_rewards() -> None:
    with pytest.raises(ValueError, match="set ranking to 'corrected'"):
        OptimizeConfig.paper(score="off")
