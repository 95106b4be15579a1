import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.learn.batches import candidate_tokens, make_batch
from optimas_jax.learn.config import PolicyLoss
from optimas_jax.learn.ppo import PolicyFunctions, Statistics, Targets, by_group, init_policy, make_policy_batch
from optimas_jax.learn.train_state import init_state, make_optimizer
from optimas_jax.models.backbone import merge_model
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.forward import forward
from optimas_jax.models.lora import merge_lora

PPO, GRPO = PolicyLoss("ppo"), PolicyLoss("grpo")


def functions(network, loss=GRPO, lora=tiny.LORA):
    return PolicyFunctions(network, lora, loss, make_optimizer())


def random_policy(config=tiny.CONFIG, lora=tiny.LORA):
    trainable = init_policy(config, lora, jax.random.key(0))
    value = {"kernel": 0.1 * jax.random.normal(jax.random.key(2), trainable["value"]["kernel"].shape)}
    return {"lora": tiny.random_lora(trainable["lora"]), "value": value}


def groups(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [tiny.random_group(rng, candidates=2 + index % 3) for index in range(count)]


def sizes(some):
    return [sum(map(len, group.candidate_ids)) for group in some]


def plain_logprobs(network, params, prompt, answer):
    """Log-probabilities and entropies of an answer's tokens, and hidden states, computed the long way."""
    ids = [*prompt, *answer]
    hidden = forward(network, params, *tiny.plain(ids))[len(prompt) - 1 : len(ids) - 1]
    logprobs = jax.nn.log_softmax(merge_model(network, params).logits(hidden))
    entropy = -(jnp.exp(logprobs) * logprobs).sum(axis=-1)
    return logprobs[np.arange(len(answer)), np.asarray(answer)], entropy, hidden


def statistics_of(made, params, trainable, some, **layout):
    batch = make_batch(some, candidates=4, pad_id=0, **({"tiled": True} | layout))
    return made.statistics(params, trainable, batch.flat, candidate_tokens(some, batch))


@pytest.mark.parametrize("lora", [tiny.LORA, LoraConfig(rank=4, alpha=8.0, last_layers=2)])
@pytest.mark.parametrize("tiled", [True, False])
def test_statistics_equal_those_of_single_answers(tiled, lora):
    network, params = tiny.model()
    trainable, some = random_policy(lora=lora), groups()
    statistics = statistics_of(functions(network, lora=lora), params, trainable, some, tiled=tiled)
    merged, at = merge_lora(params, trainable["lora"], lora.scale), 0
    for group in some:
        for answer in group.candidate_ids:
            own = slice(at, at := at + len(answer))
            logprobs, entropy, hidden = plain_logprobs(network, merged, group.prefix_ids, answer)
            np.testing.assert_allclose(statistics.logprobs[own], logprobs, atol=1e-4)
            np.testing.assert_allclose(statistics.entropy[own], entropy, atol=1e-4)
            np.testing.assert_allclose(
                statistics.values[own], (hidden @ trainable["value"]["kernel"])[:, 0], rtol=1e-4, atol=1e-4
            )
            reference, _, _ = plain_logprobs(network, params, group.prefix_ids, answer)
            np.testing.assert_allclose(statistics.ref_logprobs[own], reference, atol=1e-4)
    assert float(jnp.abs(statistics.logprobs - statistics.ref_logprobs).max()) > 0.1


def test_the_sampler_and_the_trainer_agree():
    sampler = tiny.sampler()
    prompt = tuple(range(5, 60))
    samples = sampler.generate([SampleRequest(prompt, 12, temperature=1.0, seed=seed) for seed in range(4)])
    group = dataclasses.replace(
        tiny.random_group(np.random.default_rng(0)),
        prefix_ids=prompt,
        candidate_ids=tuple(tuple(int(token) for token in sample.ids) for sample in samples),
        rewards=(0.0,) * 4,
    )
    made = functions(sampler.network)
    trainable = init_policy(sampler.network.config, tiny.LORA, jax.random.key(0))
    statistics = statistics_of(made, sampler.params, trainable, [group])
    sampled = np.concatenate([sample.logprobs for sample in samples])
    np.testing.assert_allclose(statistics.logprobs[: len(sampled)], sampled, atol=1e-4)


def targets_of(made, params, trainable, some, kl_weight=0.1):
    statistics = jax.tree.map(lambda part: part[: sum(sizes(some))], statistics_of(made, params, trainable, some))
    answers = [answer for group in some for answer in group.candidate_ids]
    answer = np.repeat(np.arange(len(answers)), [len(one) for one in answers])
    scores = np.asarray([reward for group in some for reward in group.rewards], np.float32)
    group = np.repeat(np.arange(len(some)), [len(one.candidate_ids) for one in some])
    return by_group(made.targets(statistics, answer, scores, group, kl_weight), sizes(some))


def policy_batch(made, params, trainable, some, **layout):
    return make_policy_batch(some, targets_of(made, params, trainable, some), pad_id=0, **({"tiled": True} | layout))


@pytest.mark.parametrize("loss", [PPO, GRPO])
def test_the_ratio_is_one_before_anything_changed(loss):
    """So the policy's loss is minus the mean advantage: nothing is clipped, and nothing has moved."""
    network, params = tiny.model()
    trainable, some = random_policy(), groups()
    made = functions(network, loss)
    batch = policy_batch(made, params, trainable, some)
    _, metrics = made.gradients(trainable, params, batch)
    np.testing.assert_allclose(
        metrics["policy_loss"][0], -batch.targets.advantages[batch.tokens.valid].sum(), rtol=1e-4, atol=1e-4
    )
    assert metrics["clipped"][0] == 0.0
    assert metrics["moved"][0] == 0.0  # to the last bit: the same programs computed both


@pytest.mark.parametrize("loss", [PPO, GRPO])
@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("tiled", [True, False])
def test_gradients_equal_automatic_ones_of_single_answers(loss, tiled, layerwise):
    network, params = tiny.model(compute=dataclasses.replace(tiny.F32, layerwise=layerwise))
    old, some = random_policy(), groups()
    made = functions(network, loss)
    batch = policy_batch(made, params, old, some, tiled=tiled)
    trainable = jax.tree.map(lambda leaf: leaf * 1.02, old)  # so that ratios are not 1
    targets = jax.tree.map(lambda part: part[batch.tokens.valid], batch.targets)

    def plain(trainable):
        merged = merge_lora(params, trainable["lora"], tiny.LORA.scale)
        rows = [plain_logprobs(network, merged, g.prefix_ids, answer) for g in some for answer in g.candidate_ids]
        logprobs, hidden = (jnp.concatenate([row[n] for row in rows]) for n in (0, 2))
        ratio = jnp.exp(logprobs - targets.logprobs)
        clipped = jnp.clip(ratio, 0.8, 1.2)
        total = -jnp.minimum(ratio * targets.advantages, clipped * targets.advantages).sum()
        if loss.algorithm == "grpo":
            difference = targets.ref_logprobs - logprobs
            return total + 0.04 * (jnp.exp(difference) - difference - 1).sum()
        values = (hidden @ trainable["value"]["kernel"])[:, 0]
        near = targets.values + jnp.clip(values - targets.values, -0.2, 0.2)
        errors = jnp.maximum((values - targets.returns) ** 2, (near - targets.returns) ** 2)
        return total + 0.1 * 0.5 * errors.sum()

    expected, expected_grads = jax.jit(jax.value_and_grad(plain))(trainable)
    grads, metrics = made.gradients(trainable, params, batch)
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-3, atol=1e-3)
    assert metrics["loss"][1] == sum(sizes(some))
    for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=5e-3, atol=1e-3 * float(jnp.abs(theirs).max()) + 1e-6)


def test_a_minibatch_in_parts_is_the_same_minibatch():
    network, params = tiny.model()
    trainable, some = random_policy(), groups(4)
    made = functions(network, PPO)
    targets = targets_of(made, params, trainable, some)

    def step(parts):
        state = init_state(jax.tree.map(jnp.copy, trainable), make_optimizer())
        batches = [
            make_policy_batch([some[i] for i in part], [targets[i] for i in part], pad_id=0, tiled=True)
            for part in parts
        ]
        return made.train_step(state, params, batches, 1e-3)

    whole, metrics = step([[0, 1, 2, 3]])
    apart, metrics_apart = step([[0, 2], [1], [3]])
    for name, (total, count) in metrics.items():
        np.testing.assert_allclose(metrics_apart[name], (total, count), rtol=1e-3, atol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole.trainable, apart.trainable)


@pytest.mark.parametrize("kl_step", [100.0, 1e-4])
def test_an_update_in_one_program_is_the_update_step_by_step(kl_step):
    """As accelerators run it, and as CPUs do; with parts of one shape, an empty one, and an end before its time."""
    trainable, some = random_policy(), groups(4)
    minibatches = [[[0, 1], [2]], [[3]], [[1], [0, 3]], [[2]]]
    results = []
    for layerwise in (True, False):
        network, params = tiny.model(compute=dataclasses.replace(tiny.F32, layerwise=layerwise))
        made = functions(network, PPO)
        targets = targets_of(made, params, trainable, some)
        others = [[some[i] for i in part] for parts in minibatches for part in parts]
        steps = [
            [
                make_policy_batch(
                    [some[i] for i in part],
                    [targets[i] for i in part],
                    pad_id=0,
                    tiled=True,
                    tokens=256,
                    others=others,
                )
                for part in parts
            ]
            for parts in minibatches
        ]
        state = init_state(jax.tree.map(jnp.copy, trainable), make_optimizer())
        results.append(made.update(state, params, steps, 1e-3, kl_step))
    (state, metrics), (other, other_metrics) = results
    assert len(metrics) == len(other_metrics) == (4 if kl_step > 1 else 2)
    for one, two in zip(metrics, other_metrics, strict=True):
        assert one == pytest.approx(two, rel=1e-2, abs=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), state.trainable, other.trainable)
    assert int(state.step) == int(other.step) == len(metrics)


@pytest.mark.parametrize("tiled", [True, False])
def test_batches_of_others_have_the_same_shapes(tiled):
    some = groups(4)
    parts = [[0, 1], [2], [3]]
    others = [[some[i] for i in part] for part in parts]
    zeros = [Targets(*[np.zeros(n, np.float32)] * 5) for n in sizes(some)]
    made = [
        make_policy_batch(chosen, [zeros[i] for i in part], pad_id=0, tiled=tiled, tokens=256, others=others)
        for chosen, part in zip(others, parts, strict=True)
    ]
    shapes = [jax.tree.map(np.shape, batch) for batch in made]
    assert shapes[0] == shapes[1] == shapes[2]


def test_padding_changes_nothing():
    network, params = tiny.model()
    trainable, some = random_policy(), groups(2)
    made = functions(network, PPO)
    grads, metrics = made.gradients(trainable, params, policy_batch(made, params, trainable, some))
    padded = policy_batch(made, params, trainable, some, tokens=512)
    more = 128
    padded = padded._replace(
        tokens=type(padded.tokens)(*(np.pad(part, (0, more)) for part in padded.tokens)),
        targets=Targets(*(np.pad(part, (0, more), constant_values=9.0) for part in padded.targets)),
    )
    padded_grads, padded_metrics = made.gradients(trainable, params, padded)
    for name, pair in metrics.items():
        np.testing.assert_allclose(padded_metrics[name], pair, rtol=1e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grads, padded_grads)


def test_targets_ignore_padding():
    made = functions(tiny.model()[0], PPO)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(6).astype(np.float32) for _ in range(4)]
    answer, scores, group = np.asarray([0, 0, 1, 1, 1, 2]), np.asarray([1.0, 0.0, 2.0], np.float32), np.arange(3)
    plain = made.targets(Statistics(*arrays), answer, scores, group, 0.1)
    padded = made.targets(
        Statistics(*(np.pad(part, (0, 3), constant_values=5.0) for part in arrays)),
        np.pad(answer, (0, 3), constant_values=3),
        scores,
        group,
        0.1,
    )
    for one, other in zip(plain, padded, strict=True):
        np.testing.assert_allclose(one, other[:6], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [PPO, GRPO])
def test_a_bandit_finds_its_best_arm(loss):
    """One prompt, answers of one token, reward 1 for one token of four: the policy must come to prefer it."""
    sampler = tiny.sampler(scale=4.0)
    network, params = sampler.network, sampler.params
    made = PolicyFunctions(network, tiny.LORA, loss, make_optimizer())
    prompt, arms, best = tuple(range(5, 15)), (40, 41, 42, 43), 42
    state = init_state(init_policy(network.config, tiny.LORA, jax.random.key(0)), make_optimizer())
    rng = np.random.default_rng(0)

    def probabilities():
        group = dataclasses.replace(
            tiny.random_group(rng), prefix_ids=prompt, candidate_ids=tuple((arm,) for arm in arms), rewards=(0.0,) * 4
        )
        logprobs = np.asarray(statistics_of(made, params, state.trainable, [group]).logprobs[:4], np.float64)
        return np.exp(logprobs - np.logaddexp.reduce(logprobs))

    assert probabilities()[2] < 0.5
    for _ in range(40):
        chosen = rng.choice(arms, 4, p=probabilities())
        group = dataclasses.replace(
            tiny.random_group(rng),
            prefix_ids=prompt,
            candidate_ids=tuple((int(arm),) for arm in chosen),
            rewards=tuple(float(arm == best) for arm in chosen),
        )
        batch = policy_batch(made, params, state.trainable, [group])
        for _ in range(2):
            state, _ = made.train_step(state, params, [batch], 3e-3)
    assert probabilities()[2] > 0.9
