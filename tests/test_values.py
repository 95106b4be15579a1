import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.core.values import (
    Adapter,
    Choice,
    Configuration,
    Demo,
    Grid,
    Hyperparameters,
    LoraSpace,
    Models,
    Prompt,
    PromptSpace,
    value_digest,
    value_from_json,
    value_to_json,
)

TEXT = st.text(max_size=30)
DEMOS = st.builds(Demo, st.dictionaries(TEXT, TEXT, max_size=3), st.dictionaries(TEXT, TEXT, max_size=2))
VALUES = st.one_of(
    st.builds(Prompt, TEXT, st.lists(DEMOS, max_size=3).map(tuple)),
    st.builds(Hyperparameters, st.dictionaries(TEXT, st.integers() | TEXT, min_size=1, max_size=3)),
    st.builds(Choice, TEXT),
    st.builds(Adapter, st.from_regex(r"[0-9a-f]{0,20}", fullmatch=True)),
)


@given(VALUES)
def test_values_round_trip_through_json(value):
    again = value_from_json(value_to_json(value))
    assert again == value
    assert value_digest(again) == value_digest(value)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_configurations_round_trip_and_digest_ignores_order(values):
    configuration = Configuration(values)
    assert Configuration.from_json(configuration.to_json()) == configuration
    assert Configuration(dict(reversed(list(values.items())))).digest == configuration.digest


@pytest.mark.parametrize("data", [{}, {"type": "prompt"}, {"type": "pickle"}, {"type": "choice", "nam": "x"}, 3, None])
def test_malformed_values_are_named(data):
    with pytest.raises(ValueError, match=r"value"):
        value_from_json(data)


def test_values_are_immutable():
    settings = {"k": 3}
    value = Hyperparameters(settings)
    settings["k"] = 4
    assert value["k"] == 3
    with pytest.raises(TypeError):
        value.settings["k"] = 5


def test_replace_changes_one_value_and_leaves_the_original():
    old = Configuration({"a": Choice("x"), "b": Choice("y")})
    new = old.replace("a", Choice("z"))
    assert (old["a"].name, new["a"].name, new["b"].name) == ("x", "z", "y")
    with pytest.raises(KeyError, match="no component 'c'"):
        old.replace("c", Choice("z"))


def test_grid_lists_every_point_with_the_last_setting_fastest():
    grid = Grid({"a": (1, 2), "b": ("x", "y")})
    points = [dict(value.settings) for value in grid.values()]
    assert points == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (PromptSpace(max_demos=0), Prompt("x", (Demo({}, {}),)), "1 demonstrations"),
        (PromptSpace(max_instruction_chars=2), Prompt("long"), "4 characters"),
        (PromptSpace(), Choice("x"), "needs a Prompt"),
        (PromptSpace(), None, "needs a Prompt"),
        (Grid({"k": (1, 2)}), Hyperparameters({"k": 3}), "not on the grid"),
        (Models(("a", "b")), Choice("c"), "not one of a, b"),
        (LoraSpace(), Choice("c"), "needs an Adapter"),
    ],
)
def test_spaces_refuse_other_values(space, value, message):
    with pytest.raises(ValueError, match=message):
        space.check(value)


@pytest.mark.parametrize("name", ["../other", "a/b", ".", "a b"])
def test_adapters_name_folders_and_nothing_else(name):
    with pytest.raises(ValueError, match="an adapter is named by"):
        Adapter(name)


def test_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Grid({"k": ()})
