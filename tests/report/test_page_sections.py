"""What the sections of a run's page say, and that odd folders have a page, too."""

import pytest
from report_runs import call, event, example, proposal, results, run_files, side
from test_page import page_of

from optimas_jax.core.folder.events import Begin
from optimas_jax.report.page import live
from optimas_jax.report.page.sections.calls import call_pairs
from optimas_jax.report.page.sections.changes import changes
from optimas_jax.report.page.sections.head import gain_sentence
from optimas_jax.report.page.sections.outcomes import failures, kinds
from optimas_jax.report.page.sections.rewards import rewards
from optimas_jax.report.page.sections.score import score
from optimas_jax.report.page.sections.use import given_settings
from optimas_jax.report.page.sections.values import compared, value_change
from optimas_jax.report.page.text import number, plain, signed, visible

USAGE = dict.fromkeys(
    ("calls", "prompt_tokens", "completion_tokens", "usd", "seconds", "system_runs", "component_calls"), 0
)
PROMPT = {"type": "prompt", "instruction": "Answer in a word.", "demos": []}
DEMO = {"inputs": {"question": "Capital of Norway?"}, "outputs": {"answer": "Oslo"}, "example_id": "train-7"}
VALUES = {
    "prompt": {**PROMPT, "demos": [DEMO]},
    "hyperparameters": {"type": "hyperparameters", "settings": {"k": 3, "wide": True}},
    "choice": {"type": "choice", "name": "small"},
    "adapter": {"type": "adapter", "digest": "abc"},
    "base": {"type": "adapter", "digest": ""},
    "per_instance": {
        "type": "per_instance",
        "values": [{"type": "choice", "name": "small"}, {"type": "choice", "name": "large"}],
        "reward": "r1",
        "samples": 4,
        "mode": "argmax",
        "temperature": 1.0,
    },
}


def curve(at, iteration, val_score, **spent):
    return event(event="curve", at=at, iteration=iteration, val_score=val_score, **{**USAGE, **spent})


def gate(iteration, gain, accepted, **changes):
    row = {
        "expected_gain": 0.1,
        "labelled_gain": None,
        "local_gain": 0.2,
        "val_gain": gain,
        "ci95": [gain - 0.1, gain + 0.1],
    }
    row |= {"value": "v", "kind": "opro", "p_value": 0.1, "n": 32, "accepted": accepted, **changes}
    return event(event="gate", iteration=iteration, component="speaker", **row)


def started(value, name="speaker"):
    part = {"name": name, "description": "", "inputs": [], "outputs": [], "tuned": True, "value": value}
    return {"program": False, "inputs": ["question"], "components": [part]}


def accepted(*values):
    return [
        {"iteration": number, "component": "speaker", "kind": "opro", "value": value, "val_gain": 0.1}
        for number, value in enumerate(values)
    ]


# Sentences


@pytest.mark.parametrize(
    ("mean", "bounds", "n", "said"),
    [
        (0.2, [0.1, 0.3], 50, "Better: +0.200 [0.100, 0.300]."),
        (-0.2, [-0.3, -0.1], 50, "Worse: -0.200 [-0.300, -0.100]."),
        (0.2, [-0.1, 0.5], 50, "No difference is shown: +0.200 [-0.100, 0.500]."),
        (0.2, [0.1, 0.3], 3, "3 examples: too few to say."),
        (0.0, [0.0, 0.0], 50, "Nothing changed on any example."),
        (None, None, 50, "50 examples: too few to say."),
    ],
)
def test_a_sentence_says_what_its_interval_carries(mean, bounds, n, said):
    assert gain_sentence({"mean": mean, "ci95": bounds}, n) == said


def test_numbers_of_every_kind_have_a_form():
    assert [number(value) for value in (0.2194, -0.0001, None, float("nan"), "x", True, 1e30, 12.0)] == [
        *("0.219", "0.000", "–", "–", "–", "–", "1e+30", "12.000")
    ]
    assert signed(0.0) == "+0.000" and signed(-1e30) == "-1e+30"
    assert visible("a\x00\x1b\u202eb\n") == "a␀␛⟨U+202E⟩b\n"
    assert plain({"a": 1, "b": [1, {"c": None}]}).startswith("{") and plain({"only": ["x", "y"]}) == "x\ny"
    assert plain([{"id": 1, "title": "x"}]) == "id: 1\ntitle: x"


@pytest.mark.parametrize(
    ("state", "files"),
    [
        ("running", {}),
        ("stopped", {"unfinished": {"reason": "OverBudget: no more", "go_on": "x"}}),
        ("not finished", {"events": [event(event="pick", iteration=1, component="speaker")]}),
        (
            "The test is to come",
            {"events": [event(event="search_end", iterations=2, reason="x", accepted=0, val_score=0)]},
        ),
        ("not begun", {}),
    ],
)
def test_the_head_tells_the_state(state, files):
    assert state in page_of(run_files(**files), running=state == "running").text


def test_a_running_page_shows_the_validation_score_so_far():
    events = [curve("start", 0, 0.25), gate(0, 0.25, True), curve("accept", 0, 0.5, prompt_tokens=1200, usd=0.5)]
    text = page_of(run_files(events=events), running=True).text
    assert "0.250 → 0.500" in text and "1,200 tokens so far" in text and "$0.50" in text


# Changes


def test_words_that_changed_are_marked():
    pieces = list(compared("Answer the question in a full sentence.", "Answer the question in one word."))
    assert "".join(piece.text for piece in pieces if piece.kind != "new") == "Answer the question in a full sentence."
    assert "".join(piece.text for piece in pieces if piece.kind != "old") == "Answer the question in one word."
    assert [piece.kind for piece in pieces][:1] == ["same"] and {piece.kind for piece in pieces} == {
        "same",
        "old",
        "new",
    }


@pytest.mark.parametrize(
    ("old", "new"), [("", ""), ("a", ""), ("", "b"), ("x " * 20_000, "y\n" * 20_000), ("\n\n", "\n")]
)
def test_any_two_texts_can_be_compared(old, new):
    pieces = list(compared(old, new))
    assert all(piece.text for piece in pieces)


def test_a_change_shows_demonstrations_and_what_it_brought():
    rows = [{**example(number, 0.0, 1.0), "id": f"{number}"} for number in range(8)]
    gain = {"mean": 0.5, "ci95": [0.25, 0.75], "p_value": 0.01}
    [change] = accepted(VALUES["prompt"])
    found = results(rows, accepted=[{**change, "test": {"gain": gain, "local_gain": None}}])
    run = run_files(examples=rows, results=found, system=started(PROMPT), events=[gate(0, 0.1, True)])
    [shown] = changes(run).shown
    assert shown.value.summary == "1 demonstration new" and shown.known and shown.kept
    assert [(one.where, one.gain) for one in shown.brought] == [("validation, 32 examples", 0.1), ("test", 0.5)]
    text = page_of(run).text
    assert "from train-7" in text and "instruction, unchanged" in text


def test_a_change_that_was_not_confirmed_is_undone():
    found = results([], accepted=accepted(PROMPT), confirmed={"n": 5, "changes": None, "verdict": "not confirmed"})
    page = page_of(run_files(results=found, system=started(PROMPT)))
    assert "undone: not confirmed" in page.text and "On 5 examples that no gate has seen: not confirmed" in page.text


@pytest.mark.parametrize("old", VALUES)
@pytest.mark.parametrize("new", VALUES)
def test_values_of_every_kind_follow_each_other(old, new):
    change = value_change(VALUES[old], VALUES[new])
    assert (change.summary == "the same") == (old == new)
    assert value_change(None, VALUES[new]).summary


def test_the_first_value_of_an_older_folder_is_that_of_a_proposal_that_repeated_it():
    rows = [proposal(0, parent="d0", digest="d1"), proposal(1, parent="d0", digest="d0", value=PROMPT)]
    run = run_files(proposals=rows, results=results([], accepted=accepted(VALUES["prompt"])))
    assert changes(run).shown[0].known


# Calls


def test_the_first_difference_is_marked():
    row = example(0, 0.0, 1.0)
    before, after = (row[name]["runs"][0] for name in ("before", "after"))
    found = call_pairs(before, after, row, 1000, 100)
    assert [pair.word for pair in found.pairs] == ["same", "first difference"]
    speaker = found.pairs[1]
    assert dict(speaker.before.inputs) == {"draft": "(of writer)", "question": "(as given)"}
    assert [(part.text, part.marked) for part in speaker.after.outputs[0][1]] == [("Bergen", True)]


def test_runs_of_different_calls_stand_side_by_side():
    def run(*names):
        calls = [
            {**call(name, {}, {"text": name}), "occurrence": names[:at].count(name)} for at, name in enumerate(names)
        ]
        return {"calls": calls}

    found = call_pairs(run("draft", "check", "draft", "answer"), run("plan", "draft", "check", "answer"), {}, 100, 100)
    assert [(pair.component, pair.word) for pair in found.pairs] == [
        ("plan", "first difference: only after"),
        ("draft", "same"),
        ("check", "same"),
        ("draft (2)", "only before"),
        ("answer", "same"),
    ]


def test_of_many_calls_those_at_the_first_difference_are_shown():
    old = [call("step", {"n": number}, {"text": str(number)}) | {"occurrence": number} for number in range(500)]
    new = [*old[:300], *({**one, "outputs": {"text": "other"}} for one in old[300:])]
    found = call_pairs({"calls": old}, {"calls": new}, {}, 100, 20)
    assert (len(found.pairs), found.earlier, found.later) == (20, 297, 183)
    assert found.pairs[3].word == "first difference"


# Evaluation


def test_a_kind_of_few_examples_has_no_interval():
    rows = [
        {**example(number, 0.0, 1.0), "id": f"{number}", "kind": "few" if number < 3 else "many"}
        for number in range(12)
    ]
    many, few = kinds(run_files(examples=rows))
    assert (many.name, many.n, few.name, few.n) == ("many", 9, "few", 3)
    assert many.bounds is not None and few.bounds is None
    assert "too few to say" in page_of(run_files(examples=rows, results=results(rows))).text


def test_other_measures_of_the_same_runs_are_shown():
    gain = {"mean": 0.25, "ci95": [0.125, 0.375], "p_value": 0.01}
    exact = {"chance": 0.0, "baseline": {"mean": 0.1}, "optimized": {"mean": 0.35}, "gain": gain}
    of_set = {"chance": 0.5, "baseline": {"mean": 0.5}, "optimized": {"mean": 0.75}, "gain": {"mean": 0.25}}
    found = results([], other_metrics={"exact match": exact, "F1": of_set}, unconfirmed={"mean": 0.4, "gain": gain})
    text = page_of(run_files(results=found)).text
    assert "exact match 0.100 0.350 +0.250 [0.125, 0.375]" in text and "F1, chance 0.50 0.500 0.750" in text
    assert "all changes, not confirmed" in text


def test_a_folder_that_only_evaluates_says_so():
    rows = [example(0, 0.0, 1.0)]
    run = run_files(examples=rows, results=results(rows), config={"evaluate": {"folder": "runs/other/best"}})
    assert "There was no search in this folder: it evaluates runs/other/best" in page_of(run).text
    assert "This folder has no rows of its evaluation" in page_of(run_files(results=results(rows))).text


def test_failures_have_an_example_each():
    broken = {**call("speaker", {}, {}), "outcome": "crashed", "detail": "ValueError: <no>"}
    row = example(0, 0.0, 1.0)
    row["after"] = side(0.0, {}, [broken])
    row["after"]["runs"][0]["outcome"] = "crashed"
    row["before"]["runs"][0] |= {"outcome": "timeout"}  # the program itself
    found = failures(run_files(examples=[row]))
    assert [(one.component, one.outcome, one.before, one.after) for one in found.rows] == [
        ("speaker", "crashed", 0, 1),
        ("the program itself", "timeout", 1, 0),
    ]
    assert "ValueError: <no>" in page_of(run_files(examples=[row], results=results([row]))).text


# Search


def test_dots_stand_at_the_score_that_a_proposal_had():
    events = [curve("start", 0, 0.25), gate(0, -0.1, False), curve("iteration", 0, 0.25, prompt_tokens=100)]
    shown = score(run_files(events=events))
    assert list(shown.pictures) == ["tokens"]
    assert "1 refused" in shown.pictures["tokens"] and "cross bad" in shown.pictures["tokens"]


def test_agreement_of_few_pairs_is_too_few_to_say():
    pick = event(event="pick", iteration=0, component="speaker")
    met = {"fresh_groups": 4, "pair_accuracy_before": 0.75, "trained": True, "reward": "r"}
    few = rewards(run_files(events=[pick, event(event="adaptation", fresh_pairs=4, **met)]))
    assert few.said == "4 fresh pairs in all, 3 ordered rightly: too few to say."
    many = rewards(run_files(events=[pick, event(event="adaptation", fresh_pairs=40, **met)]))
    assert many.said == "Of 40 fresh pairs 30 were ordered rightly, 75 %; chance is 50 %."


def test_settings_are_those_that_the_command_gave():
    assert given_settings("launch/run.py --config=configs/x.py:smoke '--config.a.b=1 2' --stage=all") == (
        "configs/x.py:smoke",
        [("a.b", "1 2")],
    )
    called = 'optimize(pipeline, ..., config={"optimize.iterations": 2, "a": null}) from Python'
    assert given_settings(called) == ("", [("optimize.iterations", "2"), ("a", "null")])
    assert given_settings("it's no command line") == ("", [])


def test_scores_of_every_size_have_a_page():
    for size in (0.0, -5.0, 1e300, 1e-300):
        rows = [{**example(number, size, -size), "id": f"{number}"} for number in range(8)]
        events = [curve("start", 0, size), gate(0, size, False), curve("iteration", 0, -size, prompt_tokens=1)]
        page_of(run_files(examples=rows, results=results(rows), events=events))


def test_runs_without_newer_fields_have_a_page():
    rows = [{**example(number, 0.0, 1.0), "id": "same"} for number in range(8)]
    for row in rows:
        for one in (*row["before"]["runs"], *row["after"]["runs"]):
            for name in ("seed", "score", "parts", "outcome"):
                del one[name]
    old = [{"id": "0-a", "race": None, "gate": None}, {"id": "1-a", "race": {}, "gate": {}}]
    page_of(run_files(examples=rows, results=results(rows), proposals=old))


def test_a_page_of_huge_texts_is_no_huge_page():
    long = "word " * 20_000
    rows = [{**example(number, 1.0, 0.0, (long, long + "x")), "id": f"{number}{long}"} for number in range(20)]
    many = [proposal(number, text=long, component=long, optimiser=long, reason=long) for number in range(20)]
    prompt = {"type": "prompt", "instruction": long, "demos": [{"inputs": {long: long}, "outputs": {long: long}}] * 20}
    events = [event(event="pick", iteration=0, component=long), gate(0, 0.1, True, kind=long), curve("start", 0, 0.5)]
    found = results(rows, accepted=accepted(prompt), metric=long, benchmark=long)
    page = page_of(run_files(examples=rows, proposals=many, results=found, events=events, system=started(PROMPT)))
    assert len(page.text) < 1_000_000


# While a run runs


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(live, "_FIRST", 0.0)
    monkeypatch.setattr(live, "_SHARE", 0.0)


def begin(folder):
    rest = {
        "benchmark": "b",
        "variant": "v",
        "seed": 0,
        "stage": "all",
        "components": (),
        "examples": {},
        "settings": {},
    }
    return Begin(folder=str(folder), resumed=False, **rest)


def test_the_page_is_rewritten_while_a_run_runs(tmp_path, at_once):
    page, said = tmp_path / "report.html", []
    with pytest.raises(KeyboardInterrupt), live.live_page(said.append) as tell:
        tell(begin(tmp_path))
        assert not page.exists()
        tell(curve("start", 0, 0.5))
        assert "running" in page_of_file(page).text
        raise KeyboardInterrupt
    assert "not begun" in page_of_file(page).text and said == []


def page_of_file(path):
    from test_page import Page

    return Page(path.read_text(encoding="utf-8"))


def test_a_page_that_cannot_be_written_is_told_of_once(tmp_path, at_once):
    (tmp_path / "report.html").mkdir()
    said = []
    with live.live_page(said.append) as tell:
        tell(begin(tmp_path))
        for number in range(3):
            tell(curve("iteration", number, 0.5))
    [line] = said
    assert "the page of the run cannot be written" in line


def test_the_page_of_results_stays_while_another_command_runs(tmp_path, at_once):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "report.html").write_text("of the results")
    with live.live_page(print) as tell:
        tell(begin(tmp_path))
        tell(curve("start", 0, 0.5))
    assert (tmp_path / "report.html").read_text() == "of the results"
