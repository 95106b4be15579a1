"""Weights of a component of a real system, with a tiny random model: rollouts, updates, kill and resume."""

import dataclasses
import json

import pytest
from runs import run_config

from optimas_jax.benchmarks.hotpotqa import SystemConfig
from optimas_jax.core.plain import ConfigError
from optimas_jax.core.system import Job, run_many
from optimas_jax.core.types import Outcome, Step
from optimas_jax.core.values import BASE, Adapter
from optimas_jax.learn.config import BatchShape
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.policy import PolicyEngine
from optimas_jax.loop.progress import Progress
from optimas_jax.loop.run import build_run
from optimas_jax.loop.train_config import PolicyConfig, RewardConfig
from optimas_jax.loop.weights import tune_weights, without_failures
from optimas_jax.models.config import LoraConfig

NAME = "answer_generator"


def config(weights=NAME, **changes):
    model = LanguageModel("random:0", style="text", temperature=1.0, max_tokens=8)
    base = run_config()
    return dataclasses.replace(
        base,
        system=SystemConfig(model, k_grid=(1, 2), k=1, weights=weights),
        proposer=model,
        reward=RewardConfig("random:0", lora=LoraConfig(rank=4, alpha=8.0, last_layers=1)),
        policy=PolicyConfig(
            lora=LoraConfig(rank=4, alpha=8.0),
            batch=BatchShape(tokens=1024, group_tokens=1024),
            updates=3,
            prompts=2,
            samples=3,
            epochs=1,
            minibatch=2,
            validate_every=2,
            learning_rate=1e-2,
            kl_budget=5.0,
        ),
        data=dataclasses.replace(base.data, train=8, val=4, test=4),
        **changes,
    )


def tuned(folder, current=BASE):
    run = build_run(config(), folder, Progress(quiet=True))
    try:
        reward, _ = run.engine.train(run.system, None, [], [], epochs=1, seed=0)
        examples = run.splits["train"]
        jobs = [Job(run.system.default_configuration(), example, 0) for example in examples]
        traces = run_many(run.system, jobs, concurrency=8)
        return tune_weights(run, reward, NAME, current, examples, traces, seed=0)
    finally:
        run.tape.close()


def events(folder):
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, tuned(folder)


def test_updates_are_made_and_looked_at(straight):
    folder, result = straight
    made = [event for event in events(folder) if event["event"] == "update"]
    assert [event["number"] for event in made] == [0, 1, 2]
    assert [e["number"] for e in events(folder) if e["event"] == "validation"] == [0, 2, 3]
    assert result.updates == 3
    assert result.score >= result.before
    assert all(event["served_difference"] < 1e-4 for event in made)
    folders = {path.name for path in (folder / "adapters").iterdir()}
    assert {event["adapter"] for event in made} == folders
    assert len(folders) == 3


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


def test_a_component_with_weights_answers_with_its_adapter(straight):
    folder, _ = straight
    run = build_run(config(), folder, Progress(quiet=True))
    adapter = next(event["adapter"] for event in events(folder) if event["event"] == "update" and event["number"] == 2)
    example = run.splits["val"][0]
    configuration = run.system.default_configuration()
    assert configuration[NAME] == BASE
    jobs = [Job(one, example, 0) for one in (configuration, configuration.replace(NAME, Adapter(adapter)))]
    before, after = run_many(run.system, jobs, concurrency=2)
    assert before.steps[NAME].inputs == after.steps[NAME].inputs
    assert before.steps[NAME].outputs != after.steps[NAME].outputs
    run.folder.save_best(jobs[1].configuration, {})
    assert (folder / "best" / "adapters" / adapter / "adapter_model.safetensors").is_file()
    run.tape.close()


def test_requests_that_come_together_load_one_adapter(straight):
    folder, _ = straight
    run = build_run(config(), folder, Progress(quiet=True))
    adapters = [Adapter(event["adapter"]) for event in events(folder) if event["event"] == "update"]
    default = run.system.default_configuration()
    jobs = [Job(default.replace(NAME, adapter), example, 7) for adapter in adapters for example in run.splits["train"]]
    run_many(run.system, jobs, concurrency=32)
    [local] = run.completer._inner._inner._local.values()  # behind the sandbox and the routing
    store = local.sampler().adapters
    assert sorted(store.names) == sorted(adapter.digest for adapter in adapters)
    assert all(len(stack.adapters) <= len(adapters) for stack in store._stacks.values())
    run.tape.close()


def test_weights_of_what_is_no_language_model_are_refused(tmp_path):
    with pytest.raises((ConfigError, ValueError), match="weights of context_retriever: there is no such LLM"):
        build_run(config("context_retriever"), tmp_path, Progress(quiet=True))


def test_an_answer_that_failed_is_worth_no_more_than_the_worst_other():
    ok, failed = Step({}, {"answer": "a"}), Step({}, {}, Outcome.PARSE_ERROR)
    assert without_failures([ok, failed, ok, failed], [1.0, 5.0, 2.0, -3.0]) == [1.0, 1.0, 2.0, -3.0]
    assert without_failures([failed, failed], [1.0, 5.0]) == [1.0, 1.0]  # nothing to choose between
