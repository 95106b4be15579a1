"""``optimas show``: what differs between runs, and only that; a sentence where something cannot be compared."""

import copy
import io
import json
import os
import shutil
import subprocess
import sys

import planted_runs as planted
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_harms import HARMS
from rich.console import Console
from runs import ROOT

from optimas_jax.core.folder.files import FolderError
from optimas_jax.report.show.compare import compare_runs
from optimas_jax.report.show.one import show_run
from optimas_jax.report.show.page import comparison_page, write_comparison
from optimas_jax.report.show.read import Shown, read_runs
from optimas_jax.report.show.settings import settings_that_differ
from optimas_jax.report.show.several import show_runs

NAMES = st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1, max_size=6)
VALUES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=6) | st.lists(st.integers(0, 3), max_size=3)
CONFIGS = st.recursive(
    st.dictionaries(NAMES, VALUES, min_size=1, max_size=4),
    lambda inner: st.dictionaries(NAMES, inner | VALUES, min_size=1, max_size=4),
    max_leaves=12,
)
HOSTILE = [
    "</script><script>alert(1)</script>",
    "[bold]x[/bold] [/",
    "{{ 7*7 }}",
    "\u202e\x00\x1b[31m\u2028",
    "x" * 100_000,
]


def leaves(config, path=()):
    for name, value in config.items():
        yield from leaves(value, (*path, name)) if isinstance(value, dict) and value else [(*path, name)]


@settings(max_examples=50, deadline=None)
@given(CONFIGS, st.data())
def test_planted_settings_are_listed_and_no_others(config, data):
    other, planted_names = copy.deepcopy(config), set()
    places = list(leaves(config))
    for place in data.draw(st.lists(st.sampled_from(places), unique=True)):
        *parents, last = place
        section = other
        for name in parents:
            section = section[name]
        old = written(section[last])
        section[last] = data.draw(VALUES.filter(lambda value, old=old: written(value) != old))
        planted_names.add(".".join(("config", *place)))
    found = settings_that_differ([config, other, config])
    assert {setting.name for setting in found} == planted_names
    assert all(setting.values[0] == setting.values[2] != setting.values[1] for setting in found)


def written(value):
    return json.dumps(value)


def test_a_setting_that_one_run_lacks_and_numbers_that_are_the_same():
    found = settings_that_differ([{"a": {"b": 1, "c": {}}}, {"a": {"b": 1.0, "d": True}}, {"a": {"b": 1, "c": {}}}])
    assert [(one.name, list(one.values)) for one in found] == [
        ("config.a.c", ["{}", "not set", "{}"]),
        ("config.a.d", ["not set", "true", "not set"]),
    ]


def test_long_values_are_cut_where_they_differ():
    [setting] = settings_that_differ([{"a": "x" * 5000 + end} for end in "yz"])
    assert setting.values[0] != setting.values[1] and all(len(value) < 200 for value in setting.values)


def shown(*runs):
    return [Shown("ABCDE"[index], f"run {index}", planted.files_of(run)) for index, run in enumerate(runs)]


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 29), max_size=30), st.sets(st.integers(0, 29), max_size=6))
def test_planted_flips_are_listed_and_no_others(flipped, left_out):
    first, other = planted.clean_run(1, 30), planted.clean_run(1, 30)
    for index in flipped:
        planted.answer(other.rows[index], "another one", 1 - other.rows[index]["after"]["score"])
    other.rows = [row for index, row in enumerate(other.rows) if index not in left_out]
    [pair] = compare_runs(shown(first, other)).pairs
    assert {flip.row["id"] for flip in pair.flips} == {f"test-{index:04d}" for index in flipped - left_out}
    assert (pair.shared, pair.better + pair.worse) == (30 - len(left_out), len(flipped - left_out))
    gains = [flip.difference for flip in pair.flips]
    assert gains == sorted(gains)[: pair.worse] + sorted(gains, reverse=True)[: pair.better]


def text_of(write, width=100):
    sink = io.StringIO()
    write(Console(file=sink, width=width, highlight=False, force_terminal=False))
    return sink.getvalue()


def compared(*runs, width=100):
    return text_of(lambda console: show_runs(compare_runs(shown(*runs)), console), width)


def test_what_cannot_be_compared_is_said():
    first, other = planted.clean_run(1, 20), planted.clean_run(1, 20)
    other.more |= {"metric": "f1", "split": "val"}
    other.config["benchmark"] = "another"
    said = " ".join(compared(first, other).split())
    assert "The metrics differ: exact match in A, f1 in B." in said
    assert "The splits differ: test in A, val in B." in said and "The benchmarks differ" in said
    assert "so that no scores are compared" in said


def test_other_examples_of_the_same_names_are_none_that_are_shared():
    first, other = planted.clean_run(1, 20), planted.clean_run(1, 20)
    for row in other.rows[3:]:
        row["inputs"] = {"question": "Another one?"}
    said = " ".join(compared(first, other).split())
    assert "on 3 shared examples (of 20 and 20); 17 examples of the same name have other inputs" in said
    assert "too few to say" in said
    for row in other.rows:
        row["id"] += "x"
    assert "share none of their 20 and 20 examples" in compared(first, other)


@pytest.fixture
def runs(tmp_path):
    for name in ("a", "b"):
        planted.write(planted.clean_run(1, 20), tmp_path / name)
    return tmp_path


def test_folders_are_found_by_what_one_types(runs):
    places = ["a", "a/best", "a/config.json", "b/evaluations/test.json", "b"]
    found = read_runs([str(runs / place) for place in places])
    assert [(one.letter, one.name) for one in found] == [("A", "a"), ("B", "b (test)"), ("C", "b")]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("aa", "there is no folder .*; beside it are a"),
        ("", "is no folder of a run: .* there are runs in it: a, b"),
        ("a/evaluations/val.json", "has no evaluation 'val': it has test"),
        ("x\0y", "cannot read"),
        ("n" * 5000, "cannot read|there is no folder"),
    ],
)
def test_what_is_no_run_is_one_clear_error(runs, place, said):
    with pytest.raises(FolderError, match=said):
        read_runs([os.path.join(runs, place)])  # a path that Path would change


def test_a_run_without_results_is_compared_as_far_as_it_is(runs):
    for name in ("results.json", "evaluations", "journal.jsonl"):
        path = runs / "b" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = compare_runs(read_runs([str(runs / "a"), str(runs / "b")]))
    assert "B has no results" in found.notes[0] and "B has no results" in found.pairs[0].sentence
    assert text_of(lambda console: show_runs(found, console))
    assert comparison_page(found, runs)


def test_the_page_replaces_nothing(runs):
    found = compare_runs(read_runs([str(runs / "a"), str(runs / "b")]))
    path = write_comparison(found, None)
    assert path == runs / "show-a-b.html" == write_comparison(found, None)
    path.write_text("mine")
    assert write_comparison(found, None) == runs / "show-a-b-2.html" and path.read_text() == "mine"
    with pytest.raises(FolderError, match="is no page"):
        write_comparison(found, path)
    with pytest.raises(FolderError, match="is a folder"):
        write_comparison(found, runs)
    assert write_comparison(found, runs / "new" / "page.html").is_file()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_texts(text):
    first, other = (planted.clean_run(1, 20) for _ in range(2))
    other.config[text] = other.config["benchmark"] = text
    for row in other.rows[:8]:
        planted.answer(row, text, 1 - row["after"]["score"])
    found = compare_runs(shown(first, other))
    page = comparison_page(found, planted.files_of(first).folder)
    assert "<script>alert" not in page and "49" not in page.partition("7*7")[2][:20] and len(page) < 500_000
    for said in (compared(first, other), text_of(lambda console: show_run(planted.files_of(other), console))):
        assert "\x1b" not in said and "\x00" not in said and len(said) < 60_000


@pytest.mark.parametrize("width", [60, 100, 200])
def test_both_views_keep_within_the_terminal(width):
    harmed = planted.plant(planted.clean_run(5, 100), HARMS["refusals"].plant)
    runs = [planted.clean_run(seed, 40) for seed in range(4)]
    one = text_of(lambda console: show_run(planted.files_of(harmed), console), width)
    several = compared(harmed, *runs, width=width)
    assert max(map(len, (one + several).splitlines())) <= width
    assert "a refusal" in " ".join(one.split())
    for title in ("Look here first", "What changed", "Proposals", "Examples that flipped", "Bill"):
        assert title in one
    for title in ("Settings that differ", "E against A", "What each ends with", "Bill"):
        assert title in several


def test_the_command_prints_and_writes(runs):
    def show(*arguments):
        command = [sys.executable, "launch/show.py", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        return done.returncode, done.stdout

    code, said = show(str(runs / "a"), str(runs / "b"), str(runs / "a"), f"--html={runs / 'both.html'}")
    assert code == 0 and "named more than once" in said and "None: the configurations are the same." in said
    assert (runs / "both.html").is_file()
    code, said = show(str(runs / "a"), f"--html={runs / 'pages' / 'one.html'}")
    assert code == 0 and "Look here first" in said
    assert 'href="../a/evaluations/test.jsonl"' in (runs / "pages" / "one.html").read_text(encoding="utf-8")
