"""Our side of the benchmarks: the functions that the loop calls, on drawn work. Started as a process by
``bench.peer``."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optimas_jax.bench.serve import Run, serve
from optimas_jax.bench.work import Work, from_json, score
from optimas_jax.engine.pool import Engines, LoadedModel
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.learn.batches import GroupBatch, deal, make_batch, plan_batches
from optimas_jax.learn.config import BatchShape, LossConfig, PolicyLoss
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.learn.train_state import init_state, init_trainable, make_optimizer
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.lanes import Lanes
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.parallel.sharding import place
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.trainer import PolicyTrainer
from optimas_jax.report.console import ConsoleProgress

LORA_ALPHA = 16.0


def prepare(data: dict[str, Any]) -> tuple[Run, str]:
    """Loads the model and compiles by running the first repeat once."""
    work = from_json(data)
    engines = Engines(MeshConfig(data=1), ConsoleProgress(quiet=True))
    makers = {"score": _score, "train": _train, "generate": _generate, "ppo": _policy, "grpo": _policy}
    make = makers[work.case.task]
    run, note = make(work, engines)
    run(0)
    return run, note


def _score(work: Work, engines: Engines) -> tuple[Run, str]:
    model = engines.model(work.model)
    functions = RewardFunctions(model.network, LoraConfig(), LossConfig(), make_optimizer())
    head = {"kernel": jnp.asarray(work.head, jnp.float32)[:, None]}
    lanes = Lanes.of(model.network.compute, model.mesh)

    def score(batch: GroupBatch) -> np.ndarray:
        return np.asarray(functions.score(model.params, head, batch, functions.features(model.params, batch.flat)))

    def run(repeat: int) -> dict[str, Any]:
        groups = work.groups_of(repeat)
        start = time.perf_counter()
        scores: list[list[float]] = [[] for _ in groups]
        plan = plan_batches(groups, _batch_tokens(groups))
        batches = (_batch(groups, members, model) for members in plan)
        for members, values in zip(plan, lanes.map(score, batches, _tokens), strict=True):
            for index, row in zip(members, values, strict=False):
                scores[index] = row[: len(groups[index].candidate_ids)].tolist()
        return {"seconds": time.perf_counter() - start, "output": [score for row in scores for score in row]}

    return run, f"batches of {_batch_tokens(work.groups)} tokens"


def _train(work: Work, engines: Engines) -> tuple[Run, str]:
    """Training steps at learning rate 0: the same arithmetic as in training, and losses that can be compared."""
    model = engines.model(work.model)
    lora = LoraConfig(rank=work.case.rank, alpha=LORA_ALPHA)
    functions = RewardFunctions(model.network, lora, LossConfig(), make_optimizer())
    trainable = init_trainable(model.network.config, lora, 1, jax.random.key(0))
    trainable["head"] = {"kernel": jnp.asarray(work.head, jnp.float32)[:, None]}
    state = place(init_state(trainable, make_optimizer()), model.mesh)
    lanes = Lanes.of(model.network.compute, model.mesh)
    tokens = _batch_tokens(work.groups, lanes.count)

    def run(repeat: int) -> dict[str, Any]:
        """One training step per batch of the repeat's groups."""
        nonlocal state
        groups = work.groups_of(repeat)
        start = time.perf_counter()
        metrics = []
        for members in plan_batches(groups, tokens):
            parts = []
            for dealt in deal([groups[index].length for index in members], min(lanes.count, len(members))):
                batch = _batch(groups, [members[number] for number in dealt], model)
                parts.append((batch, functions.features(model.params, batch.flat)))
            state, step = functions.train_step(state, model.params, parts, 0.0, lanes)
            metrics.append(step)
        losses = [metric["loss"] for metric in jax.device_get(metrics)]
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "output": [float(sum(loss for loss, _ in losses) / sum(n for _, n in losses))]}

    return run, f"batches of {tokens} tokens"


def _batch_tokens(groups: Sequence[TokenGroup], least: int = 1) -> int:
    """Tokens of a batch: about the default, in whole groups, at least ``least`` of them."""
    longest = max(group.length for group in groups)
    return max(least, BatchShape().tokens // longest) * longest


def _batch(groups: Sequence[TokenGroup], members: Sequence[int], model: LoadedModel) -> GroupBatch:
    chosen = [groups[index] for index in members]
    candidates = max(len(group.candidate_ids) for group in chosen)
    return make_batch(chosen, candidates=candidates, pad_id=model.tokenizer.pad_id, tiled=model.network.compute.tiled)


def _tokens(batch: GroupBatch) -> int:
    return len(batch.flat.input_ids)


def _generate(work: Work, engines: Engines) -> tuple[Run, str]:
    sampler = _endless(engines.sampler(work.model))

    def run(repeat: int) -> dict[str, Any]:
        requests = [SampleRequest(prompt, work.case.new_tokens) for prompt in work.prompts_of(repeat)]
        sampler.forget_prompts()  # repeats have the same prompts: only prefixes shared within a repeat may be reused
        start = time.perf_counter()
        samples = []
        for first in range(0, len(requests), work.case.together):
            samples += sampler.generate(requests[first : first + work.case.together])
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "output": [token for sample in samples for token in sample.ids]}

    return run, ""


def _endless(sampler: Sampler) -> Sampler:
    """The sampler without end-of-sequence ids, so that every request gets all its tokens."""
    return dataclasses.replace(sampler, tokenizer=dataclasses.replace(sampler.tokenizer, eos_ids=()))


def _policy(work: Work, engines: Engines) -> tuple[Run, str]:
    """Updates at learning rate 0: the same arithmetic as in training, and every repeat samples from the same policy."""
    case, sampler = work.case, _endless(engines.sampler(work.model))
    config = PolicyConfig(
        lora=LoraConfig(rank=case.rank, alpha=LORA_ALPHA),
        loss=PolicyLoss("ppo" if case.task == "ppo" else "grpo"),
        epochs=case.epochs,
        minibatch=case.per_repeat,
        learning_rate=0.0,
    )
    trainer = PolicyTrainer(config, engines.model(work.model))
    state = trainer.start()

    def run(repeat: int) -> dict[str, Any]:
        """A rollout, its statistics and an update, each timed as a phase."""
        nonlocal state
        prompts, adapter = work.prompts_of(repeat), f"policy {repeat}"
        sampler.forget_prompts()
        start = time.perf_counter()
        sampler.adapters.load(adapter, config.lora, state.trainable["lora"])
        samples = sampler.generate(
            [
                SampleRequest(prompt, case.new_tokens, temperature=1.0, seed=seed, adapter=adapter)
                for prompt in prompts
                for seed in range(repeat * case.candidates, (repeat + 1) * case.candidates)
            ]
        )
        sampler.adapters.unload(adapter)
        answers = (sample.ids for sample in samples)
        groups = []
        for prompt in prompts:
            ids = tuple(itertools.islice(answers, case.candidates))
            groups.append(TokenGroup(prompt, ids, tuple(map(score, ids)), 0))
        sampled = time.perf_counter()
        statistics = trainer.statistics(state.trainable, groups)
        computed = time.perf_counter()
        state, _ = trainer.learn(state, groups, statistics, config.loss.kl_weight, seed=repeat)
        jax.block_until_ready(state)
        updated = time.perf_counter()
        return {
            "seconds": updated - start,
            "phases": {"rollout": sampled - start, "statistics": computed - sampled, "update": updated - computed},
            "output": [float(statistics.entropy.mean())],
        }

    return run, f"batches of {config.batch.tokens} tokens"


if __name__ == "__main__":
    serve(prepare)
