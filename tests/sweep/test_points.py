"""The points of a sweep: axes from text and from files, types, names, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import ROOT, get_config

from optimas_jax.sweep.points import SweepError, combinations, read_points

BASE = get_config("smoke").to_dict()


def overrides(sweep):
    return [dict(point.overrides) for point in read_points(BASE, sweep)]


def test_every_combination_is_a_point_and_the_last_axis_changes_fastest():
    assert overrides("optimize.gate.kind=strict,paired seed=0:2") == [
        {"optimize.gate.kind": "strict", "seed": 0},
        {"optimize.gate.kind": "strict", "seed": 1},
        {"optimize.gate.kind": "paired", "seed": 0},
        {"optimize.gate.kind": "paired", "seed": 1},
    ]


def test_values_have_the_type_of_their_field_and_reach_the_configuration():
    [low, high] = read_points(BASE, "config.reward.learning_rate=1e-4,1")
    assert (low.config.reward.learning_rate, high.config.reward.learning_rate) == (1e-4, 1.0)
    [never, always] = read_points(BASE, "evaluate.changes=false,true")
    assert (never.config.evaluate.changes, always.config.evaluate.changes) == (False, True)
    points = read_points(BASE, "reward.lora.rank=8,32 optimize.mode=paper,improved")
    assert [point.config.reward.lora.rank for point in points] == [8, 8, 32, 32]
    assert points[0].config.optimize.rounds == 1 and points[1].config.optimize.rounds == 3  # switches of the mode


def test_a_bar_separates_values_that_have_commas():
    assert overrides("optimize.proposers=demos|demos,opro") == [
        {"optimize.proposers": "demos"},
        {"optimize.proposers": "demos,opro"},
    ]


def test_folders_are_named_by_what_differs():
    [first, *_] = read_points(BASE, "optimize.gate.kind=strict,paired seed=0:2")
    assert first.name == "optimize.gate.kind=strict,seed=0"
    assert first.setting == {"optimize.gate.kind": "strict"}
    [dots, slashes] = read_points(BASE, f"reward.model=a/../b,{'x' * 200}")
    assert "/" not in dots.name and len(slashes.name) <= 120


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("", "name what differs"),
        ("nonsense=1", "there is no field 'nonsense': a configuration has benchmark, variant"),
        (
            "optimize.gate.kid=strict",
            r"there is no field 'optimize.gate.kid'; did you mean 'kind'\? optimize.gate has kind",
        ),
        ("seed.x=1", "there is no field 'seed.x': seed has no fields"),
        ("seed=", "'seed=' is no axis"),
        ("seed", "'seed' is no axis"),
        ("seed=0 seed=1", "'seed=1' is named twice"),
        ("seed=3:3", "empty range"),
        ("seed=1.5", "seed is '1.5', expected a whole number"),
        ("seed=1,1", "the points seed=1 and seed=1 have the same configuration"),
        ("optimize.score=off optimize.adapt=never,every", "have the same configuration"),
        ("seed=0:3,5", "expected a whole number; a range stands alone"),
        ("evaluate.changes=yes", "evaluate.changes is 'yes'; allowed: true, false"),
        ("optimize.labels=-1", "optimize.labels is -1, expected at least 0"),
        ("optimize.gate.kind=loose", "'loose'; allowed: 'strict', 'paired'"),
        ("optimize.gate=1", "'optimize.gate' has fields of its own"),
        ("system.k_grid=1", "'system.k_grid' is a list"),
        ("there/is/no.py", "there is no file 'there/is/no.py'"),
    ],
)
def test_what_cannot_be_is_refused(sweep, message):
    with pytest.raises(SweepError, match=message):
        read_points(BASE, sweep)


def test_a_file_lists_its_points(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def points():\n    for k in ((1,), (1, 2)):\n        yield {'system.k_grid': k, 'seed': 3}\n")
    points = read_points(BASE, str(file))
    assert [point.config.system.k_grid for point in points] == [(1,), (1, 2)] and points[0].config.seed == 3
    file.write_text("points = None\n")
    file.with_name("none.py").write_text("POINTS = []\n")
    with pytest.raises(SweepError, match="needs a function points"):
        read_points(BASE, str(file.with_name("none.py")))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[{'optimize.nothing': 1}]", r"there is no field 'optimize\.nothing'"),
        ("[{'optimize': {'rounds': 1}}]", r"'optimize' is .*, and has fields of its own: set optimize\.NAME"),
        ("[{1: 2}]", "needs a function points"),
        ("['seed']", "needs a function points"),
        ("1 / 0", r"mine\.py, line 2: ZeroDivisionError"),
        ("None", r"mine\.py: TypeError"),
    ],
)
def test_a_file_that_lists_none_is_refused(tmp_path, returned, message):
    file = tmp_path / "mine.py"
    file.write_text(f"def points():\n    return {returned}\n")
    with pytest.raises(SweepError, match=message):
        read_points(BASE, str(file))
    file.write_text("def points():\n    return [{'config.seed': 1}]\n")
    assert read_points(BASE, str(file))[0].name == "seed=1"


@given(st.dictionaries(st.text("abc", min_size=1), st.lists(st.integers(), min_size=1, max_size=4), max_size=4))
def test_there_are_as_many_combinations_as_the_product(axes):
    rows = combinations(axes)
    count = 1
    for values in axes.values():
        count *= len(values)
    assert len(rows) == count and all(list(row) == list(axes) for row in rows)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_read(file):
    base = get_config("embedded").to_dict()
    points = read_points(base, str(file))
    assert len(points) > 1 and file.read_text().startswith('"""')
