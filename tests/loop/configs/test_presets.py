"""The ``:paper`` variants against the paper, value by value; sizes of the ``:smoke`` variants."""

from __future__ import annotations

import functools
import math
import operator
import runpy
from typing import Any

import pytest
from runs import ROOT

from optimas_jax.core.values import Grid, Models
from optimas_jax.loop.config import RunConfig, parse_config

NAMES = ("amazon", "bigcodebench", "hotpotqa", "pubmedqa", "stark_prime")
COMPONENTS = {"amazon": 3, "bigcodebench": 3, "hotpotqa": 5, "pubmedqa": 4, "stark_prime": 3}

# (path, value, where the paper has it); "code" where only the released code has it.
EVERY_SYSTEM = [
    ("reward.model", "hf:meta-llama/Meta-Llama-3-8B-Instruct", "T.6: Llama 3 8B Instruct, not 3.1"),
    ("reward.lora.rank", 32, "T.6"),
    ("reward.lora.alpha", 16.0, "T.6"),
    ("reward.batch.group_tokens", 2048, "T.6: max length"),
    ("reward.batch_groups", 32, "T.6: batch"),
    ("reward.learning_rate", 2e-6, "T.6"),
    ("reward.epochs", 25, "T.6"),
    ("reward.patience", 25, "T.6: 512 steps, more than 25 epochs have"),
    ("reward.loss.margin", 0.0, "Eq. 4: plain log-sigmoid"),
    ("reward.adapt_epochs", 1, "code"),
    ("offline.inputs", 50, "T.6: train size"),
    ("offline.calls", 0, "section 4.1: every component on all of them"),
    ("collect.samples", 2, "section 4.1: two sampled candidates"),
    ("collect.other_values", 0, "section 4.1"),
    ("collect.policy_samples", 2, "section 4.1"),
    ("collect.rollouts", 3, "code: num_rollouts"),
    ("optimize.mode", "paper", ""),
    ("optimize.pick", "uniform", "Algorithm 1, line 4"),
    ("optimize.adapt", "after_accept", "Algorithm 1: only after an accepted update"),
    ("optimize.adapt_inputs", 20, "T.6: fresh inputs of an adaptation"),
    ("optimize.buffer", 100, "code"),
    ("optimize.pairs", "two", "section 4.1: two sampled candidates"),
    ("optimize.score", "local", "Eq. 5"),
    ("optimize.ranking", "mean", "section 4.3: mean local reward"),
    ("optimize.rounds", 1, "section 4.3: all candidates on all inputs"),
    ("optimize.gate.kind", "strict", "Algorithm 1"),
    ("optimize.gate_examples", 20, "T.6: validation size"),
    ("optimize.gate_top", 1, "Algorithm 1: one candidate an iteration"),
    ("optimize.per_instance", "sample", "section 4.3: p proportional to exp(r)"),
    ("optimize.proposers", "opro", "section 4.3: OPRO-style"),
    ("optimize.instructions", 3, "T.6: prompt candidates"),
    ("optimize.local_steps", 3, "T.6: local optimisation steps"),
    ("optimize.inputs", 50, "T.6: search size"),
    ("optimize.demo_sets", 0, "section 4.3: instructions only"),
    ("optimize.best_of", 0, "not in the paper"),
    ("optimize.components", "all", "Algorithm 1"),
    ("optimize.iterations", 100, "code"),
    ("optimize.max_tokens", 0, "not in the paper"),
    ("proposer.model", "openai:gpt-4o-mini", "code"),
    ("proposer.max_tokens", 512, "code"),
]

ONE_SYSTEM = [
    ("amazon", "data.sizes", {"train": 335, "val": 60, "test": 99, "confirm": 0}, "App. C"),
    ("amazon", "system.language_model.model", "hf:Qwen/Qwen2.5-1.5B-Instruct", "T.5"),
    ("amazon", "system.decider.model", "openai:gpt-4o-mini", "T.5"),
    ("amazon", "system.weights", "session_analyzer, candidate_profiler", "T.5"),
    ("amazon", "policy.loss.algorithm", "ppo", "section 4.3"),
    ("amazon", "policy.epochs", 3, "App. G.4"),
    ("amazon", "policy.updates", math.ceil(3 * 50 / 8), "App. G.4: three passes over 50 inputs; code: batches of 8"),
    ("amazon", "policy.prompts", 8, "code: batch size"),
    ("amazon", "policy.samples", 2, "code: 1, not centred on the other answers of a prompt"),
    ("amazon", "policy.minibatch", 4, "code"),
    ("amazon", "policy.learning_rate", 1e-5, "code"),
    ("amazon", "policy.lora.rank", 32, "code"),
    ("amazon", "policy.lora.alpha", 32.0, "code"),
    ("amazon", "system.language_model.temperature", 0.6, "code"),
    ("amazon", "system.decider.temperature", 0.3, "code"),
    ("amazon", "optimize.global_search", "", "App. D"),
    ("pubmedqa", "data.sizes", {"train": 475, "val": 25, "test": 500, "confirm": 0}, "App. C"),
    ("pubmedqa", "data.splits", "official", "App. C"),
    (
        "pubmedqa",
        "system.models",
        (
            "openai:gpt-4o-mini",
            "openai:gpt-4o",
            "openai:gpt-3.5-turbo-0125",
            "openai:gpt-4-turbo",
            "anthropic:claude-3-5-haiku-20241022",
            "anthropic:claude-3-5-sonnet-20241022",
            "anthropic:claude-3-7-sonnet-20250219",
        ),
        "page 17, footnote 1",
    ),
    ("pubmedqa", "system.language_model.temperature", 0.0, "code"),
    ("pubmedqa", "optimize.global_search", "", "App. D: chosen for each input"),
    ("stark_prime", "data.sizes", {"train": 495, "val": 51, "test": 96, "confirm": 0}, "App. C"),
    ("stark_prime", "system.language_model.model", "anthropic:claude-3-haiku-20240307", "T.5"),
    ("stark_prime", "system.language_model.temperature", 0.6, "code"),
    ("stark_prime", "system.weight_grid", (0.1, 1.0), "App. D"),
    ("stark_prime", "optimize.global_search", "aggregator", "App. D"),
    ("hotpotqa", "data.sizes", {"train": 1000, "val": 250, "test": 100, "confirm": 0}, "App. C"),
    ("hotpotqa", "system.language_model.model", "openai:gpt-4o-mini", "T.5"),
    ("hotpotqa", "system.language_model.temperature", 0.6, "code"),
    ("hotpotqa", "system.k_grid", (1, 5, 10, 25), "App. D"),
    ("hotpotqa", "system.k", 1, "F.4: k 1 -> 5"),
    ("hotpotqa", "optimize.global_search", "context_retriever", "App. D"),
    ("bigcodebench", "data.sizes", {"train": 500, "val": 25, "test": 70, "confirm": 0}, "App. C"),
    ("bigcodebench", "system.language_model.model", "anthropic:claude-3-haiku-20240307", "T.5"),
    ("bigcodebench", "system.language_model.temperature", 0.6, "code"),
    ("bigcodebench", "optimize.global_search", "", "App. D"),
]


@functools.cache
def preset(name: str, variant: str = "paper") -> RunConfig:
    return parse_config(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](variant).to_dict())


def value(config: RunConfig, path: str) -> Any:
    return operator.attrgetter(path)(config)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("path", "expected", "source"), EVERY_SYSTEM)
def test_sizes_and_switches_of_every_system(name: str, path: str, expected: Any, source: str) -> None:
    assert value(preset(name), path) == expected, source


@pytest.mark.parametrize(("name", "path", "expected", "source"), ONE_SYSTEM)
def test_what_is_a_systems_own(name: str, path: str, expected: Any, source: str) -> None:
    assert value(preset(name), path) == expected, source


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_run_confirms_on_few_examples(name: str) -> None:
    assert 4 <= preset(name, "smoke").data.confirm <= 8


@pytest.mark.parametrize("name", NAMES)
def test_512_steps_of_patience_never_pass_within_25_epochs(name: str) -> None:
    config = preset(name)
    steps_an_epoch = math.ceil(config.offline.inputs * COMPONENTS[name] / config.reward.batch_groups)
    assert steps_an_epoch * config.reward.epochs < 512
    assert config.reward.patience >= config.reward.epochs


@pytest.mark.parametrize("name", NAMES)
def test_the_sizes_that_the_gate_and_adaptation_need_are_there(name: str) -> None:
    config = preset(name)
    assert config.data.val >= config.optimize.gate_examples
    assert config.data.train >= max(config.offline.inputs, config.optimize.inputs)


def test_spaces_that_are_searched() -> None:
    assert len(Models(preset("pubmedqa").system.models)) == 7
    weights = Grid(dict.fromkeys(("relation_weight", "text_weight"), preset("stark_prime").system.weight_grid))
    assert len(weights) == 4
