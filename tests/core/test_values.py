import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.core.types import digest
from optimas_jax.core.values import (
    Adapter,
    Choice,
    Configuration,
    Demo,
    Grid,
    Hyperparameters,
    LoraSpace,
    Models,
    PerInstance,
    Prompt,
    PromptSpace,
    check_value,
    plain_values,
    shows,
    value_digest,
    value_from_json,
    value_to_json,
)

TEXT = st.text(max_size=30)
DEMOS = st.builds(Demo, st.dictionaries(TEXT, TEXT, max_size=3), st.dictionaries(TEXT, TEXT, max_size=2))
PLAIN = st.one_of(
    st.builds(Prompt, TEXT, st.lists(DEMOS, max_size=3).map(tuple)),
    st.builds(Hyperparameters, st.dictionaries(TEXT, st.integers() | TEXT, min_size=1, max_size=3)),
    st.builds(Choice, TEXT),
    st.builds(Adapter, st.from_regex(r"[0-9a-f]{0,20}", fullmatch=True)),
)

PER_INSTANCE = st.builds(
    PerInstance,
    st.lists(PLAIN, min_size=1, max_size=3).map(tuple),
    st.from_regex(r"[0-9a-f]{1,20}", fullmatch=True),
    st.integers(1, 4),
    st.sampled_from(["argmax", "sample"]),
    st.sampled_from([0.5, 1.0]),
)
VALUES = PLAIN | PER_INSTANCE


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": (1, 2, 1)}, "k = 1 is listed twice"),
        ({"k": (1, float("nan"))}, "k = nan: allowed are numbers"),
        ({"k": ((1, 2),)}, r"k = \[1, 2\]: allowed are numbers"),
        ({"k": "high"}, "a list of at least one value"),
        ({"k": (None,)}, "k = None"),
    ],
)
def test_an_invalid_grid_value_is_named_where_it_enters(settings, said):
    with pytest.raises(ValueError, match=said):
        Grid(settings)


@pytest.mark.parametrize("names", [(), ("a", "a"), ("",), (3,)])
def test_names_to_choose_from_are_different_words(names):
    with pytest.raises(ValueError, match="different and not empty"):
        Models(names)


def test_spaces_know_their_size():
    assert len(Grid({"a": (1, 2), "b": (1, 2, 3)})) == len(list(Grid({"a": (1, 2), "b": (1, 2, 3)}).values())) == 6
    assert len(Models(("a", "b"))) == 2


def test_a_choice_per_instance_is_allowed_where_all_that_it_chooses_from_is():
    check_value(Models(("a", "b")), PerInstance((Choice("a"), Choice("b")), "r"))
    with pytest.raises(ValueError, match="not one of a, b"):
        check_value(Models(("a", "b")), PerInstance((Choice("a"), Choice("c")), "r"))
    with pytest.raises(ValueError, match="needs a Prompt, got None"):
        check_value(PromptSpace(), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"values": ()}, "at least one plain value"),
        ({"values": (PerInstance((Choice("a"),), "r"),)}, "at least one plain value"),
        ({"samples": 0}, "samples is 0"),
        ({"mode": "best"}, "mode is 'best'; allowed: argmax, sample"),
        ({"reward": "../r"}, "named by letters"),
        ({"reward": ""}, "named by letters"),
    ],
)
def test_an_impossible_choice_per_instance_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        PerInstance(**{"values": (Choice("a"),), "reward": "r", **changes})


def test_where_a_demonstration_comes_from_is_saved_and_says_nothing():
    here, there = (Prompt("p", (Demo({"q": 1}, {"a": 2}, name), Demo({"q": 2}, {"a": 3}))) for name in ("e1", "e2"))
    for one, other in ((here, there), (PerInstance((here,), "r"), PerInstance((there,), "r"))):
        assert one == other and value_digest(one) == value_digest(other)
        assert Configuration({"c": one}).digest == Configuration({"c": other}).digest
        [plain] = plain_values(value_from_json(value_to_json(one)))
        assert [demo.example_id for demo in plain.demos] == ["e1", ""]
    assert "example_id" not in value_to_json(here)["demos"][1]
    assert value_digest(Prompt("p")) == digest({"type": "prompt", "instruction": "p", "demos": []})


def test_a_value_shows_an_example_whatever_its_component_read_there():
    value = PerInstance((Prompt("p", (Demo({"q": 1}, {"a": 2}, "e1"), Demo({"q": [2]}, {"a": 3}))),), "r")
    assert shows(value, "e1", {"q": "changed upstream"})
    assert shows(value, "e2", {"q": [2]}) and shows(value, "", {"q": 1})
    assert not shows(value, "e2", {"q": 3}) and not shows(value, "", {"q": 3})
    assert not shows(Choice("m"), "e1", {"q": 1})
