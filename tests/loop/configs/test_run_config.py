import dataclasses
import json
import math
import operator
import typing
from collections.abc import Mapping

import pytest
from runs import get_config, run_config

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.hotpotqa import SystemConfig
from optimas_jax.core.schema import ConfigError, from_dict, to_dict
from optimas_jax.loop.config import MODES, RunConfig, differences, parse_config
from optimas_jax.models.config import LoraConfig
from optimas_jax.search.gate import GateConfig

MISSING = object()


def changed(path, value):
    """Plain data of a whole configuration with one field changed, or left out."""
    data = to_dict(run_config())
    *parents, last = path.split(".")
    section = data
    for name in parents:
        section = section[name]
    if value is MISSING:
        del section[last]
    else:
        section[last] = value
    return data


def scalar_fields(cls, prefix=""):
    """Paths of the fields of a configuration class that hold one number, text, truth value or word of a list."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from scalar_fields(hint, f"{prefix}{name}.")
        elif hint in (int, float, str, bool) or typing.get_origin(hint) is typing.Literal:
            yield prefix + name


def ranges(cls, prefix=""):
    """Path and range of the numbers of a configuration class that have one."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from ranges(hint, f"{prefix}{name}.")
        elif typing.get_origin(hint) is typing.Annotated:
            yield prefix + name, typing.get_args(hint)[1]


def test_the_shipped_configuration_survives_the_round_trip():
    config = run_config()
    assert isinstance(config, RunConfig)
    assert parse_config(to_dict(config)) == config
    assert parse_config(json.loads(json.dumps(to_dict(config)))) == config  # lists become tuples again


def test_plain_data_is_plain_and_a_copy():
    data = to_dict(run_config())
    assert type(data["data"]) is dict
    assert isinstance(data["data"]["mix"], Mapping)
    data["data"]["mix"]["one-hop"] = 7.0
    assert to_dict(run_config())["data"]["mix"]["one-hop"] != 7.0


def test_an_unknown_variant_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'nope'.*known: .*embedded"):
        get_config("nope")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", 1, r"config has no field colour; it has benchmark, variant"),
        ("optimise", {}, r"config has no field optimise; did you mean 'optimize'\? it has benchmark"),
        ("optimize.gate.colour", 1, r"config\.optimize\.gate has no field colour; it has kind, level"),
        ("benchmark", "quiz", r"unknown benchmark 'quiz'; known: amazon, .*or the path of a \.py file"),
        ("benchmark", "nowhere/quiz.py", r"config\.benchmark: no file 'nowhere/quiz\.py'"),
        ("system", 3, r"config\.system is 3, expected the fields of SystemConfig"),
        ("system.colour", 3, r"config\.system has no field colour; it has language_model, k_grid"),
        ("system.language_model.model", MISSING, r"config\.system\.language_model\.model is missing"),
        ("benchmark", MISSING, r"config\.benchmark is missing"),
        ("reward.model", MISSING, r"config\.reward\.model is missing"),
        ("data.source", "moon", r"config\.data\.source is 'moon'; allowed: 'embedded', 'hotpotqa'"),
        ("optimize.gate.kind", "", r"config\.optimize\.gate\.kind is ''; allowed: 'strict', 'paired'"),
        ("optimize.pick", "", r"config\.optimize\.pick is ''; allowed: 'uniform', 'gap', 'bandit'"),
        ("optimize.rounds", 0, r"config\.optimize\.rounds is 0, expected at least 1"),
        ("optimize.proposers", "", r"config\.optimize: proposers is ''"),
        ("seed", "1", r"config\.seed is '1', expected int"),
        ("seed", 1.0, r"config\.seed is 1\.0, expected int"),
        ("reward.learning_rate", True, r"config\.reward\.learning_rate is True, expected float"),
        ("seed", True, r"config\.seed is True, expected int"),
        ("data", 3, r"config\.data is 3, expected the fields of DataConfig"),
        ("data", "abc", r"config\.data is 'abc', expected the fields of DataConfig"),
        ("system.k_grid", 5, r"config\.system\.k_grid is 5, expected a list"),
        ("system.k_grid", "12", r"config\.system\.k_grid is '12', expected a list"),
        ("system.k_grid", ("a",), r"config\.system\.k_grid\[0\] is 'a', expected int"),
        ("data.mix", 5, r"config\.data\.mix is 5, expected names with values"),
        ("data.mix", {"bridge": "x"}, r"config\.data\.mix\.bridge is 'x', expected float"),
        ("optimize.iterations", -1, r"config\.optimize\.iterations is -1, expected at least 0"),
        ("optimize.inputs", 0, r"config\.optimize\.inputs is 0, expected at least 1"),
        ("offline.stop", 1.5, r"config\.offline\.stop is 1\.5, expected at least 0 and at most 1"),
        ("reward.learning_rate", 0, r"config\.reward\.learning_rate is 0\.0, expected above 0"),
        ("budget.usd", -1.0, r"config\.budget\.usd is -1\.0, expected at least 0"),
        ("system.k_grid", (1, 0), r"config\.system\.k_grid\[1\] is 0, expected at least 1"),
        (
            "system.language_model.top_p",
            0.0,
            r"config\.system\.language_model\.top_p is 0\.0, expected above 0 and at ",
        ),
        ("reward.lora.rank", 0, r"config\.reward\.lora: LoRA rank must be at least 1"),
        ("reward.lora.targets", ("w",), r"config\.reward\.lora: LoRA targets must be"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_path(path, value, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse_config(changed(path, value))


SWITCHES = {f"optimize.{name}{'.kind' * (name == 'gate')}" for name in MODES["paper"]}


@pytest.mark.parametrize("path", [*scalar_fields(RunConfig), *scalar_fields(SystemConfig, "system.")])
def test_every_field_refuses_a_value_of_another_type(path):
    wrong, shown = ([], r"\[\]") if path in SWITCHES else (None, "None")  # a switch that is None is the mode's
    with pytest.raises(ConfigError, match=rf"^config\.{path} is {shown}[,;] "):
        parse_config(changed(path, wrong))


@pytest.mark.parametrize(("path", "allowed"), [*ranges(RunConfig), *ranges(SystemConfig, "system.")])
def test_every_number_with_a_range_refuses_what_is_outside(path, allowed):
    kind = type(operator.attrgetter(path)(run_config()))
    outside = [allowed.low - 1, *([allowed.high + 1] if allowed.high < math.inf else [])]
    for value in [*map(kind, outside), *([math.nan] if kind is float else [])]:
        with pytest.raises(ConfigError, match=rf"^config\.{path} is .*, expected (at least|above) "):
            parse_config(changed(path, value))


def test_whole_numbers_are_taken_for_floats():
    rate = parse_config(changed("reward.learning_rate", 1)).reward.learning_rate
    assert (rate, type(rate)) == (1.0, float)


def test_missing_fields_with_a_default_take_it():
    assert from_dict(DataConfig, {"source": "embedded"}) == DataConfig("embedded")
    assert from_dict(GateConfig, {}) == GateConfig()
    assert from_dict(LoraConfig, {"targets": ["q"]}).targets == ("q",)


def test_differences_name_every_leaf():
    old = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": 0}
    new = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "added": "x"}
    assert differences(old, new) == [
        "config.b.c: 2 -> 3",
        "config.gone: 0 -> '(absent)'",
        "config.added: '(absent)' -> 'x'",
    ]
    assert differences(old, old) == []


def test_a_leaf_that_becomes_a_mapping_differs_as_a_whole():
    assert differences({"a": 1}, {"a": {"b": 1}}, "x") == ["x.a: 1 -> {'b': 1}"]
