"""The two modes: constructors, what the command line makes of them, and what is stored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags
from runs import get_config, run_config

from optimas_jax.core.schema import ConfigError, to_dict
from optimas_jax.loop.config import MODES, OptimizeConfig, parse_config, with_mode, without_mode
from optimas_jax.loop.journal import RunFolder
from optimas_jax.search.gate import GateConfig


def switches(config: OptimizeConfig) -> dict[str, Any]:
    data = to_dict(config)
    return {name: {"kind": data[name]["kind"]} if name == "gate" else data[name] for name in MODES["paper"]}


def from_flags(*arguments: str, variant: str = "embedded") -> OptimizeConfig:
    """What a command with these flags resolves to."""
    values, command = flags.FlagValues(), ["run.py", *arguments]
    flag = config_flags.DEFINE_config_dict("config", get_config(variant), flag_values=values, sys_argv=command)
    values(command)
    return parse_config(flag.value.to_dict()).optimize


@pytest.mark.parametrize("mode", MODES)
def test_a_constructor_sets_the_switches_of_its_mode(mode: str) -> None:
    config = getattr(OptimizeConfig, mode)()
    assert config.mode == mode and switches(config) == MODES[mode]
    changed = getattr(OptimizeConfig, mode)(pick="bandit", iterations=3)
    assert switches(changed) == {**MODES[mode], "pick": "bandit"} and changed.iterations == 3


def test_improved_is_the_default_and_no_switch_is_a_sentinel() -> None:
    assert OptimizeConfig() == OptimizeConfig.improved()
    for config in (OptimizeConfig.paper(), OptimizeConfig.improved()):
        assert not any(value in (None, "") for value in [*switches(config).values(), config.gate.kind])


def test_the_mode_on_the_command_line_changes_every_switch_that_was_left_to_it() -> None:
    assert switches(from_flags()) == MODES["improved"]
    config = from_flags("--config.optimize.mode=paper")
    assert config.mode == "paper" and switches(config) == MODES["paper"]
    assert config.inputs == run_config().optimize.inputs  # sizes are no switches
    back = from_flags("--config.optimize.mode=improved", variant="paper")
    assert switches(back) == MODES["improved"] and back.gate_examples == 20


def test_switches_that_the_configuration_or_the_command_line_sets_win() -> None:
    weights = from_flags("--config.optimize.mode=improved", variant="weights")
    assert weights.adapt == "after_accept"  # set by configs/hotpotqa.py:weights
    both = ("--config.optimize.mode=paper", "--config.optimize.pick=gap", "--config.optimize.gate.kind=paired")
    config = from_flags(*both, "--config.optimize.rounds=2", "--config.optimize.proposers=demos,copro")
    given = {"pick": "gap", "gate": {"kind": "paired"}, "rounds": 2, "proposers": "demos,copro"}
    assert switches(config) == {**MODES["paper"], **given}


def test_the_run_folder_stores_what_was_resolved(tmp_path: Path) -> None:
    data = get_config("embedded").to_dict()
    assert data["optimize"]["pick"] is None
    config = parse_config({**data, "optimize": {**data["optimize"], "mode": "paper", "rounds": 4}})
    RunFolder(tmp_path, config).close()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["optimize"]["pick"] == "uniform" and stored["optimize"]["gate"]["kind"] == "strict"
    assert None not in stored["optimize"].values() and parse_config(stored) == config


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"pick": "bandit"}, {"gate": GateConfig("strict", level=0.2)}, {"score": "global"}, {"score": "random"}],
)
def test_leaving_switches_open_and_filling_them_in_are_inverses(mode: str, changes: dict[str, Any]) -> None:
    data = to_dict(getattr(OptimizeConfig, mode)(**changes))
    assert with_mode(without_mode(data))["gate"] == data["gate"]
    base = to_dict(run_config())
    assert to_dict(parse_config({**base, "optimize": without_mode(data)}).optimize) == data
    assert with_mode({}) | {"mode": "x"} == {**MODES["improved"], "mode": "x"}


@pytest.mark.parametrize(("score", "per_instance"), [("global", "never"), ("random", "sample")])
def test_without_local_rewards_nothing_adapts_and_at_most_random_numbers_choose(score: str, per_instance: str) -> None:
    config = dataclasses.replace(OptimizeConfig.paper(), score=score)
    assert (config.adapt, config.per_instance) == ("never", per_instance)
    local = dataclasses.replace(run_config(), optimize=config)
    assert switches(from_flags(f"--config.optimize.score={score}"))["adapt"] == "never"
    assert parse_config(to_dict(local)).optimize == config


def test_best_of_n_needs_something_to_choose_by() -> None:
    with pytest.raises(ValueError, match="best_of needs local rewards, and score is 'global'"):
        OptimizeConfig(score="global", best_of=2)
    assert OptimizeConfig(score="random", best_of=2).best_of == 2


def test_an_unknown_mode_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"config\.optimize\.mode is 'fast'; allowed: 'paper', 'improved'"):
        from_flags("--config.optimize.mode=fast")


def test_configurations_are_config_dicts_of_one_level_each() -> None:
    assert isinstance(get_config("smoke"), ml_collections.ConfigDict)
    assert get_config("smoke").optimize.get_type("rounds") is int


def test_every_field_can_be_set_on_the_command_line() -> None:
    """A field with the name of a method of ``ConfigDict`` cannot be."""

    def names(data: dict[str, Any]) -> set[str]:
        inner = [names(value) for value in data.values() if isinstance(value, dict)]
        return set(data).union(*inner)

    assert not names(get_config("smoke").to_dict()) & set(dir(ml_collections.ConfigDict))


def test_a_component_that_is_searched_globally_has_no_best_of() -> None:
    settings = OptimizeConfig(best_of=4, global_search="retriever")
    assert settings.for_component("retriever").best_of == 0 and settings.for_component("writer").best_of == 4
