"""Next-item selection on Amazon sessions, with the paper's three components.

    python launch/run.py --config=configs/amazon.py          SmolLM2-135M everywhere; sessions from the web, or
                                                             --config.data.path=FILE
    python launch/run.py --config=configs/amazon.py:smoke    a tiny random model, made-up sessions or
                                                             --config.data.path=FILE; under a minute
    python launch/run.py --config=configs/amazon.py:paper    the paper's models and sizes

Chance is 0.25. The paper reports 0.212 before and 0.242 after.
"""

import dataclasses

from ml_collections import config_dict

from optimas_jax.benchmarks.amazon import SystemConfig
from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.learn.config import PolicyLoss
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import RunConfig
from optimas_jax.models.config import LoraConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.presets import EMBEDDED_MODEL, RANDOM_MODEL, local, paper, smoke, variant_of


def _local() -> RunConfig:
    data = DataConfig("amazon", train=48, val=24, test=60, confirm=32, max_chars=80, max_items=6)
    decider = dataclasses.replace(EMBEDDED_MODEL, max_tokens=4)
    config = local("amazon", SystemConfig(EMBEDDED_MODEL, decider), data)
    return dataclasses.replace(config, reward=dataclasses.replace(config.reward, heads="trained"))  # weights are tuned


def _smoke() -> RunConfig:
    """Prompts instead of weights, whose programs alone take longer than a minute to compile;
    ``--config.system.weights=session_analyzer`` tunes weights here too."""
    base = _local()
    data = dataclasses.replace(
        base.data, source="synthetic", train=12, val=6, test=12, confirm=6, max_chars=30, max_items=3
    )
    return smoke(base, SystemConfig(RANDOM_MODEL, RANDOM_MODEL, weights=""), data=data)


def _paper() -> RunConfig:
    """Temperatures and answer lengths as in the released code, which the paper does not give. Of PPO the paper gives
    three epochs: over 50 inputs, in batches of 8 with one answer each, and in the code over every batch, too."""
    local_model = LanguageModel("hf:Qwen/Qwen2.5-1.5B-Instruct", temperature=0.6, max_tokens=512)
    decider = LanguageModel("openai:gpt-4o-mini", temperature=0.3, max_tokens=1024)
    policy = PolicyConfig(
        lora=LoraConfig(rank=32, alpha=32.0),  # code
        loss=PolicyLoss("ppo"),
        updates=19,  # 3 x 50 / 8
        prompts=8,  # code
        samples=2,  # code: 1; here an answer's local reward is centred on the others of its prompt
        epochs=3,
        minibatch=4,  # code
        learning_rate=1e-5,  # code
    )
    data = DataConfig("amazon", train=335, val=60, test=99, splits="official")
    return paper("amazon", SystemConfig(local_model, decider), data, policy=policy)


def get_config(variant: str = "local") -> config_dict.ConfigDict:
    """The configuration of one variant."""
    variants = {"local": _local, "smoke": _smoke, "paper": _paper}
    return config_dict.ConfigDict(variant_of(__file__, variants, variant, config_dict.placeholder))
