"""BigCodeBench with the paper's four-component system.

    python launch/run.py --config=configs/bigcodebench.py          SmolLM2-135M on tasks from the hub, or on rows of
                                                               --config.data.path=FILE; it solves next to none
    python launch/run.py --config=configs/bigcodebench.py:smoke    a tiny random model, made-up tasks or
                                                               --config.data.path=FILE; under a minute
    python launch/run.py --config=configs/bigcodebench.py:paper    the paper's models and sizes

Programs that models write run in a sandbox; ``--config.system.isolation=required`` stops where there is no jail,
``weak`` runs them even where walls are missing.
``--config.data.source=stdlib`` takes the tasks that need no library, ``all`` also those that cannot pass here.

Chance is 0. The paper reports 0.367 before and 0.389 after, on 70 tasks.
"""

import dataclasses

from ml_collections import config_dict

from optimas_jax.benchmarks.bigcodebench import SystemConfig
from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import RunConfig
from optimas_jax.presets import EMBEDDED, RANDOM_MODEL, local, paper, smoke, variant_of
from optimas_jax.sandbox.limits import Limits


def _local() -> RunConfig:
    """Short inputs and answers, for a model with 2,048 positions; tasks without libraries, which it may know."""
    model = LanguageModel(EMBEDDED, temperature=0.6, max_tokens=192)
    limits = Limits(seconds=60, cpu_seconds=20, memory_mb=1024)
    data = DataConfig("stdlib", train=32, val=16, test=40, confirm=16, max_chars=900)
    return local("bigcodebench", SystemConfig(model, limits, code_chars=400, max_demos=1), data)


def _smoke() -> RunConfig:
    base = _local()
    data = DataConfig("synthetic", train=8, val=4, test=6, confirm=4, max_chars=160)
    model = dataclasses.replace(RANDOM_MODEL, max_tokens=12)
    return smoke(base, dataclasses.replace(base.system, language_model=model, code_chars=60), data=data)


def _paper() -> RunConfig:
    """Temperature and answer length as in the released code, which the paper does not give."""
    language_model = LanguageModel("anthropic:claude-3-haiku-20240307", temperature=0.6, max_tokens=1572)
    data = DataConfig("installed", train=500, val=25, test=70)
    return paper("bigcodebench", SystemConfig(language_model, isolation="required"), data)


def get_config(variant: str = "local") -> config_dict.ConfigDict:
    """The configuration of one variant."""
    variants = {"local": _local, "smoke": _smoke, "paper": _paper}
    return config_dict.ConfigDict(variant_of(__file__, variants, variant, config_dict.placeholder))
