import collections
import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from runs import run_config
from systems import example, system, tool

from optimas_jax.core.component import Component, ComponentFailure
from optimas_jax.core.folder.files import FolderError
from optimas_jax.core.types import Call, Outcome, Trace
from optimas_jax.core.values import Configuration, Prompt, value_to_json
from optimas_jax.loop.context import failures, report_failures
from optimas_jax.loop.evaluate import Evaluation, after_each, by_kind, cut_short, evaluate, gain, unread
from optimas_jax.loop.setup.build import build_run
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.tables import accepted_table, alignment_table, dropped_table, ledger_table, result_table, tables


def evaluation(*repeats):
    """Scores per repeat; None stands for a run that failed with a parse error."""
    return Evaluation(
        tuple(
            tuple(
                Trace(f"e{index}", 0, (), {}, Outcome.OK if score is not None else Outcome.PARSE_ERROR, score or 0.0)
                for index, score in enumerate(scores)
            )
            for scores in repeats
        )
    )


# Evaluations


def test_scores_are_means_over_repeats_in_example_order():
    two = evaluation([1.0, 0.0, 0.5], [0.0, 0.0, 1.0])
    assert two.scores == [0.5, 0.0, 0.75]
    assert two.repeat_means == [0.5, pytest.approx(1 / 3)]
    data = two.to_json()
    assert data["mean"] == pytest.approx(1.25 / 3)
    assert data["ci95"][0] < data["mean"] < data["ci95"][1]
    assert data["scores"] == two.scores
    assert data["repeats"] == two.repeat_means
    assert data["spread"] == pytest.approx((1 / 6) / 2**0.5)  # standard deviation of two numbers 1/6 apart


def test_one_repeat_has_no_spread():
    assert evaluation([0.25, 0.25]).to_json() == {"mean": 0.25, "ci95": (0.25, 0.25), "scores": [0.25, 0.25]}


def test_failures_are_scored_and_counted():
    failing = evaluation([1.0, None], [1.0, None])
    assert failing.scores == [1.0, 0.0]
    assert failing.outcomes == {"ok": 2, "parse_error": 2}


def test_answers_that_cannot_be_read_are_counted_by_component_and_side():
    def of(*answers):
        """One run of two calls for each example; None for a call that failed."""
        calls = [
            tuple(Call("scorer", {}, {"x": x} if x else {}, Outcome.OK if x else Outcome.TIMEOUT) for x in pair)
            for pair in answers
        ]
        return Evaluation((tuple(Trace(f"e{i}", 0, made, {}, Outcome.OK, 0.0) for i, made in enumerate(calls)),))

    benchmark = SimpleNamespace(READ={"scorer": lambda outputs, example: outputs["x"].isdigit(), "idle": None})
    examples = [example(i, {}) for i in range(2)]
    sides = {"baseline": of(("1", "?"), ("x", None)), "optimized": of(("1", "2"), ("3", "4"))}
    counted = {"scorer": {"baseline": 2, "optimized": 0, "answers": 7}}
    assert unread(benchmark, examples, sides) == counted
    assert unread(benchmark, examples, dict.fromkeys(sides, sides["optimized"])) == {}
    assert unread(SimpleNamespace(), examples, sides) == {}


def test_answers_that_the_limit_of_tokens_cut_are_counted():
    def of(*details):
        calls = tuple(Call("writer", {}, {"x": "1"}, Outcome.OK, detail) for detail in details)
        failed = Call("writer", {}, {}, Outcome.TIMEOUT, "no answer within 3 s")
        return Evaluation(((Trace("e", 0, (*calls, failed), {}, Outcome.TIMEOUT, 0.0),),))

    sides = {"baseline": of("cut at max_tokens = 8", "", "cut at max_tokens = 8"), "optimized": of("", "")}
    assert cut_short(sides) == {"writer": {"baseline": 2, "optimized": 0, "answers": 5}}
    assert cut_short(dict.fromkeys(sides, sides["optimized"])) == {}


def test_runs_that_failed_say_where_and_why():
    def trace(*steps):
        records = tuple(Call(name, {}, {}, outcome, detail) for name, outcome, detail in steps)
        outcome = next((call.outcome for call in records if call.outcome is not Outcome.OK), Outcome.OK)
        return Trace("e", 0, records, {}, outcome, 0.0)

    good = trace(("first", Outcome.OK, ""), ("second", Outcome.OK, ""))
    dead = [trace(("first", Outcome.TIMEOUT, "after 60 s"), ("beside", Outcome.OK, "")) for _ in range(2)]
    refused = trace(("first", Outcome.OK, ""), ("second", Outcome.REFUSED, ""))
    assert failures([good]) == ""
    expected = "3 of 4 runs of the system failed, most at first: timeout (after 60 s)"
    assert failures([good, *dead, refused]) == expected
    said = io.StringIO()
    host = SimpleNamespace(progress=ConsoleProgress(Console(file=said, width=300)))
    report_failures(host, [good])
    report_failures(host, [good, refused])
    report_failures(host, [refused])
    assert said.getvalue() == (
        "  1 of 2 runs of the system failed, most at second: refused\n"
        "warning: 1 of 1 runs of the system failed, most at second: refused\n"
    )


def test_the_gain_is_paired():
    assert gain(evaluation([0.6, 0.2]), evaluation([0.5, 0.1])) == {
        "mean": pytest.approx(0.1),
        "ci95": pytest.approx((0.1, 0.1)),
        "p_value": 0.25,
    }


def test_scores_by_kind_stand_side_by_side():
    kinds = ["b", "a", "b", ""]
    examples = [dataclasses.replace(example(f"e{i}"), kind=kind) for i, kind in enumerate(kinds)]
    table = by_kind(
        examples, {"baseline": evaluation([0.0, 0.5, 1.0, 1.0]), "optimized": evaluation([1.0, 0.5, 1.0, 0.0])}
    )
    assert table == {
        "b": {"n": 2, "baseline": 0.5, "optimized": 1.0},
        "a": {"n": 1, "baseline": 0.5, "optimized": 0.5},
    }
    assert list(table) == ["b", "a"]


@pytest.fixture
def host(tmp_path):
    """The host of a run, with a small system that scores x times a random bit and fails on one example."""

    async def flip(fields, value, context):
        if fields["q"] == 13:
            raise ComponentFailure(Outcome.REFUSED)
        return {"bit": context.seed % 2}

    small = system(
        Component("flip", "", ("q",), ("bit",), flip),
        tool("scale", ("bit",), lambda bit, x: bit * x, grid=(1, 3)),
        output="scale_out",
    )
    built = build_run(run_config(seed=5), tmp_path / "run", ConsoleProgress(quiet=True))
    yield dataclasses.replace(built.host, system=small)
    built.tape.close()
    built.host.folder.close()


def test_configurations_are_compared_under_the_same_seeds(host):
    examples = [example(f"e{i}", q=i) for i in range(20)]
    default = host.system.default_configuration()
    triple = default.replace("scale", [*host.system.by_name["scale"].space.values()][1])
    plain, scaled = evaluate(host, (default, triple), examples, 3)
    assert [len(traces) for traces in plain.traces] == [20] * 3
    assert [trace.example_id for trace in plain.traces[1]] == [one.id for one in examples]
    assert {trace.seed for trace in plain.traces[0]} == {5}
    assert len({traces[0].seed for traces in plain.traces}) == 3
    assert scaled.scores == pytest.approx([3 * score for score in plain.scores])
    assert len(set(plain.scores)) > 2  # repeats draw anew
    assert plain.outcomes == {"ok": 57, "refused": 3}
    assert evaluate(host, (default,), examples, 1)[0].traces == plain.traces[:1]


# Reports

RESULTS = {
    "benchmark": "hotpotqa",
    "variant": "embedded",
    "seed": 0,
    "split": "test",
    "n": 3,
    "metric": "f1",
    "chance": 0.0,
    "baseline": {"mean": 0.125, "ci95": (0.0, 0.25), "scores": []},
    "optimized": {"mean": 0.5, "ci95": (0.25, 0.75), "scores": []},
    "gain": {"mean": 0.375, "ci95": (0.125, 0.5), "p_value": 0.0124},
    "by_kind": {"one-hop": {"n": 2, "baseline": 0.25, "optimized": 0.625}},
    "alignment": {
        "speaker": {
            "pair_accuracy": 0.7,
            "ci95": (0.6, 0.8),
            "n_pairs": 98,
            "n_inputs": 24,
            "spearman": 0.4321,
            "controls": {"shorter": 0.65, "loglik": 0.55, "majority": 0.45},
        }
    },
    "accepted": [
        {
            "component": "speaker",
            "kind": "demos",
            "val_score": 0.4375,
            "val_gain": 0.0625,
            "iteration": 2,
            "test": {"gain": {"mean": 0.375, "ci95": (0.125, 0.5)}, "local_gain": {"mean": 1.25, "ci95": (0.75, 2.0)}},
        }
    ],
    "dropped": {"speaker": {"repeated": 3, "same outputs": 17}},
    "ledger": {
        "collect": {
            "speaker": collections.Counter(calls=1200, paid_calls=7, prompt_tokens=10, completion_tokens=2, usd=0.5),
            "proposer": collections.Counter(calls=34, paid_calls=1, prompt_tokens=5, completion_tokens=2, usd=0.25),
        }
    },
}


def cells(table):
    """Rows of a table as it is printed, each as its words."""
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    lines = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in out.getvalue().splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 1}, out.getvalue()


def test_the_result_table_shows_intervals_and_kinds():
    rows, text = cells(result_table(RESULTS))
    assert "hotpotqa:embedded, test split, n = 3, f1, chance 0.00" in text
    assert "0.125 │ [0.000, 0.250]" in text
    assert "0.500 │ [0.250, 0.750]" in text
    assert rows["gain"] == ["+0.375", "[0.125, 0.500]", "0.012"]
    assert rows["one-hop (n = 2)"][0] == "0.250 -> 0.625"


def test_the_alignment_table_shows_the_controls():
    rows, _ = cells(alignment_table(RESULTS["alignment"]))
    assert rows["speaker"] == ["0.700", "[0.600, 0.800]", "98", "24", "0.43", "0.650", "0.550", "0.450"]
    few = {"speaker": {**RESULTS["alignment"]["speaker"], "ci95": None, "n_inputs": 4, "ceiling": 0.875}}
    assert cells(alignment_table(few))[0]["speaker"][1] == "too few to say"
    assert cells(alignment_table(few))[0]["speaker"][-1] == "0.875"


def test_what_accepted_changes_brought_stands_in_a_table():
    rows, text = cells(accepted_table(RESULTS["accepted"], "test"))
    assert rows["3"] == ["speaker", "demos", "+0.062", "+0.375", "[0.125, 0.500]", "+1.250", "[0.750, 2.000]"]
    assert "on the test split" in text
    rows, _ = cells(accepted_table([{**RESULTS["accepted"][0], "test": {"gain": None, "local_gain": None}}], "test"))
    assert rows["3"] == ["speaker", "demos", "+0.062"]


def test_proposals_that_came_to_nothing_stand_in_a_table_by_component_and_reason():
    _, text = cells(dropped_table({"speaker": {"repeated": 3, "same outputs": 17}, "router": {"in use": 1}}))
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert lines == [["speaker", "same outputs", "17"], ["speaker", "repeated", "3"], ["router", "in use", "1"]]
    assert "Proposals that came to nothing" in text
    for dropped in ({"dropped": {}}, {"dropped": {"speaker": {"repeated": 3}}}):
        titles = [str(table.title) for table in tables({**RESULTS, **dropped})]
        assert ("Proposals that came to nothing" in titles) == bool(dropped["dropped"])


def test_the_ledger_table_adds_up_roles():
    rows, _ = cells(ledger_table(RESULTS["ledger"]))
    assert rows["collect"] == ["1,234", "8", "15", "4", "0.7500"]


def test_a_change_of_a_component_that_there_is_not_is_damage():
    default = Configuration({"a": Prompt("x")})
    with pytest.raises(FolderError, match="it changes 'b', and the components are a"):
        after_each(default, [{"component": "b", "value": value_to_json(Prompt("y"))}])
