"""REINFORCE: the global score of whole runs as the return of one component's answer."""

import asyncio
import dataclasses
import io
import json

import pytest
from rich.console import Console
from systems import example, system, tool
from weights_run import CONCURRENCY, config, tune_on

from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.system import Meter
from optimas_jax.core.types import Call, Outcome, freeze
from optimas_jax.core.values import BASE
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.setup.build import build_run
from optimas_jax.policy.reinforce import GlobalScores
from optimas_jax.report.console import ConsoleProgress


def test_returns_are_scores_of_whole_runs_by_hand():
    """a -> b = 10 a -> c = b + q: an answer 2 of ``a`` on q = 1 leads to 21; ``before`` does not depend on it."""
    graph = system(
        tool("before", ("q",), lambda q: q),
        tool("a", ("before_out",), lambda x: x),
        tool("b", ("a_out",), lambda x: 10 * x),
        tool("c", ("b_out", "q"), lambda x, q: x + q),
        output="c_out",
    )
    graph = dataclasses.replace(graph, failure_score=-1.0, meter=Meter())
    examples = [example("one", q=1), example("two", q=2)]
    runs = [(one, asyncio.run(graph.run(graph.default_configuration(), one, 0))) for one in examples]
    graph.meter.reset()
    scores = GlobalScores(graph, graph.default_configuration(), "a", seed=0, concurrency=4)
    answers = [[Call("a", {}, freeze({"a_out": x})) for x in row] for row in ((2, 3), (4, 5))]
    answers[1][1] = Call("a", {}, {}, Outcome.PARSE_ERROR)
    assert scores(runs, answers) == [[21.0, 31.0], [42.0, -1.0]]
    assert graph.meter.executions == 3 * 2  # b and c; neither ``before`` nor ``a`` runs again


@pytest.mark.long
def test_weights_are_tuned_against_global_scores(tmp_path, monkeypatch):
    """The setting that ranks by the global metric tunes weights by it too, without any local reward."""
    settings = config(optimize=OptimizeConfig(score="global", components="answer_generator"))
    said = io.StringIO()
    run = build_run(settings, tmp_path, ConsoleProgress(console=Console(file=said, width=200)))
    assert run.host.components == ("answer_generator",)
    policy = run.device.policies.config
    assert (policy.loss.algorithm, policy.epochs, policy.minibatch) == ("reinforce", 1, policy.prompts)

    def vowels(outputs, gold):  # random answers hardly ever score in the benchmark's metric
        return sum(letter in "aeiou" for letter in outputs["answer"]) / 10

    system = dataclasses.replace(run.host.system, metric=vowels)
    run = dataclasses.replace(run, host=dataclasses.replace(run.host, system=system))
    examples = run.host.splits["train"]
    jobs = [Job(run.host.system.default_configuration(), one, 0) for one in examples]
    runs = list(zip(examples, run_many(run.host.system, jobs, concurrency=CONCURRENCY), strict=True))
    scored, score = [], GlobalScores.__call__

    def counted(self, runs, answers):
        scored.append(sum(map(len, answers)))
        return score(self, runs, answers)

    monkeypatch.setattr(GlobalScores, "__call__", counted)
    tuned = tune_on(run, "", BASE, runs)
    run.tape.close()
    assert tuned.updates == 3 and tuned.learned > 0
    assert scored.count(2 * 3) == 3  # the answers of three updates; those of the last rollout cost no run of the system
    assert tuned.score >= tuned.before
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    updates = [event for event in events if event["event"] == "update"]
    assert all(event["steps"] == 1 for event in updates if not event["skipped"])
    assert {event["score_is"] for event in events if event["event"] == "validation"} == {"global score"}
    assert "mean global score" in said.getvalue()
