"""Weights of a component of a real system, with a tiny random model: rollouts, updates, kill and resume."""

import dataclasses
import json

import pytest
from weights_run import NAME, config, tuned

from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.types import Call, Outcome, StopRun
from optimas_jax.core.values import BASE, Adapter
from optimas_jax.loop.setup.build import build_run
from optimas_jax.policy.engine import PolicyEngine
from optimas_jax.policy.rollout import ComponentPolicy, without_failures
from optimas_jax.report.console import ConsoleProgress


def events(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, tuned(folder)


@pytest.mark.long
def test_updates_are_made_and_looked_at(straight):
    folder, result = straight
    updates = [event for event in events(folder) if event["event"] == "update"]
    assert [event["number"] for event in updates] == [0, 1, 2]
    assert [e["number"] for e in events(folder) if e["event"] == "validation"] == [0, 2, 3]
    assert result.updates == 3
    assert result.learned == sum(1.0 - event["skipped"] for event in updates)
    assert result.score >= result.before
    assert all(event["served_difference"] < 1e-4 for event in updates)
    folders = {path.name for path in (folder / "adapters").iterdir()}
    assert {event["adapter"] for event in updates} == folders
    assert len(folders) == 3


@pytest.mark.long
def test_a_killed_tuning_goes_on_where_it_was(straight, tmp_path, monkeypatch):
    update, calls = PolicyEngine._update, []

    def killed(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(PolicyEngine, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path)
    result = tuned(tmp_path)
    assert len(calls) == 4  # two of the first try, and the two that were not done
    assert result == straight[1]
    assert [e["adapter"] for e in events(tmp_path) if e["event"] == "update"] == [
        e["adapter"] for e in events(straight[0]) if e["event"] == "update"
    ]


@pytest.mark.long
def test_a_component_with_weights_answers_with_its_adapter(straight):
    folder, _ = straight
    run = build_run(config(), folder, ConsoleProgress(quiet=True))
    adapter = next(event["adapter"] for event in events(folder) if event["event"] == "update" and event["number"] == 2)
    example = run.host.splits["val"][0]
    configuration = run.host.system.default_configuration()
    assert configuration[NAME] == BASE
    jobs = [Job(one, example, 0) for one in (configuration, configuration.replace(NAME, Adapter(adapter)))]
    before, after = run_many(run.host.system, jobs, concurrency=2)
    assert before.first(NAME).inputs == after.first(NAME).inputs
    assert before.first(NAME).outputs != after.first(NAME).outputs
    run.host.folder.save_best(jobs[1].configuration, {})
    assert (folder / "best" / "adapters" / adapter / "adapter_model.safetensors").is_file()
    run.tape.close()


@pytest.mark.long
def test_requests_that_come_together_load_one_adapter(straight):
    folder, _ = straight
    run = build_run(config(), folder, ConsoleProgress(quiet=True))
    adapters = [Adapter(event["adapter"]) for event in events(folder) if event["event"] == "update"]
    default = run.host.system.default_configuration()
    examples = run.host.splits["train"][:2]
    jobs = [Job(default.replace(NAME, adapter), example, 7) for adapter in adapters for example in examples]
    run_many(run.host.system, jobs, concurrency=len(jobs))
    [local] = run.host.completer._inner._inner._local.values()  # behind the sandbox and the routing
    store = local.sampler().adapters
    assert sorted(store.names) == sorted(adapter.digest for adapter in adapters)
    assert all(len(stack.adapters) <= len(adapters) for stack in store._stacks.values())
    run.tape.close()


def test_weights_of_what_is_no_language_model_are_refused(tmp_path):
    with pytest.raises((ConfigError, ValueError), match="weights of context_retriever: there is no such LLM"):
        build_run(config("context_retriever"), tmp_path, ConsoleProgress(quiet=True))


def test_weights_are_not_tuned_by_rewards_that_hold_likelihood(tmp_path):
    fitted = config()
    fitted = dataclasses.replace(fitted, reward=dataclasses.replace(fitted.reward, heads="fitted"))
    with pytest.raises(ConfigError, match=rf"weights of {NAME} are tuned .* Set config.reward.heads=trained"):
        build_run(fitted, tmp_path / "local", ConsoleProgress(quiet=True))
    likely = dataclasses.replace(fitted, optimize=dataclasses.replace(fitted.optimize, score="off"))
    build_run(likely, tmp_path / "off", ConsoleProgress(quiet=True)).opened.close()


def test_an_answer_that_failed_is_worth_no_more_than_the_worst_other():
    ok, failed = Call("a", {}, {"answer": "a"}), Call("a", {}, {}, Outcome.PARSE_ERROR)
    assert without_failures([ok, failed, ok, failed], [1.0, 5.0, 2.0, -3.0]) == [1.0, 1.0, 2.0, -3.0]
    assert without_failures([failed, failed], [1.0, 5.0]) == [1.0, 1.0]  # nothing to choose between


class ScoreOf:
    """Scores of answers by a function of their text."""

    label = "score of a test"

    def __init__(self, score):
        self.score = score

    def __call__(self, runs, answers):
        return [[self.score(step) for step in steps] for steps in answers]


def test_a_score_that_is_not_finite_stops_with_its_answer(tmp_path):
    run = build_run(config(), tmp_path, ConsoleProgress(quiet=True))
    examples = run.host.splits["train"][:3]
    jobs = [Job(run.host.system.default_configuration(), example, 0) for example in examples]
    runs = list(zip(examples, run_many(run.host.system, jobs, concurrency=4), strict=True))
    policy = ComponentPolicy(
        run.host.system,
        run.host.completer,
        run.device.policies,
        ScoreOf(lambda step: float("nan")),
        NAME,
        runs,
        runs,
        0,
        0,
        4,
    )
    expected = (
        rf"the score of a test of an answer of component '{NAME}' on example '.*' is nan.*the answer is {{'answer'"
    )
    with pytest.raises(StopRun, match=expected):
        policy.update("adapter:", policy.rollout("", 0), 0)
    with pytest.raises(StopRun, match=expected):
        policy.validate("")
    run.tape.close()
