"""HotpotQA with the paper's five-component system.

    python launch/run.py --config=configs/hotpotqa.py              questions about countries, SmolLM2-135M; no download
                                                                   but the model's
    python launch/run.py --config=configs/hotpotqa.py:smoke        the same pipeline on a tiny random model, in under a
                                                                   minute
    python launch/run.py --config=configs/hotpotqa.py:tiny         SmolLM2 on few questions, to sweep on
    python launch/run.py --config=configs/hotpotqa.py:weights      as the default, but the answer generator is tuned by
                                                                   LoRA weights instead of a prompt
    python launch/run.py --config=configs/hotpotqa.py:local        HotpotQA from the hub or --config.data.path=FILE
    python launch/run.py --config=configs/hotpotqa.py:paper        the paper's models: gpt-4o-mini, for which
                                                                   OPENAI_API_KEY is set, and an 8B reward model on GPU
                                                                   or TPU

Any field can be set on the command line: ``--config.seed=1 --config.optimize.mode=paper``.
"""

import dataclasses

from ml_collections import config_dict

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.hotpotqa import SystemConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, RunConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.presets import EMBEDDED, RANDOM_MODEL, local, paper, smoke, variant_of


def _embedded() -> RunConfig:
    return local(
        "hotpotqa",
        SystemConfig(LanguageModel(EMBEDDED, style="text"), k_grid=(1, 2, 4), k=1),
        DataConfig(
            "embedded",
            train=240,
            val=32,
            test=100,
            confirm=64,
            mix={"one-hop": 0.7, "bridge": 0.15, "comparison": 0.15},
        ),
        variant="embedded",
        optimize=OptimizeConfig.improved(
            iterations=6, inputs=16, adapt_inputs=16, demo_sets=6, demo_size=2, instructions=2, gate_top=2
        ),
        policy=PolicyConfig(),
    )


def _smoke() -> RunConfig:
    base = _embedded()
    return smoke(
        base,
        SystemConfig(RANDOM_MODEL, k_grid=(1, 2), k=1),
        data=dataclasses.replace(base.data, train=24, val=8, test=16, confirm=8),
        offline=OfflineConfig(inputs=24, groups=4, calls=96),
        policy=PolicyConfig(),
    )


def _tiny() -> RunConfig:
    base = _embedded()
    return dataclasses.replace(
        base,
        variant="tiny",
        data=dataclasses.replace(base.data, train=48, val=12, test=32, confirm=16),
        offline=OfflineConfig(inputs=8, groups=4, calls=24),
        optimize=dataclasses.replace(
            base.optimize,
            components="answer_generator",
            iterations=1,
            inputs=8,
            adapt_inputs=8,
            proposers="demos",
            demo_sets=4,
        ),
    )


def _weights() -> RunConfig:
    base = _embedded()
    return dataclasses.replace(
        base,
        variant="weights",
        data=dataclasses.replace(base.data, train=72),  # all of it is run before each tuning
        system=dataclasses.replace(base.system, weights="answer_generator"),
        reward=dataclasses.replace(base.reward, heads="trained", adapt_epochs=1),  # weights are tuned
        offline=OfflineConfig(inputs=72, groups=24, calls=720),  # a policy finds what a local reward has not learned
        policy=PolicyConfig(learning_rate=1e-3, updates=8, validate_every=1),
        optimize=dataclasses.replace(
            base.optimize, iterations=6, inputs=12, adapt_inputs=12, demo_sets=2, adapt="after_accept"
        ),
    )


def _local() -> RunConfig:
    base = _embedded()
    return dataclasses.replace(
        base,
        variant="local",
        data=DataConfig("hotpotqa", train=48, val=32, test=100, confirm=32),
        optimize=dataclasses.replace(base.optimize, iterations=4),
    )


def _paper() -> RunConfig:
    """Sampling temperature as in the released code, which the paper does not give. ``k`` is searched globally."""
    api = LanguageModel("openai:gpt-4o-mini", temperature=0.6, max_tokens=512)
    data = DataConfig("hotpotqa", train=1000, val=250, test=100)
    config = paper("hotpotqa", SystemConfig(api, k_grid=(1, 5, 10, 25), k=1), data)
    return dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, global_search="context_retriever"))


def get_config(variant: str = "embedded") -> config_dict.ConfigDict:
    """The configuration of one variant."""
    variants = {
        "embedded": _embedded,
        "tiny": _tiny,
        "smoke": _smoke,
        "weights": _weights,
        "local": _local,
        "paper": _paper,
    }
    return config_dict.ConfigDict(variant_of(__file__, variants, variant, config_dict.placeholder))
