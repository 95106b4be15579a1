import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.learn.batches import candidate_tokens, make_batch
from optimas_jax.learn.config import PolicyLoss
from optimas_jax.learn.policy_batch import (
    Statistics,
    Targets,
    by_group,
    make_policy_batch,
    sampled_tokens,
    split_group,
)
from optimas_jax.learn.ppo import PolicyFunctions, init_policy
from optimas_jax.learn.train_state import init_state
from optimas_jax.models.backbone import merge_model
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.forward import forward
from optimas_jax.models.lora import merge_lora

PPO, GRPO, REINFORCE = (PolicyLoss(name) for name in ("ppo", "grpo", "reinforce"))
TOKENS = 256  # of most batches, so that few programs are compiled


def functions(network, loss=GRPO, lora=tiny.LORA):
    return PolicyFunctions(network, lora, loss, tiny.OPTIMIZER)


def random_policy(config=tiny.CONFIG, lora=tiny.LORA):
    trainable = init_policy(config, lora, jax.random.key(0))
    value = {"kernel": 0.1 * jax.random.normal(jax.random.key(2), trainable["value"]["kernel"].shape)}
    return {"lora": tiny.random_lora(trainable["lora"]), "value": value}


def groups(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [tiny.random_group(rng, candidates=2 + index % 3) for index in range(count)]


def sizes(some):
    return [sampled_tokens(group) for group in some]


LONGEST = 12  # tokens of an answer: single answers have one shape, and compile once


def alone(prompt, answer):
    """One answer as a plain sequence, the positions whose outputs predict its tokens, and its tokens; both padded."""
    padding = (0, LONGEST - len(answer))
    positions = np.pad(np.arange(len(answer)) + len(prompt) - 1, padding)
    return tiny.plain([*prompt, *answer]), positions, np.pad(np.asarray(answer, np.int32), padding)


def plain_logprobs(network, params, flat, positions, answer):
    """Log-probabilities and entropies of an answer's tokens, and hidden states, computed the long way."""
    hidden = forward(network, params, *flat)[positions]
    logprobs = jax.nn.log_softmax(merge_model(network, params).logits(hidden))
    entropy = -(jnp.exp(logprobs) * logprobs).sum(axis=-1)
    return logprobs[np.arange(LONGEST), answer], entropy, hidden


def statistics_of(policy, params, trainable, some, **layout):
    batch = make_batch(some, candidates=4, pad_id=0, **({"tiled": True, "tokens": TOKENS} | layout))
    return policy.statistics(params, trainable, batch.flat, candidate_tokens(some, batch.ends.shape))


@pytest.mark.parametrize("lora", [tiny.LORA, LoraConfig(rank=4, alpha=8.0, last_layers=2)])
@pytest.mark.parametrize("tiled", [True, False])
def test_statistics_equal_those_of_single_answers(tiled, lora):
    network, params = tiny.model()
    trainable, some = random_policy(lora=lora), groups()
    statistics = jax.device_get(statistics_of(functions(network, lora=lora), params, trainable, some, tiled=tiled))
    merged, begin = merge_lora(params, trainable["lora"], lora.scale), 0
    kernel, compute = np.asarray(trainable["value"]["kernel"]), jax.jit(functools.partial(plain_logprobs, network))
    for group in some:
        for answer in group.candidate_ids:
            count, sequence = len(answer), alone(group.prefix_ids, answer)
            tokens = slice(begin, begin := begin + count)
            logprobs, entropy, hidden = (np.asarray(part)[:count] for part in compute(merged, *sequence))
            np.testing.assert_allclose(statistics.logprobs[tokens], logprobs, atol=1e-4)
            np.testing.assert_allclose(statistics.entropy[tokens], entropy, atol=1e-4)
            np.testing.assert_allclose(statistics.values[tokens], (hidden @ kernel)[:, 0], rtol=1e-4, atol=1e-4)
            reference = np.asarray(compute(params, *sequence)[0])[:count]
            np.testing.assert_allclose(statistics.ref_logprobs[tokens], reference, atol=1e-4)
    assert float(np.abs(statistics.logprobs - statistics.ref_logprobs).max()) > 0.1


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
    policy = functions(sampler.network)
    trainable = init_policy(sampler.network.config, tiny.LORA, jax.random.key(0))
    statistics = statistics_of(policy, sampler.params, trainable, [group])
    sampled = np.concatenate([sample.logprobs for sample in samples])
    np.testing.assert_allclose(statistics.logprobs[: len(sampled)], sampled, atol=1e-4)


def targets_of(policy, params, trainable, some, tokens=TOKENS):
    statistics = statistics_of(policy, params, trainable, some, tokens=tokens)
    statistics = jax.tree.map(lambda part: part[: sum(sizes(some))], statistics)
    answers = [answer for group in some for answer in group.candidate_ids]
    answer = np.repeat(np.arange(len(answers)), [len(one) for one in answers])
    scores = np.asarray([reward for group in some for reward in group.rewards], np.float32)
    group = np.repeat(np.arange(len(some)), [len(one.candidate_ids) for one in some])
    return by_group(policy.targets(statistics, answer, scores, group, 0.1), sizes(some))


def policy_batch(policy, params, trainable, some, tiled=True, tokens=TOKENS):
    targets = targets_of(policy, params, trainable, some, tokens)
    return make_policy_batch(some, targets, pad_id=0, tiled=tiled, tokens=tokens)


@functools.cache
def plain_gradients(loss):
    """Loss of one answer, padded, and its gradients, computed the long way."""
    network, _ = tiny.model(tiny.SHALLOW)

    def plain(trainable, params, sequence, valid, targets, clip):
        merged = merge_lora(params, trainable["lora"], tiny.LORA.scale)
        logprobs, _, hidden = plain_logprobs(network, merged, *sequence)
        ratio = jnp.exp(logprobs - targets.logprobs)
        clipped = jnp.clip(ratio, 0.8, 1.2)
        per_token = -jnp.minimum(ratio * targets.advantages, clipped * targets.advantages)
        if loss is GRPO:
            difference = targets.ref_logprobs - logprobs
            per_token += 0.04 * (jnp.exp(difference) - difference - 1)
        if loss is PPO:
            values = (hidden @ trainable["value"]["kernel"])[:, 0]
            near = targets.values + jnp.clip(values - targets.values, -clip, clip)
            per_token += 0.1 * 0.5 * jnp.maximum((values - targets.returns) ** 2, (near - targets.returns) ** 2)
        total = jnp.where(valid, per_token, 0.0).sum()
        return total if loss is PPO else total / valid.sum()

    return jax.jit(jax.value_and_grad(plain))


@pytest.mark.parametrize("loss", [PPO, GRPO, REINFORCE])
def test_the_ratio_is_one_before_anything_changed(loss):
    """So the policy's loss is minus the weighted advantages: nothing is clipped, and nothing has moved."""
    network, params = tiny.model()
    trainable, some = random_policy(), groups()
    policy = functions(network, loss)
    batch = policy_batch(policy, params, trainable, some)
    _, metrics = policy.gradients(trainable, params, batch)
    expected = -(batch.targets.weights * batch.targets.advantages)[batch.tokens.valid].sum()
    np.testing.assert_allclose(metrics["policy_loss"][0], expected, rtol=1e-4, atol=1e-4)
    assert metrics["clipped"][0] == 0.0
    assert metrics["moved"][0] == 0.0  # to the last bit: the same programs computed both


@pytest.mark.parametrize(("loss", "tiled"), [*itertools.product([PPO, GRPO], [True, False]), (REINFORCE, True)])
def test_gradients_equal_automatic_ones_of_single_answers(loss, tiled):
    network, params = tiny.model(tiny.SHALLOW)
    old, some = random_policy(tiny.SHALLOW), groups()
    policy = functions(network, loss)
    batch = policy_batch(policy, params, old, some, tiled=tiled)
    trainable = jax.tree.map(lambda leaf: leaf * 1.02, old)  # so that ratios are not 1
    targets = jax.tree.map(lambda part: np.asarray(part[batch.tokens.valid]), batch.targets)
    clip = 0.2 * np.std([score - np.mean(g.rewards) for g in some for score in g.rewards])
    compute, losses, begin = plain_gradients(loss), [], 0
    for group in some:
        for answer in group.candidate_ids:
            inside, padding = slice(begin, begin := begin + len(answer)), (0, LONGEST - len(answer))
            padded = jax.tree.map(lambda part, inside=inside, padding=padding: np.pad(part[inside], padding), targets)
            valid = np.arange(LONGEST) < len(answer)
            sequence = alone(group.prefix_ids, answer)
            losses.append(jax.device_get(compute(trainable, params, sequence, valid, padded, clip)))
    expected, expected_grads = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *losses)
    grads, metrics = policy.gradients(trainable, params, batch)
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(metrics["loss"][1], sum(sizes(some)) if loss is PPO else len(losses), rtol=1e-6)
    for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=5e-3, atol=1e-3 * float(np.abs(theirs).max()) + 1e-6)


def test_a_minibatch_in_parts_is_the_same_minibatch():
    network, params = tiny.model()
    trainable, some = random_policy(), groups(4)
    policy = functions(network, PPO)
    targets = targets_of(policy, params, trainable, some)

    def step(parts):
        state = init_state(jax.tree.map(jnp.copy, trainable), tiny.OPTIMIZER)
        layout = {"pad_id": 0, "tiled": True, "tokens": TOKENS, "others": [some]}
        batches = [make_policy_batch([some[i] for i in part], [targets[i] for i in part], **layout) for part in parts]
        return policy.train_step(state, params, [batches[:1], batches[1:]] if len(batches) > 1 else [batches], 1e-3)

    whole, metrics = step([[0, 1, 2, 3]])
    apart, metrics_apart = step([[0, 2], [1], [3]])
    for name, (total, count) in metrics.items():
        np.testing.assert_allclose(metrics_apart[name], (total, count), rtol=1e-3, atol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole.trainable, apart.trainable)


@pytest.mark.parametrize(("kl_step", "steps"), [(100.0, 4), (1e-4, 2)])
def test_an_update_ends_where_the_policy_has_moved_too_far(kl_step, steps):
    trainable, some = random_policy(tiny.SHALLOW), groups(4)
    network, params = tiny.model(tiny.SHALLOW)
    policy = functions(network, PPO)
    targets = targets_of(policy, params, trainable, some)
    layout = {"pad_id": 0, "tiled": True, "tokens": TOKENS, "others": [some]}
    minibatches = [
        [[make_policy_batch([some[i] for i in part], [targets[i] for i in part], **layout) for part in parts]]
        for parts in ([[0, 1], [2]], [[3]], [[1], [0, 3]], [[2]])
    ]
    state = init_state(jax.tree.map(jnp.copy, trainable), tiny.OPTIMIZER)
    state, metrics = policy.update(state, params, minibatches, 1e-3, kl_step)
    assert int(state.step) == len(metrics) == steps
    assert all(step["moved"] <= kl_step for step in metrics[:-1])
    assert (metrics[-1]["moved"] > kl_step) == (steps < 4)


@pytest.mark.parametrize("tiled", [True, False])
def test_batches_of_others_have_the_same_shapes(tiled):
    some = groups(4)
    parts = [[0, 1], [2], [3]]
    others = [[some[i] for i in part] for part in parts]
    zeros = [Targets(*[np.zeros(n, np.float32)] * 7) for n in sizes(some)]
    policy = [
        make_policy_batch(chosen, [zeros[i] for i in part], pad_id=0, tiled=tiled, tokens=256, others=others)
        for chosen, part in zip(others, parts, strict=True)
    ]
    shapes = [jax.tree.map(np.shape, batch) for batch in policy]
    assert shapes[0] == shapes[1] == shapes[2]


def test_padding_changes_nothing():
    network, params = tiny.model()
    trainable, some = random_policy(), groups(2)
    policy = functions(network, PPO)
    targets, more = targets_of(policy, params, trainable, some), 128
    batch, padded = (make_policy_batch(some, targets, pad_id=0, tiled=True, tokens=tokens) for tokens in (0, TOKENS))
    grads, metrics = policy.gradients(trainable, params, batch)
    padded = padded._replace(
        tokens=type(padded.tokens)(*(np.pad(part, (0, more)) for part in padded.tokens)),
        targets=Targets(*(np.pad(part, (0, more), constant_values=9.0) for part in padded.targets)),
    )
    padded_grads, padded_metrics = policy.gradients(trainable, params, padded)
    for name, pair in metrics.items():
        np.testing.assert_allclose(padded_metrics[name], pair, rtol=1e-4, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), grads, padded_grads)


def test_targets_ignore_padding():
    policy = functions(tiny.model()[0], PPO)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(6).astype(np.float32) for _ in range(4)]
    answer, scores, group = np.asarray([0, 0, 1, 1, 1, 2]), np.asarray([1.0, 0.0, 2.0], np.float32), np.arange(3)
    plain = policy.targets(Statistics(*arrays), answer, scores, group, 0.1)
    padded = policy.targets(
        Statistics(*(np.pad(part, (0, 3), constant_values=5.0) for part in arrays)),
        np.pad(answer, (0, 3), constant_values=3),
        scores,
        group,
        0.1,
    )
    for one, other in zip(plain, padded, strict=True):
        np.testing.assert_allclose(one, other[:6], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [PPO, GRPO, REINFORCE])
def test_a_bandit_finds_its_best_arm(loss):
    """One prompt, answers of one token, reward 1 for one token of four: the policy must come to prefer it."""
    sampler = tiny.sampler(scale=4.0)
    network, params = sampler.network, sampler.params
    policy = functions(network, loss)
    prompt, arms, best = tuple(range(5, 15)), (40, 41, 42, 43), 42
    state = init_state(init_policy(network.config, tiny.LORA, jax.random.key(0)), tiny.OPTIMIZER)
    rng = np.random.default_rng(0)

    def probabilities():
        group = dataclasses.replace(
            tiny.random_group(rng), prefix_ids=prompt, candidate_ids=tuple((arm,) for arm in arms), rewards=(0.0,) * 4
        )
        statistics = statistics_of(policy, params, state.trainable, [group], tokens=0)
        logprobs = np.asarray(statistics.logprobs[:4], np.float64)
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
        batch = policy_batch(policy, params, state.trainable, [group], tokens=0)
        for _ in range(2):
            state, _ = policy.train_step(state, params, [[batch]], 3e-3)
    assert probabilities()[2] > 0.9


def advantage_arrays(loss, answer, scores, group, values=None):
    policy = functions(tiny.model()[0], loss)
    zeros = np.zeros(len(answer), np.float32)
    statistics = Statistics(zeros, zeros, zeros if values is None else np.asarray(values, np.float32), zeros)
    return policy.targets(statistics, np.asarray(answer), np.asarray(scores, np.float32), np.asarray(group), 0.1)


def test_grpo_is_a_mean_over_answers_by_hand():
    """An answer of one token and one of three: half of the loss each, whatever their lengths."""
    targets = advantage_arrays(GRPO, [0, 1, 1, 1], [1.0, 0.0], [0, 0])
    np.testing.assert_allclose(targets.advantages, [1, -1, -1, -1], atol=1e-3)
    np.testing.assert_allclose(targets.weights, [1, 1 / 3, 1 / 3, 1 / 3])
    loss = -(targets.weights * targets.advantages).sum() / targets.weights.sum()
    np.testing.assert_allclose(loss, -(1.0 + (-1 - 1 - 1) / 3) / 2, atol=1e-6)  # 0; over tokens it would be 0.5


def test_reinforce_is_a_sum_over_tokens_by_hand():
    # Scores 1, 0, 0.5: minus the mean of the two others 0.75, -0.75, 0.  Answers of 1, 2 and 1 tokens.
    targets = advantage_arrays(REINFORCE, [0, 1, 1, 2], [1.0, 0.0, 0.5], [0, 0, 0])
    np.testing.assert_allclose(targets.weights * targets.advantages, [0.75, -0.75, -0.75, 0.0], atol=1e-6)
    np.testing.assert_allclose(targets.weights.sum(), 3.0)  # answers


def test_a_reinforce_step_is_the_score_function_gradient():
    """Before anything has moved: minus the mean over answers of (score - mean of the others) times the gradient of
    their log-probability."""
    network, params = tiny.model()
    trainable, [group] = random_policy(), [tiny.random_group(np.random.default_rng(1), candidates=3)]
    group = dataclasses.replace(group, rewards=(1.0, 0.0, 0.5))
    policy = functions(network, REINFORCE)
    grads, metrics = policy.gradients(trainable, params, policy_batch(policy, params, trainable, [group]))

    @jax.jit
    @jax.grad
    def gradient(lora, sequence, valid):
        """Of the log-probability of one answer, padded."""
        merged = merge_lora(params, lora, tiny.LORA.scale)
        return jnp.where(valid, plain_logprobs(network, merged, *sequence)[0], 0.0).sum()

    assert float(metrics["loss"][1]) == pytest.approx(3)
    parts = [
        jax.device_get(gradient(trainable["lora"], alone(group.prefix_ids, ids), np.arange(LONGEST) < len(ids)))
        for ids in group.candidate_ids
    ]
    expected = jax.tree.map(lambda one, two, three: -(0.75 * one - 0.75 * two + 0.0 * three), *parts)
    for computed, by_hand in zip(jax.tree.leaves(grads["lora"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(computed, by_hand, rtol=5e-3, atol=1e-3 * float(np.abs(by_hand).max()) + 1e-6)


def test_ppo_knows_no_offset_of_a_prompt_by_hand():
    # Prompt 0 has scores 1 and 3, prompt 1 has 101 and 103: centred -1, 1, -1, 1, standard deviation 1.
    near, far = (advantage_arrays(PPO, [0, 1, 2, 3], [1, 3, 1 + more, 3 + more], [0, 0, 1, 1]) for more in (0, 100))
    np.testing.assert_allclose(near.returns, [-1, 1, -1, 1])
    np.testing.assert_allclose(far.returns, near.returns)
    np.testing.assert_allclose(far.advantages, near.advantages)
    np.testing.assert_allclose(far.value_clip, 0.2)
    wide = advantage_arrays(PPO, [0, 1, 2, 3], [0, 20, 0, 20], [0, 0, 1, 1])
    np.testing.assert_allclose(wide.value_clip, 2.0)  # 0.2 standard deviations of 10


@pytest.mark.parametrize("loss", [PPO, GRPO, REINFORCE])
def test_a_split_group_has_the_losses_of_the_whole(loss):
    network, params = tiny.model(scale=3.0)
    trainable, [group] = random_policy(), [tiny.random_group(np.random.default_rng(3), candidates=4)]
    room = max(map(len, group.candidate_ids)) + 1
    parts = split_group(group, len(group.prefix_ids) + room)
    assert len(parts) > 1
    assert [ids for part in parts for ids in part.candidate_ids] == list(group.candidate_ids)
    assert [score for part in parts for score in part.rewards] == list(group.rewards)
    assert all(part.length <= len(group.prefix_ids) + room and part.prefix_ids == group.prefix_ids for part in parts)
    policy = functions(network, loss)
    [targets] = targets_of(policy, params, trainable, [group])
    whole = make_policy_batch([group], [targets], pad_id=0, tiled=True, tokens=TOKENS)
    cut = make_policy_batch(parts, by_group(targets, sizes(parts)), pad_id=0, tiled=True, tokens=TOKENS)
    moved = jax.tree.map(lambda leaf: leaf * 1.02, trainable)
    (grads, metrics), (cut_grads, cut_metrics) = (policy.gradients(moved, params, batch) for batch in (whole, cut))
    for name, (total, count) in metrics.items():
        cut_total, cut_count = cut_metrics[name]
        np.testing.assert_allclose(cut_total / cut_count, total / count, rtol=1e-6, atol=1e-6, err_msg=name)
        assert float(cut_count) == pytest.approx(float(count))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()) + 1e-9),
        cut_grads,
        grads,
    )


def test_an_answer_longer_than_a_batch_is_refused():
    group = tiny.random_group(np.random.default_rng(0))
    group = dataclasses.replace(group, prefix_ids=(1,) * 10, candidate_ids=((1,) * 5, (1,) * 8), rewards=(0.0, 1.0))
    assert len(split_group(group, 18)) == 2
    with pytest.raises(ValueError, match="a prompt of 10 tokens and an answer of 8 are longer than a batch of 17"):
        split_group(group, 17)
