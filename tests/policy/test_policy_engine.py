import dataclasses

import jax
import numpy as np
import pytest

from optimas_jax.checkpoints.peft import read_adapter
from optimas_jax.core.types import StopRun
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.learn.config import PolicyLoss, TokenBatch
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.engine import PolicyDiverged, PolicyEngine, Rollout
from optimas_jax.report.console import ConsoleProgress

CONFIG = PolicyConfig(
    lora=LoraConfig(rank=4, alpha=8.0),
    batch=TokenBatch(tokens=256),
    epochs=2,
    minibatch=2,
    learning_rate=1e-2,
    kl_step=10.0,
)
PROMPTS = [tuple(range(5, 5 + n)) for n in (20, 33, 40)]


@pytest.fixture(scope="module")
def engines():
    return Engines(MeshConfig(data=1), ConsoleProgress(quiet=True))


def engine(engines, folder, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return PolicyEngine(config, "random:0", engines, folder / "adapters", CheckpointStore(folder / "checkpoints"))


def rollout(engines, policies=None, adapter="", score=None, seed=0):
    """Answers of the engine with an adapter; scored by how many of their tokens are even, unless told."""
    sampler = engines.sampler("random:0")
    if adapter:
        sampler.adapters.load(adapter, *read_adapter(policies.adapters / adapter, sampler.network.config))
    groups, logprobs = [], []
    for prompt in PROMPTS:
        requests = [SampleRequest(prompt, 8, temperature=1.0, seed=100 * seed + n, adapter=adapter) for n in range(4)]
        samples = sampler.generate(requests)
        scores = [
            float(np.mean([token % 2 == 0 for token in sample.ids])) if score is None else score for sample in samples
        ]
        groups.append(TokenGroup(prompt, tuple(sample.ids for sample in samples), tuple(scores), 0))
        logprobs.append(tuple(p for sample in samples for p in sample.logprobs))
    return Rollout(tuple(groups), tuple(logprobs))


@pytest.mark.parametrize("algorithm", [pytest.param("ppo", marks=pytest.mark.long), "grpo", "reinforce"])
def test_an_update_raises_what_scored_above_the_others(engines, tmp_path, algorithm):
    policies = engine(engines, tmp_path, loss=PolicyLoss(algorithm))
    answers = rollout(engines)
    update = policies.update(policies.start(""), answers, seed=0)
    assert update.metrics["kl"] == 0.0  # the first rollout is the reference's
    state, _ = policies._load(update.state)
    after = policies._trainer.statistics(state.trainable, answers.groups).logprobs - np.concatenate(answers.logprobs)
    lengths = [len(answer) for group in answers.groups for answer in group.candidate_ids]
    gained = np.asarray([part.sum() for part in np.split(after, np.cumsum(lengths)[:-1])]).reshape(3, 4)
    scores = np.asarray([group.rewards for group in answers.groups])
    assert (
        np.corrcoef((gained - gained.mean(1, keepdims=True)).ravel(), (scores - scores.mean(1, keepdims=True)).ravel())[
            0, 1
        ]
        > 0.5
    )
    # The engine serves what was trained.
    served = rollout(engines, policies, update.adapter, seed=1)
    metrics = policies.update(update.state, served, seed=1).metrics
    assert metrics["served_difference"] < 1e-4
    assert metrics["kl"] > 1e-4


def test_an_update_that_was_done_is_found_again(engines, tmp_path):
    answers = rollout(engines)
    first = engine(engines, tmp_path).update("adapter:", answers, seed=0)
    again = engine(engines, tmp_path)
    again._update = None  # would fail if it were called
    assert again.update("adapter:", answers, seed=0) == first
    elsewhere = engine(engines, tmp_path / "other")
    assert elsewhere.update("adapter:", answers, seed=0).adapter == first.adapter  # to the last bit
    assert elsewhere.update("adapter:", answers, seed=1).adapter != first.adapter


def test_state_goes_on_through_the_disk(engines, tmp_path):
    """Optimiser, critic and the weight of KL are part of the state."""
    policies = engine(engines, tmp_path, loss=PolicyLoss("ppo"), kl_horizon=12.0)
    answers = rollout(engines)
    first = policies.update("adapter:", answers, seed=0)
    state, kl_weight = policies._load(first.state)
    assert int(state.step) == 4 and int(state.opt_state[1].count) == 4  # 3 prompts in minibatches of 2, two epochs
    assert kl_weight == pytest.approx(0.04 * 0.8)  # no KL yet: the least there is
    assert float(np.abs(state.trainable["value"]["kernel"]).max()) > 0
    assert float(jax.tree.reduce(max, jax.tree.map(lambda x: float(abs(x).max()), state.opt_state[1].mu))) > 0
    assert policies.update(first.state, rollout(engines, policies, first.adapter), seed=0).adapter != first.adapter


def test_tuning_goes_on_from_an_adapter(engines, tmp_path):
    policies = engine(engines, tmp_path)
    answers = rollout(engines)
    first = policies.update("adapter:", answers, seed=0)
    state, _ = policies._load(policies.start(first.adapter))
    _, expected = read_adapter(policies.adapters / first.adapter, policies._backbone)
    jax.tree.map(np.testing.assert_array_equal, state.trainable["lora"], expected)
    with pytest.raises(StopRun, match=r"set config.policy.lora alike"):
        engine(engines, tmp_path, lora=LoraConfig(rank=2)).update(f"adapter:{first.adapter}", answers, seed=0)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "reinforce"])
def test_equal_scores_teach_nothing(engines, tmp_path, algorithm):
    policies = engine(engines, tmp_path, loss=PolicyLoss(algorithm))
    update = policies.update("adapter:", rollout(engines, score=0.5), seed=0)
    assert update.metrics["skipped"] == 1.0
    _, lora_params = read_adapter(policies.adapters / update.adapter, policies._backbone)
    assert all(
        not np.asarray(module["lora_b"]).any() for layer in lora_params["layers"].values() for module in layer.values()
    )


def test_an_update_that_moves_too_far_ends(engines, tmp_path):
    answers = rollout(engines)
    whole = engine(engines, tmp_path).update("adapter:", answers, seed=0)
    ended = engine(engines, tmp_path, kl_step=1e-9).update("adapter:", answers, seed=0)
    assert whole.metrics["steps"] == 4
    assert ended.metrics["steps"] == 2  # the first step has not moved yet


def test_divergence_is_named_and_nothing_is_kept(engines, tmp_path, monkeypatch):
    policies = engine(engines, tmp_path)
    diverged = [{"loss": float("nan"), "grad_norm": 1.0, "moved": 0.0}]
    monkeypatch.setattr(policies._trainer, "learn", lambda state, *arguments: (state, diverged))
    with pytest.raises(PolicyDiverged, match=r"in step \d of an update.*lower config.policy.learning_rate"):
        policies.update("adapter:", rollout(engines), seed=0)
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_named(engines, tmp_path, score):
    policies, answers = engine(engines, tmp_path), rollout(engines)
    groups = (answers.groups[0], dataclasses.replace(answers.groups[1], rewards=(0.0, 1.0, score, 0.5)))
    with pytest.raises(StopRun, match=rf"score of answer 2 to prompt 1 of a rollout is {score}.*finite") as error:
        policies.update("adapter:", dataclasses.replace(answers, groups=groups), seed=0)
    assert not isinstance(error.value, PolicyDiverged) and "learning_rate" not in str(error.value)
    assert not (tmp_path / "adapters").exists()


def test_answers_of_the_base_instead_of_the_adapter_are_refused(engines, tmp_path):
    """After the first update: a proxy that takes adapters and sends all requests to the base."""
    policies = engine(engines, tmp_path, learning_rate=1e-3)
    first = policies.update("adapter:", rollout(engines), seed=0)
    second = policies.update(first.state, rollout(engines, policies, first.adapter, seed=1), seed=1)
    assert second.metrics["served_difference"] < second.metrics["served_limit"] == 0.02
    with pytest.raises(StopRun, match=r"come from the base model and not from the adapter.*config\.server"):
        policies.update(first.state, rollout(engines, seed=1), seed=1)


@pytest.mark.parametrize(("batch", "parts"), [(80, 3), (64, 3)])
def test_groups_longer_than_a_batch_are_split(engines, tmp_path, batch, parts):
    """The prompt and its answers have up to 72 tokens; each batch holds some of the answers."""
    answers = rollout(engines)
    whole, cut = (engine(engines, tmp_path, minibatch=3, batch=TokenBatch(tokens=tokens)) for tokens in (512, batch))
    plan = cut._trainer._plan(cut._trainer._sequences(answers.groups)[0], range(parts))
    assert all(sum(len(part) for part in batch) for batch in plan)
    first, second = (policies.update("adapter:", answers, seed=0) for policies in (whole, cut))
    for name, value in first.metrics.items():
        assert second.metrics[name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


def test_no_batch_is_larger_than_memory_was_checked_for(engines, tmp_path):
    trainer = engine(engines, tmp_path, batch=TokenBatch(tokens=64))._trainer
    sequences, of_group = trainer._sequences(rollout(engines).groups)
    assert [index for indices in of_group for index in indices] == list(range(len(sequences)))
    for batch in trainer._plan(sequences, range(len(sequences))):
        assert sum(sequences[index].length for part in batch for index in part) <= 64


def test_an_answer_that_no_batch_holds_is_named(engines, tmp_path):
    policies = engine(engines, tmp_path, batch=TokenBatch(tokens=40))
    with pytest.raises(
        StopRun, match=r"prompt of 33 tokens and an answer of \d are longer than a batch of 40.*max_tokens"
    ):
        policies.update("adapter:", rollout(engines), seed=0)


def test_a_large_minibatch_is_computed_in_parts(engines, tmp_path):
    answers = rollout(engines)
    whole = engine(engines, tmp_path, minibatch=3, batch=TokenBatch(tokens=512))
    parts = engine(engines, tmp_path, minibatch=3, batch=TokenBatch(tokens=80))
    first, second = whole.update("adapter:", answers, seed=0), parts.update("adapter:", answers, seed=0)
    for name, value in first.metrics.items():
        assert second.metrics[name] == pytest.approx(value, rel=1e-2, abs=1e-3), name
