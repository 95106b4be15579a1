"""STaRK-Prime with the paper's two scorers and weighted aggregator.

    python launch/run.py --config=configs/stark_prime.py --config.data.path=FILE          SmolLM2-135M
    python launch/run.py --config=configs/stark_prime.py:smoke                            a tiny random model, made-up
                                                                                          entities or a path; under a
                                                                                          minute
    python launch/run.py --config=configs/stark_prime.py:paper --config.data.path=FILE    the paper's model and sizes

Chance is 0.457 MRR where one of five candidates is right. The paper reports 0.407 before and 0.505 after.
"""

import dataclasses

from ml_collections import config_dict

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.stark_prime import SystemConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import RunConfig
from optimas_jax.presets import EMBEDDED_MODEL, RANDOM_MODEL, local, paper, smoke, variant_of


def _local() -> RunConfig:
    data = DataConfig("stark", train=48, val=24, test=100, confirm=32, max_chars=200)
    return local("stark_prime", SystemConfig(dataclasses.replace(EMBEDDED_MODEL, max_tokens=24)), data)


def _smoke() -> RunConfig:
    base = _local()
    data = dataclasses.replace(base.data, source="synthetic", train=12, val=6, test=12, confirm=6, max_chars=30)
    return smoke(base, SystemConfig(RANDOM_MODEL), data=data)


def _paper() -> RunConfig:
    """Temperature, answer length and the length of texts as in the released code, which the paper does not give. The
    aggregator's weights are searched globally."""
    haiku = LanguageModel("anthropic:claude-3-haiku-20240307", temperature=0.6, max_tokens=256)
    data = DataConfig("stark", train=495, val=51, test=96, splits="official", max_chars=1024)
    config = paper("stark_prime", SystemConfig(haiku, weight_grid=(0.1, 1.0)), data)
    return dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, global_search="aggregator"))


def get_config(variant: str = "local") -> config_dict.ConfigDict:
    """The configuration of one variant."""
    variants = {"local": _local, "smoke": _smoke, "paper": _paper}
    return config_dict.ConfigDict(variant_of(__file__, variants, variant, config_dict.placeholder))
