"""What proposals are ranked by, what ranking costs, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from enumerable import EXAMPLES, MODEL, ExactRewards, enumerable_system, make_run, mean_score, search
from fakes import ScriptedCompleter
from rich.console import Console

from optimas_jax.core.running.execution import Job
from optimas_jax.core.system import System
from optimas_jax.core.values import Demo, Prompt, value_digest, value_from_json
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.component import llm_component
from optimas_jax.loop.context import Run
from optimas_jax.loop.iteration import start, with_base_runs
from optimas_jax.loop.state import Proposal
from optimas_jax.loop.steps.propose import propose
from optimas_jax.loop.steps.race import label, race
from optimas_jax.loop.steps.trials import answer
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.text import TextGroup


def events_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]


class WrongRewards(ExactRewards):
    """Local rewards that prefer what is worse."""

    def scores(self, name: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        return [[-score for score in row] for row in super().scores(name, groups)]


class RecordingRewards(ExactRewards):
    """Notes the groups that every training call learns from."""

    def __init__(self, system, workdir):
        super().__init__(system, workdir)
        self.learned: list[set[tuple[str, str, str]]] = []

    def train(self, system, parent, train, stop, **settings):
        self.learned.append({(g.component, g.example_id, str(dict(c.outputs))) for g in train for c in g.candidates})
        return f"trained-{len(self.learned)}", {"history": []}


def improved(system, workdir: Path, engine=None, **settings) -> Run:
    settings = {"iterations": 1, "labels": 3, **settings}
    return make_run(
        system, workdir, mode="improved", engine=engine or ExactRewards(system, workdir), **{"seed": 2, **settings}
    )


def test_local_rewards_learn_from_every_labelled_proposal_after_the_race(tmp_path: Path) -> None:
    system = enumerable_system(2)
    state = search(improved(system, tmp_path, adapt="every", components=("writer",)))
    events = events_of(tmp_path)
    proposed = [value_from_json(event["value"]) for event in events if event["event"] == "proposal"]
    sources = {c.source for group in state.evidence if len(group.candidates) > 1 for c in group.candidates}
    assert proposed and sources <= {"current", *(f"value:{value_digest(value)}" for value in proposed)}
    names = [event["event"] for event in events]
    assert names.index("proposal") < names.index("gate") < names.index("adaptation")


@pytest.mark.parametrize("adapt", ["every", "on_drift"])
def test_the_order_of_proposers_does_not_change_what_is_learned(tmp_path: Path, adapt: str) -> None:
    learned, kept = [], []
    for proposers in ("mipro,demos", "demos,mipro"):
        system, workdir = enumerable_system(4), tmp_path / proposers
        engine = RecordingRewards(system, workdir)
        settings = {"proposers": proposers, "demo_sets": 2, "demo_size": 1, "iterations": 3, "adapt": adapt}
        state = search(improved(system, workdir, engine, components=("writer",), drift_accuracy=1.0, **settings))
        learned.append(engine.learned)
        kept.append(
            {
                (g.component, g.example_id, str(sorted(str(dict(c.outputs)) for c in g.candidates)))
                for g in state.evidence
            }
        )
    assert learned[0] == learned[1] and kept[0] == kept[1]
    assert any(kept[0])


def test_proposing_and_scoring_change_nothing_but_the_memo(tmp_path: Path) -> None:
    """Journal, checkpoints and state are equal before and after scores are asked for; the ledger counts what is run
    alone."""
    system = enumerable_system(4)
    run = improved(system, tmp_path, WrongRewards(system, tmp_path), proposers="mipro,copro", trials=6)
    host, config = run.host, run.config
    with host.ledger.limit():
        state = start(host, config.optimize, "exact", ())
        state, runs = with_base_runs(host, state, "writer", EXAMPLES)
        proposals, _ = propose(host, run.device, config, config.optimize, state, "writer", runs, seed=0)
        labels = label(host, config.optimize, state, "writer", proposals, runs, 1)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "tape" not in path.name}
        used, frozen = host.ledger.used, dataclasses.replace(state)
        first = race(host, run.device, config.optimize, state, "writer", proposals, labels, runs, 1)
        second = race(host, run.device, config.optimize, state, "writer", proposals, labels, runs, 1)
        assert first.ranked == second.ranked and state == frozen
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "tape" not in p.name} == before
        assert host.ledger.used == used  # three inputs, all of them labelled: nothing is left to run
    run.tape.close()


@pytest.mark.parametrize("component", ["tuner", "router", "writer"])
def test_labels_correct_a_local_reward_that_is_wrong(tmp_path: Path, component: str) -> None:
    """Every input is labelled: the gain is that of the metric, whatever the local reward says."""
    checked = 0
    for seed in range(4):
        system, workdir = enumerable_system(seed), tmp_path / str(seed)
        search(
            improved(system, workdir, WrongRewards(system, workdir), seed=seed, adapt="never", components=(component,))
        )
        before = system.default_configuration()
        for event in events_of(workdir):
            if event["event"] == "proposal":
                after = before.replace(component, value_from_json(event["value"]))
                gain = mean_score(system, after) - mean_score(system, before)
                assert event["expected_gain"] == pytest.approx(gain)
                checked += 1
    assert checked >= 4


def test_nothing_is_labelled_for_a_ranking_by_mean_local_reward(tmp_path: Path) -> None:
    system = enumerable_system(2)
    run = make_run(system, tmp_path, seed=2, mode="paper", engine=ExactRewards(system, tmp_path), iterations=4)
    search(run)
    races = [event for event in events_of(tmp_path) if event["event"] == "race"]
    assert races and all(event["labelled_runs"] == 0 and event["local_reward"] for event in races)


@pytest.mark.parametrize("score", ["global", "random", "local"])
def test_a_race_says_whether_a_local_reward_was_used(tmp_path: Path, score: str) -> None:
    system = enumerable_system(3)
    search(improved(system, tmp_path, score=score, iterations=6, labels=1, seed=3), score if score != "global" else "")
    races = [event for event in events_of(tmp_path) if event["event"] == "race"]
    assert {event["component"]: event["local_reward"] for event in races} == {
        "writer": score != "global",
        "router": score != "global",
        "tuner": False,  # nothing is behind it, and the metric is free
    }


def test_a_component_with_too_few_groups_is_ranked_by_its_labels_alone_and_named(tmp_path: Path) -> None:
    system, console = enumerable_system(3), io.StringIO()
    run = improved(
        system, tmp_path, WrongRewards(system, tmp_path), iterations=6, labels=1, seed=3, fewest_groups=4, adapt="never"
    )
    progress = ConsoleProgress(Console(file=console, width=200))
    search(dataclasses.replace(run, host=dataclasses.replace(run.host, progress=progress)))
    races = [event for event in events_of(tmp_path) if event["event"] == "race"]
    assert races and not any(event["local_reward"] for event in races)
    proposals = [event for event in events_of(tmp_path) if event["event"] == "proposal"]
    assert proposals and all(event["local_gain"] is None for event in proposals)
    assert all(event["expected_gain"] == pytest.approx(event["labelled_gain"] or 0.0) for event in proposals)
    assert "writer is ranked by labels alone: it has fewer than 4 groups with different rewards" in console.getvalue()


def test_a_demonstration_costs_a_proposal_an_input_and_not_its_place(tmp_path: Path) -> None:
    """It is tried on one input less than its rivals, and enters as many rounds."""
    speaker = answering(lambda request: request.messages[0].content.split()[0])
    worth = {"good": 1.0, "fair": 0.3}
    run = improved(
        dataclasses.replace(speaker, metric=lambda outputs, gold: worth.get(outputs["a"], 0.0)),
        tmp_path,
        engine=object(),
        rounds=2,
    )
    host, config = run.host, run.config.optimize
    shown = Prompt("good", (Demo({"q": "as it was"}, {"a": "good"}, EXAMPLES[1].id),))
    proposals = [Proposal("opro", Prompt("fair")), Proposal("demos", shown)]
    with host.ledger.limit():
        state = start(host, config, "exact", ())
        state, runs = with_base_runs(host, state, "writer", EXAMPLES)
        labels = label(host, config, state, "writer", proposals, runs, 1)
        ranked = race(host, run.device, config, state, "writer", proposals, labels, runs, 1).ranked
    run.tape.close()
    assert [(one.proposal.kind, one.inputs) for one in ranked] == [("demos", 2), ("opro", 3)]


def test_proposals_that_change_no_output_are_dropped(tmp_path: Path) -> None:
    system = enumerable_system(0)
    search(improved(system, tmp_path, seed=0, iterations=12))
    proposed: dict[str, list[list[str]]] = {}
    for event in events_of(tmp_path):
        if event["event"] == "pick":
            proposed.setdefault(event["component"], []).append([])
        if event["event"] == "proposal":
            proposed[event["component"]][-1].append(json.dumps(event["value"], sort_keys=True))
    rounds = [values for picks in proposed.values() for values in picks if values]
    assert rounds and all(len(set(values)) == len(values) for values in rounds)
    # Eight answers name three instructions; the current one and one that writes the same words are not proposals.
    assert all(len(values) <= 2 for values in proposed.get("writer", []))


@pytest.mark.parametrize("score", ["local", "global"])
def test_only_the_better_half_of_the_proposals_is_tried_on_more_inputs(tmp_path: Path, score: str) -> None:
    system = enumerable_system(3)
    settings = {"adapt": "never", "rounds": 2, "score": score, "labels": 1, "gate_top": 1, "seed": 3}
    search(improved(system, tmp_path, components=("tuner",), **settings), "exact" if score == "local" else "")
    proposals = [event for event in events_of(tmp_path) if event["event"] == "proposal"]
    tried = [event["inputs"] for event in proposals]
    assert tried == sorted(tried, reverse=True) and set(tried) <= {2, 3}  # of three inputs: two, then all
    assert 1 <= tried.count(3) <= 2  # of three other values of the grid
    last = [event["expected_gain"] for event in proposals if event["inputs"] == 3]
    assert last == sorted(last, reverse=True)


def test_in_the_last_round_gains_are_those_of_all_inputs_at_once(tmp_path: Path) -> None:
    """As many survivors as proposals: rounds then change nothing but the order of the calls."""
    seen = []
    for rounds in (1, 3):
        system, workdir = enumerable_system(5), tmp_path / str(rounds)
        settings = {"adapt": "never", "gate_top": 3, "rounds": rounds, "seed": 5}
        search(improved(system, workdir, components=("tuner",), **settings))
        events = [event for event in events_of(workdir) if event["event"] in ("proposal", "gate")]
        seen.append([{**event, "time": 0} for event in events])
    assert seen[0] == seen[1] and seen[0]


def test_what_is_known_of_training_inputs_is_not_run_again(tmp_path: Path) -> None:
    """Nothing is gated or labelled, and the components take turns on the same inputs: they are run once."""
    runs: list[int] = []
    for iterations in (1, 2):
        system, workdir = enumerable_system(6), tmp_path / str(iterations)
        settings = {"iterations": iterations, "adapt": "never", "gate_top": 0, "labels": 0, "seed": 6}
        run = improved(system, workdir, components=("writer", "router"), **settings)
        search(run)
        assert run.host.system.meter is not None
        runs.append(run.host.system.meter.runs)
    assert runs[0] == runs[1] == 2 * len(EXAMPLES)  # validation, and once each on the training inputs


def test_the_best_proposal_is_gated_and_another_only_if_it_promises_a_gain(tmp_path: Path) -> None:
    gates = 0
    for seed in range(4):
        system, workdir = enumerable_system(seed), tmp_path / str(seed)
        search(improved(system, workdir, seed=seed, iterations=6, gate_top=3))
        before = ""
        for event in events_of(workdir):
            if event["event"] == "gate":
                gates += 1
                assert event["expected_gain"] > 0 or before != "gate"
            before = event["event"]
    assert gates > 4


def answering(answer: Callable[[CompletionRequest], str]) -> System:
    """One component, whose model answers by ``answer`` at a temperature above 0."""
    model = dataclasses.replace(MODEL, temperature=0.7)
    speaker = llm_component(
        name="writer", description="Say.", inputs=("q",), output="a", instruction="red", language_model=model
    )
    return System((speaker,), ("q",), ("a",), lambda outputs, gold: 0.0, completer=ScriptedCompleter(answer))


def test_a_value_answers_in_a_race_as_in_a_run_of_the_system_whatever_the_temperature(tmp_path: Path) -> None:
    """The model answers with the seed of the request."""
    run = improved(answering(lambda request: str(request.seed)), tmp_path, engine=object(), seed=7)
    host, other = run.host, Prompt("green")
    before = host.system.default_configuration()
    with host.ledger.limit():
        runs = list(zip(EXAMPLES, host.run("before", [Job(before, e, host.seed) for e in EXAMPLES]), strict=True))
        raced = answer(host, "writer", [other], runs, {})
        after = host.run("after", [Job(before.replace("writer", other), e, host.seed) for e in EXAMPLES])
    run.tape.close()
    in_race = [raced[value_digest(other), example.id].answers[0]["a"] for example in EXAMPLES]
    assert in_race == [trace.outputs["a"] for trace in after] and len(set(in_race)) == 3


def test_a_value_is_not_raced_on_an_example_that_it_shows(tmp_path: Path) -> None:
    """Even if the component's input there has changed since the demonstration was taken."""
    run = improved(answering(lambda request: "ape"), tmp_path, engine=object())
    host = run.host
    shown = Prompt("green", (Demo({"q": "as it was before"}, {"a": "ape"}, "two"),))
    with host.ledger.limit():
        jobs = [Job(host.system.default_configuration(), example, host.seed) for example in EXAMPLES]
        runs = list(zip(EXAMPLES, host.run("before", jobs), strict=True))
        raced = answer(host, "writer", [shown, Prompt("green")], runs, {})
    run.tape.close()
    assert [key for value, key in raced if value == value_digest(shown)] == ["one", "three"]
    assert [key for value, key in raced if value == value_digest(Prompt("green"))] == ["one", "two", "three"]
