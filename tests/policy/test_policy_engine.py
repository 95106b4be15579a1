import dataclasses

import jax
import numpy as np
import pytest

from optimas_jax.checkpoints.peft import read_adapter
from optimas_jax.core.types import StopRun
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.learn.config import BatchShape, PolicyLoss
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.loop.progress import ConsoleProgress
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.engine import PolicyDiverged, PolicyEngine, Rollout

CONFIG = PolicyConfig(
    lora=LoraConfig(rank=4, alpha=8.0),
    batch=BatchShape(tokens=256, group_tokens=256),
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


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_an_update_raises_what_scored_above_the_others(engines, tmp_path, algorithm):
    policies = engine(engines, tmp_path, loss=PolicyLoss(algorithm))
    made = rollout(engines)
    update = policies.update(policies.start(""), made, seed=0)
    assert update.metrics["kl"] == 0.0  # the first rollout is the reference's
    state, _ = policies._load(update.state)
    after = policies._trainer.statistics(state.trainable, made.groups).logprobs - np.concatenate(made.logprobs)
    lengths = [len(answer) for group in made.groups for answer in group.candidate_ids]
    gained = np.asarray([part.sum() for part in np.split(after, np.cumsum(lengths)[:-1])]).reshape(3, 4)
    scores = np.asarray([group.rewards for group in made.groups])
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
    made = rollout(engines)
    first = engine(engines, tmp_path).update("adapter:", made, seed=0)
    again = engine(engines, tmp_path)
    again._update = None  # would fail if it were called
    assert again.update("adapter:", made, seed=0) == first
    elsewhere = engine(engines, tmp_path / "other")
    assert elsewhere.update("adapter:", made, seed=0).adapter == first.adapter  # to the last bit
    assert elsewhere.update("adapter:", made, seed=1).adapter != first.adapter


def test_state_goes_on_through_the_disk(engines, tmp_path):
    """Optimiser, critic and the weight of KL are part of the state."""
    policies = engine(engines, tmp_path, loss=PolicyLoss("ppo"), kl_horizon=12.0)
    made = rollout(engines)
    first = policies.update("adapter:", made, seed=0)
    state, kl_weight = policies._load(first.state)
    assert int(state.step) == 4 and int(state.opt_state[1].count) == 4  # 3 prompts in minibatches of 2, two epochs
    assert kl_weight == pytest.approx(0.04 * 0.8)  # no KL yet: the least there is
    assert float(np.abs(state.trainable["value"]["kernel"]).max()) > 0
    assert float(jax.tree.reduce(max, jax.tree.map(lambda x: float(abs(x).max()), state.opt_state[1].mu))) > 0
    assert policies.update(first.state, made, seed=0).adapter != first.adapter


def test_tuning_goes_on_from_an_adapter(engines, tmp_path):
    policies = engine(engines, tmp_path)
    made = rollout(engines)
    first = policies.update("adapter:", made, seed=0)
    state, _ = policies._load(policies.start(first.adapter))
    _, expected = read_adapter(policies.adapters / first.adapter, policies._backbone)
    jax.tree.map(np.testing.assert_array_equal, state.trainable["lora"], expected)
    with pytest.raises(StopRun, match=r"set config.policy.lora alike"):
        engine(engines, tmp_path, lora=LoraConfig(rank=2)).update(f"adapter:{first.adapter}", made, seed=0)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_equal_scores_teach_nothing(engines, tmp_path, algorithm):
    policies = engine(engines, tmp_path, loss=PolicyLoss(algorithm))
    update = policies.update("adapter:", rollout(engines, score=0.5), seed=0)
    assert update.metrics["skipped"] == 1.0
    _, lora_params = read_adapter(policies.adapters / update.adapter, policies._backbone)
    assert all(
        not np.asarray(own["lora_b"]).any() for layer in lora_params["layers"].values() for own in layer.values()
    )


def test_an_update_that_moves_too_far_ends(engines, tmp_path):
    made = rollout(engines)
    whole = engine(engines, tmp_path).update("adapter:", made, seed=0)
    ended = engine(engines, tmp_path, kl_step=1e-9).update("adapter:", made, seed=0)
    assert whole.metrics["steps"] == 4
    assert ended.metrics["steps"] == 2  # the first step has not moved yet


def test_divergence_is_named_and_nothing_is_kept(engines, tmp_path):
    policies = engine(engines, tmp_path)
    made = rollout(engines)
    groups = (dataclasses.replace(made.groups[0], rewards=(float("nan"), 0.0, 1.0, 0.5)), *made.groups[1:])
    with pytest.raises(PolicyDiverged, match=r"in step \d of an update.*lower config.policy.learning_rate"):
        policies.update("adapter:", dataclasses.replace(made, groups=groups), seed=0)
    assert not (tmp_path / "adapters").exists()


def test_a_large_minibatch_is_computed_in_parts(engines, tmp_path):
    made = rollout(engines)
    whole = engine(engines, tmp_path, minibatch=3, batch=BatchShape(tokens=512, group_tokens=256))
    parts = engine(engines, tmp_path, minibatch=3, batch=BatchShape(tokens=80, group_tokens=80))
    first, second = whole.update("adapter:", made, seed=0), parts.update("adapter:", made, seed=0)
    for name, value in first.metrics.items():
        assert second.metrics[name] == pytest.approx(value, rel=1e-2, abs=1e-3), name
