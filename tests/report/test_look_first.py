"""Look here first: planted harms are named, clean runs and runs without any change are silent."""

import dataclasses
from collections import Counter

import planted_runs as planted
import pytest
from planted_harms import HARMS, as_in_the_first_command
from report_runs import call, example, run_files, side

from optimas_jax.report.look import first
from optimas_jax.report.look.finding import Claim, Finding, significant
from optimas_jax.report.look.first import look_first, shown_first

HOSTILE = ["</script><script>x", "[bold]x[/bold]", "{{ x }}", "\u202e\x00\x1b[31m\u2028", "long " * 20_000]
SIZES = [(20, 1), (30, 2), (40, 3), (60, 4), (80, 8), (100, 3), (150, 5), (200, 8), (300, 6), (400, 7)]


def test_the_numbers_of_the_first_command_and_its_kind_are_named(tmp_path):
    run = planted.plant(planted.clean_run(0, 100), as_in_the_first_command)
    findings = {finding.kind: finding for finding in look_first(planted.read(run, tmp_path))}
    numbers, kind = findings["answer_type"], findings["kind_lost"]
    assert "of 50 examples whose gold answer has no number are now answered with a number" in numbers.sentence
    assert "2 of 2 answers in the demonstrations" in numbers.sentence and numbers.anchor == "flips"
    assert "comparison" in kind.sentence and kind.anchor == "kinds"


@pytest.mark.parametrize("name", HARMS)
def test_a_planted_harm_is_named(name):
    harm = HARMS[name]
    found = look_first(planted.files_of(planted.plant(planted.clean_run(5, 100), harm.plant)))
    assert any(finding.kind == harm.kind and harm.says in finding.sentence for finding in found), found
    assert [finding.rank for finding in found] == sorted(finding.rank for finding in found)


@pytest.mark.parametrize(("n", "kinds"), SIZES)
def test_a_clean_run_is_silent(n, kinds):
    assert look_first(planted.files_of(planted.clean_run(n + kinds, n, kinds))) == []


@pytest.mark.long
def test_few_clean_runs_are_not_silent():
    found = spoken(lambda seed, n, kinds: planted.clean_run(seed, n, kinds, 0.1 + 0.1 * (seed % 4), 0.1))
    assert found.total() <= 5, found


@pytest.mark.long
def test_few_runs_without_a_change_are_not_silent():
    """200 of them: the tests of a run have a level of 5 % together."""
    assert (
        spoken(lambda seed, n, kinds: planted.null_run(seed, n, kinds, repeats=1 + 2 * (seed % 5 == 0))).total() <= 10
    )


def spoken(run):
    """How many of 200 runs have a finding, by its kind."""
    kinds = Counter()
    for seed in range(200):
        findings = look_first(planted.files_of(run(seed, *SIZES[seed % 8])))
        kinds.update(finding.kind for finding in findings[:1])
    return kinds


def test_classes_are_no_sorts_of_answers():
    """Long texts become labels, of which some are wrong, as often as others."""
    run = planted.clean_run(3, 90, 1)
    for index, row in enumerate(run.rows):
        label = ("yes", "no", "maybe")[index % 3]
        row["gold"] = {"answer": label}
        planted.answer(row, f"It may well be {label}, as far as one can tell from the words.", 0.0, "before")
        wrong = ("yes", "no", "maybe")[(index + 1) % 3]
        planted.answer(row, wrong if index % 4 == 0 else label, float(index % 4 > 0))
    assert look_first(planted.files_of(run)) == []


def test_a_run_that_has_just_begun_is_silent(tmp_path):
    run = planted.files_of(planted.clean_run(n=20))
    begun = dataclasses.replace(run, results=None, record=None, events=[], proposals=[], examples=[])
    assert look_first(begun) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_texts_stay_short_texts(text):
    run = planted.plant(planted.clean_run(5, 60), HARMS["refusals"].plant)
    for row in run.rows:
        row["kind"] = row["kind"].replace("kind 1", text)
        row["inputs"]["question"] = text
        if row["after"]["score"]:
            planted.answer(row, text, 0.0)
    findings = look_first(planted.files_of(run))
    assert findings
    for finding in findings:
        assert len(finding.sentence) < 700 and finding.sentence.isprintable()


def test_what_no_form_checks_stops_no_rule(tmp_path):
    """Rows without calls, outcomes of a later version, proposals of an earlier one."""
    run = planted.clean_run(1, 20)
    for index, row in enumerate(run.rows):
        one = row["after"]["runs"][0]
        one |= {"calls": [], "parts": {}} if index % 2 else {"outcome": "unheard of"}
    run.proposals[0] |= {"value": None, "optimiser": "", "component": ""}
    run.more["confirmed"] = {"n": 2, "changes": None, "verdict": "", "tests": [{}, {"ci95": "x"}]}
    means = {"baseline": {"mean": 1.0}, "optimized": {"mean": 0.0}}
    run.more["other_metrics"] = {
        "m": {"chance": 0.0, **means, "gain": {"mean": -1.0, "ci95": [-1.0, -0.5], "p_value": 1.0}}
    }
    assert {finding.kind for finding in look_first(planted.read(run, tmp_path))} >= {"not_confirmed", "metric_fell"}


@pytest.mark.parametrize("place", ["RULES", "FAMILIES"])
def test_a_rule_that_raises_names_itself_and_stops_no_other(place, monkeypatch):
    def broken(run):
        raise KeyError("<b>\n" + "x" * 5_000)

    known = getattr(first, place)
    monkeypatch.setattr(first, place, (broken, *known) if place == "RULES" else ((broken, *known[0]), *known[1:]))
    run = planted.files_of(planted.plant(planted.clean_run(5, 60), HARMS["refusals"].plant))
    with pytest.warns(UserWarning, match="rule broken failed") as warned:
        *others, last = look_first(run)
    monkeypatch.undo()
    assert others == look_first(run) and others and len(warned) == 1
    assert last.kind == "rule_failed" and "broken" in last.sentence and "KeyError" in last.sentence
    assert len(last.sentence) < 700 and last.sentence.isprintable()


def test_the_rest_is_counted():
    findings = [Finding(kind, "sentence", "head", 1) for kind in ("a", "b", "c")]
    assert shown_first(findings, 2) == (findings[:2], 1)


def test_only_tests_that_can_reach_the_level_count():
    finding = Finding("kind", "sentence", "head", 1)
    sure = Claim(0.01, 0.01, lambda: finding)
    assert significant([sure, *[Claim(1.0, 1.0, None)] * 50], 0.02) == [finding]
    assert significant([sure, *[Claim(1.0, 0.0001, None)] * 2], 0.02) == []


def test_of_two_tests_about_the_same_examples_one_speaks():
    first, second = (Finding(kind, "sentence", "head", 1) for kind in ("first", "second"))
    tests = [
        Claim(0.001, 0.001, lambda: first, "field", frozenset(range(9))),
        Claim(0.0001, 0.0001, lambda: second, "field", frozenset(range(10))),
    ]
    assert significant(tests, 0.02) == [first]


def test_the_component_that_always_fails_is_named():
    failed = [call("find", {"mail": "x"}, {}, outcome="parse_error")]
    rows = [
        {**example(index, 0.0, 0.0), "before": side(0.0, {}, failed), "after": side(0.0, {}, failed)}
        for index in range(20)
    ]
    [finding] = [one for one in look_first(run_files(examples=rows)) if one.kind == "flat_scores"]
    assert finding.sentence == "All 20 examples score 0.000 before and after: find fails in 20 of them (parse_error)."
