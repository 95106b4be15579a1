"""A small run whose answer generator is tuned by weights."""

import dataclasses

from runs import run_config

from optimas_jax.benchmarks.hotpotqa import SystemConfig
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.values import BASE
from optimas_jax.learn.config import TokenBatch
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.setup.build import build_run
from optimas_jax.models.config import LoraConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.reinforce import GlobalScores
from optimas_jax.policy.rollout import LocalScores
from optimas_jax.policy.tune import TuningRun, tune_weights
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.config import RewardConfig

NAME = "answer_generator"
CONCURRENCY = 4  # as many rows as the smallest batch of the engine has: few programs are compiled


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
            batch=TokenBatch(tokens=1024),
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
    run = build_run(config(), folder, ConsoleProgress(quiet=True))
    try:
        reward, _ = run.device.rewards.trainer.train(run.host.system, None, [], [], epochs=1, seed=0)
        examples = run.host.splits["train"]
        jobs = [Job(run.host.system.default_configuration(), example, 0) for example in examples]
        traces = run_many(run.host.system, jobs, concurrency=CONCURRENCY)
        return tune_on(run, reward, current, list(zip(examples, traces, strict=True)))
    finally:
        run.tape.close()


def tune_on(run, reward, current, runs):
    """Tunes NAME with the parts of a run, against a local reward or ("") global scores."""
    host = TuningRun(
        run.host.system,
        run.host.completer,
        run.device.policies,
        run.host.progress,
        run.host.folder.emit,
        seed=run.config.seed,
        concurrency=CONCURRENCY,
    )
    scores = (
        LocalScores(run.host.system, run.device.rewards.scorer, reward, NAME)
        if reward
        else GlobalScores(run.host.system, run.host.system.default_configuration(), NAME, run.config.seed, CONCURRENCY)
    )
    return tune_weights(host, NAME, current, runs, scores, seed=0)
