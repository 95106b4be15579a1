import dataclasses
import errno
import json
import random
import shutil
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import group

from optimas_jax.core.types import Candidate, Group, StopRun, digest, freeze
from optimas_jax.rewards.data import (
    GroupsError,
    from_preferences,
    group_from_row,
    group_to_row,
    load_groups,
    save_groups,
    to_preferences,
)
from optimas_jax.rewards.pairs import merge_groups
from optimas_jax.rewards.split import Shares, part_of

COLUMNS = {
    "context",
    "response_chosen",
    "response_rejected",
    "score_chosen",
    "score_rejected",
    "variable_chosen",
    "variable_rejected",
}
GROUPS = [
    Group(
        "hint",
        "train-1",
        freeze({"passages": ["Peru: où?", "Lima\u2028\U0001f600"], "nested": {"deep": [1, 2.5, None, True]}}),
        (
            Candidate(freeze({"hint": "Lima"}), "current", (1.0, 0.5)),
            Candidate(freeze({}), "sampled:0", (0.0, 0.0)),  # the component failed
            Candidate(freeze({"hint": 'a "quote"\n'}), "value:abc", (0.25, 0.25)),
        ),
        "0123456789abcdef0123",
    ),
    group(({"k": [1]}, 0.0), ({"k": [2, 3]}, 1.0), component="retriever"),
    group(({"k": [1]}, 0.5), ({"k": [4]}, 0.5), component="retriever", name="tied"),
]

GOOD = {
    "context": '{"a": {"input": {"q": 1}}}',
    "response_chosen": '{"out": "x"}',
    "response_rejected": '{"out": "y"}',
    "score_chosen": 1,
    "score_rejected": "0.5",
    "variable_chosen": "v",
    "variable_rejected": "w",
}


def content(groups):
    """Candidates with their mean rewards by component and input, whatever their order."""
    return {
        (g.component, digest(g.inputs)): {digest(candidate.outputs): candidate.reward for candidate in g.candidates}
        for g in groups
    }


def test_groups_survive_the_round_trip(tmp_path):
    save_groups(tmp_path / "offline", GROUPS)
    assert load_groups(tmp_path / "offline") == GROUPS


def test_groups_without_a_single_pair_survive_too(tmp_path):
    save_groups(tmp_path / "offline", GROUPS[2:])
    assert load_groups(tmp_path / "offline") == GROUPS[2:]
    assert not (tmp_path / "offline" / "preferences").exists()


def test_no_groups_at_all_survive_too(tmp_path):
    save_groups(tmp_path / "offline", [])
    assert load_groups(tmp_path / "offline") == []


def test_where_nothing_was_saved_there_are_no_groups(tmp_path):
    assert load_groups(tmp_path / "offline") is None


def test_saving_again_replaces_everything(tmp_path):
    save_groups(tmp_path / "offline", GROUPS)
    save_groups(tmp_path / "offline", GROUPS[2:])
    assert load_groups(tmp_path / "offline") == GROUPS[2:]
    assert [entry.name for entry in tmp_path.iterdir()] == ["offline"]
    assert not (tmp_path / "offline" / "preferences").exists()


def test_a_full_disk_says_so_and_leaves_the_old_groups(tmp_path, monkeypatch):
    save_groups(tmp_path / "offline", GROUPS)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", fail)  # the groups are written, their pairs are not
    with pytest.raises(GroupsError, match=r"offline .*No space left.*run the same command again"):
        save_groups(tmp_path / "offline", GROUPS[:1])
    monkeypatch.undo()
    assert load_groups(tmp_path / "offline") == GROUPS
    save_groups(tmp_path / "offline", GROUPS[:1])
    assert load_groups(tmp_path / "offline") == GROUPS[:1]
    assert issubclass(GroupsError, StopRun)


def test_new_groups_that_cannot_take_their_place_leave_the_old_ones(tmp_path, monkeypatch):
    save_groups(tmp_path / "offline", GROUPS)
    rename = Path.rename

    def fail(self, target):
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(GroupsError, match="Input/output error"):
        save_groups(tmp_path / "offline", GROUPS[:1])
    assert load_groups(tmp_path / "offline") == GROUPS


@pytest.mark.parametrize("damage", ["cut", "no state", "empty folder", "another data set"])
def test_a_damaged_folder_says_so(tmp_path, damage):
    path = tmp_path / "offline"
    save_groups(path, GROUPS)
    if damage == "cut":
        [file] = path.glob("*.arrow")
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "no state":
        (path / "state.json").unlink()
    elif damage == "empty folder":
        shutil.rmtree(path)
        path.mkdir()
    else:
        shutil.rmtree(path)
        datasets.Dataset.from_list([{"component": "a"}]).save_to_disk(str(path))
    with pytest.raises(GroupsError, match=r"offline is damaged .*run --stage=collect again"):
        load_groups(path)


def test_every_flipped_bit_is_an_error_that_names_the_file(tmp_path):
    save_groups(tmp_path / "offline", GROUPS)
    files = [path for path in sorted((tmp_path / "offline").rglob("*")) if path.is_file()]
    rng = random.Random(0)
    for number in range(60):
        file = files[number % len(files)]
        whole = bytearray(file.read_bytes())
        place = rng.randrange(len(whole))
        whole[place] ^= 1 << rng.randrange(8)
        kept = file.read_bytes()
        file.write_bytes(whole)
        with pytest.raises(GroupsError, match=r"offline is damaged .*run --stage=collect again"):
            load_groups(tmp_path / "offline")
        file.write_bytes(kept)
    assert load_groups(tmp_path / "offline") == GROUPS


def test_groups_of_an_earlier_version_have_no_checksums(tmp_path):
    save_groups(tmp_path / "offline", GROUPS)
    (tmp_path / "offline" / "checksums.json").unlink()
    assert load_groups(tmp_path / "offline") == GROUPS


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": "[1]"},
        {"inputs": "{"},
        {"inputs": "[" * 100_000},
        {"inputs": 5},
        {"outputs": ["[]", "{}", "{}"]},
        {"outputs": ["{}"]},
        {"rewards": [[], [1.0], [1.0]]},
        {"rewards": [[float("nan")], [1.0], [1.0]]},
        {"rewards": [["x"], [1.0], [1.0]]},
        {"outputs": [], "sources": [], "rewards": []},
        {"component": None},
        {"example_id": 5},
        {"occurrence": "1"},
    ],
)
def test_a_row_of_another_form_is_no_group(change):
    row = group_to_row(next(group for group in GROUPS if len(group.candidates) == 3))
    assert group_from_row(row).candidates
    with pytest.raises((ValueError, TypeError)):
        group_from_row({**row, **change})


def test_preferences_are_all_ordered_pairs_with_different_rewards():
    rows = to_preferences(GROUPS)
    assert {name: len(pairs) for name, pairs in rows.items()} == {"hint": 3, "retriever": 1}
    assert all(set(row) == COLUMNS for pairs in rows.values() for row in pairs)
    assert [(row["score_chosen"], row["score_rejected"]) for row in rows["hint"]] == [
        (0.75, 0.0),
        (0.75, 0.25),
        (0.25, 0.0),
    ]
    [row] = rows["retriever"]
    assert json.loads(row["context"]) == {"example": {"input": {"example_id": "e"}}, "retriever": {"input": {"q": "e"}}}
    assert json.loads(row["response_chosen"]) == {"k": [2, 3]}
    assert json.loads(row["response_rejected"]) == {"k": [1]}
    assert [json.loads(row[f"variable_{side}"]) for side in ("chosen", "rejected")] == ["sampled:1", "current"]


def test_preferences_lie_beside_the_groups(tmp_path):
    save_groups(tmp_path / "offline", GROUPS)
    saved = datasets.load_from_disk(str(tmp_path / "offline" / "preferences"), keep_in_memory=True)
    assert {name: saved[name].to_list() for name in saved} == to_preferences(GROUPS)


def test_groups_come_back_from_their_preferences():
    groups = from_preferences(to_preferences(GROUPS))
    assert content(groups) == content(GROUPS[:2])
    assert [g.component for g in groups] == ["hint", "retriever"]
    assert [g.inputs for g in groups] == [g.inputs for g in GROUPS[:2]]
    assert [[c.source for c in g.candidates] for g in groups] == [
        ["current", "sampled:0", "value:abc"],
        ["sampled:1", "current"],
    ]
    assert all(g.configuration == "" for g in groups)


def test_an_example_keeps_its_name_and_so_its_part():
    """Two examples whose inputs to a component are equal stay two groups: they may lie in different parts."""
    alike = [group(({"o": 1}, 0.0), ({"o": 2}, 1.0), name=f"train-{number}", inputs={"q": 1}) for number in range(40)]
    read = from_preferences(to_preferences([*GROUPS[:2], *alike]))
    names = [g.example_id for g in [*GROUPS[:2], *alike]]
    assert [g.example_id for g in read] == names
    parts = [part_of(name, Shares(0.2, 0.3)) for name in names]
    assert [part_of(g.example_id, Shares(0.2, 0.3)) for g in read] == parts and len(set(parts)) == 3
    assert to_preferences(read)["a"] == to_preferences(alike)["a"]


@pytest.mark.parametrize(
    "first", [{"example": {"input": {"q": 1}}}, {"a": {"input": {"example_id": "x"}}}, {"a": {"input": {"q": 1}}}]
)
def test_a_context_of_another_writer_is_named_by_its_first_input(first):
    [read] = from_preferences({"b": [{**GOOD, "context": json.dumps({**first, "b": {"input": {"q": 2}}})}]})
    assert read.example_id == digest(next(iter(first.values()))["input"])


def test_an_example_has_one_name_for_all_components_after_import():
    groups = [
        group(({"o": 1}, 0.0), ({"o": 2}, 1.0), component=component, name=name, inputs={component: name})
        for component in ("a", "b")
        for name in ("e1", "e2")
    ]
    names = [g.example_id for g in from_preferences(to_preferences(groups))]
    assert names[:2] == names[2:] and len(set(names)) == 2
    first = {**GOOD, "context": '{"a": {"input": {"q": 1}}}'}
    second = {**GOOD, "context": '{"a": {"input": {"q": 1}, "output": {"out": "x"}}, "b": {"input": {"out": "x"}}}'}
    [one, two] = from_preferences({"a": [first], "b": [second]})
    assert one.example_id == two.example_id and two.inputs == {"out": "x"}
    assert from_preferences({"a": [first]})[0].example_id == one.example_id


def test_merged_groups_hold_every_candidate_once():
    one = group(({"o": 1}, 0.0), ({"o": 2}, 1.0))
    two = group(({"o": 1}, 0.5), ({"o": 3}, 1.0))
    other = dataclasses.replace(two, configuration="other")
    merged = merge_groups([one, other, two])
    assert [[c.outputs["o"] for c in g.candidates] for g in merged] == [[1, 2, 3], [1, 3]]
    assert merged[0].rewards == (0.0, 1.0, 1.0) and merged[1] == other


REWARDS = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=5)


@given(st.lists(REWARDS, max_size=4))
def test_only_groups_with_a_pair_come_back_and_they_come_back_whole(rewards):
    groups = [
        group(*[({"out": index}, reward) for index, reward in enumerate(row)], name=f"e{number}")
        for number, row in enumerate(rewards)
    ]
    read = from_preferences(to_preferences(groups))
    assert content(read) == content([g for g in groups if len(set(g.rewards)) > 1])


def test_published_rows_become_candidates_once_each():
    third = {**GOOD, "response_rejected": '{"out": "z"}', "score_rejected": 0.0}
    [read] = from_preferences({"a": [GOOD, third]})
    assert read.inputs == {"q": 1}
    assert [(c.outputs["out"], c.reward, c.source) for c in read.candidates] == [
        ("x", 1.0, "variable:v"),
        ("y", 0.5, "variable:w"),
        ("z", 0.0, "variable:w"),
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((column, None) for column in sorted(COLUMNS - {"variable_chosen", "variable_rejected"})),
        ("context", "{"),
        ("context", '{"other": {"input": {}}}'),
        ("context", '{"a": {"output": {}}}'),
        ("context", "[]"),
        ("response_chosen", "not JSON"),
        ("score_rejected", "much"),
    ],
)
def test_a_row_that_is_no_pair_is_named(column, value):
    with pytest.raises(ValueError, match=r"row 1 of 'a' is not a preference pair \("):
        from_preferences({"a": [GOOD, {**GOOD, column: value}]})


@pytest.mark.parametrize("column", sorted(COLUMNS))
def test_a_row_without_a_column_is_named(column):
    row = {key: value for key, value in GOOD.items() if key != column}
    with pytest.raises(ValueError, match=rf"row 0 of 'a' is not a preference pair \(KeyError: '{column}'"):
        from_preferences({"a": [row]})
