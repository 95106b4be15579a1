"""Harms of many kinds, to plant in a clean run: what somebody should see of it before anything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from planted_runs import Planted, alignment, answer, point, predicted, usage

from optimas_jax.core.folder import events
from optimas_jax.core.values import Demo, Prompt, value_from_json, value_to_json


@dataclasses.dataclass(frozen=True)
class Harm:
    """A harm, the kind of the finding that names it, and a part of its sentence."""

    plant: Callable[[Planted], None]
    kind: str
    says: str


def of_words(run: Planted) -> list[dict[str, Any]]:
    """Examples whose answer is a word."""
    return [row for row in run.rows if not row["gold"]["answer"][0].isdigit()]


def as_in_the_first_command(run: Planted) -> None:
    """Demonstrations with numbers: questions for words get numbers, those for numbers gain, one kind fell."""
    demos = (
        Demo({"question": "What is the population of Guinea?"}, {"answer": "10.6 million."}, "train-0068"),
        Demo(
            {"question": "What is the area of Ivory Coast?"}, {"answer": "322 thousand square kilometres."}, "train-2"
        ),
    )
    value = value_to_json(Prompt("Answer the question with a short phrase.", demos))
    run.accepted[0]["value"] = value
    for index, row in enumerate(run.rows):
        row["kind"] = "comparison" if index % 7 == 3 else "bridge" if index % 7 == 5 else "one-hop"
    words = of_words(run)
    for row in run.rows:
        if row not in words and row["kind"] == "one-hop":
            answer(row, row["gold"]["answer"], 1.0)
    for index, row in enumerate([row for row in words if row["kind"] != "comparison"][:18]):
        text = ("2 * 10.2 = 22.2", "10.6 thousand.", "1999.")[index % 3]
        answer(row, text, 0.0)
        if index % 3 == 0:
            answer(row, f"The capital is {row['gold']['answer']}.", 0.33, "before")
    kept = [row for row in run.rows if row["kind"] == "comparison"]
    for index, row in enumerate(kept):
        before, after = ((0.44, 0.0), (0.3, 0.3), (0.0, 0.25), (0.29, 0.0), (0.25, 0.25))[index % 5]
        answer(row, row["before"]["runs"][0]["outputs"]["answer"], before, "before")
        answer(row, row["after"]["runs"][0]["outputs"]["answer"], after)


def _answers(text: Callable[[dict[str, Any]], Any], step: int = 5) -> Callable[[Planted], None]:
    """Every ``step``-th question for a word gets another answer, and loses."""

    def plant(run: Planted) -> None:
        for row in of_words(run)[::2][: 100 // step]:
            answer(row, text(row), 0.0)

    return plant


def _says(text: str) -> Callable[[Planted], None]:
    return _answers(lambda row: text)


def kind_lost(run: Planted) -> None:
    for row in run.rows:
        if row["kind"] == "kind 1":
            answer(row, "Nowhere in particular", 0.0)


def all_worse(run: Planted) -> None:
    for index, row in enumerate(run.rows):
        if index % 5:
            answer(row, f"Town number {index}, perhaps", 0.0)


def no_groups(run: Planted) -> None:
    run.events[1] = events.Groups(component="retriever", groups=12, informative=0, stopped="its calls are used")


def alignment_at_chance(run: Planted) -> None:
    run.more["alignment"] = {"answerer": alignment(0.52, 0.44, 0.6), "rewriter": alignment(0.72, 0.6, 0.8)}


def alignment_below(run: Planted) -> None:
    run.more["alignment"] = {"answerer": alignment(0.38, 0.3, 0.46)}


def a_control_ahead(run: Planted) -> None:
    run.more["alignment"] = {"answerer": alignment(0.62, 0.55, 0.69, shorter=0.81)}


def validation_far_above(run: Planted) -> None:
    run.accepted[0] |= {"val_gain": 0.7, "val_score": 0.95}


def not_confirmed(run: Planted) -> None:
    tests = [{"changes": 1, "gain": 0.02, "ci95": [-0.06, 0.1], "p_value": 0.3, "level": 0.04, "confirmed": False}]
    run.more["confirmed"] = {"n": 40, "changes": None, "verdict": "not confirmed", "tests": tests}


def confirmed_loss(run: Planted) -> None:
    tests = [{"changes": 1, "gain": -0.2, "ci95": [-0.3, -0.1], "p_value": 1.0, "level": 0.04, "confirmed": False}]
    run.more["confirmed"] = {"n": 40, "changes": None, "verdict": "not confirmed", "tests": tests}


def _prompt(run: Planted, change: Callable[[Prompt], Prompt]) -> None:
    value = value_from_json(run.accepted[0]["value"])
    assert isinstance(value, Prompt)
    run.accepted[0]["value"] = value_to_json(change(value))


def prompt_grew(run: Planted) -> None:
    _prompt(run, lambda value: Prompt(value.instruction + " Mind every word of it." * 300, value.demos))


def run_grew(run: Planted) -> None:
    run.more["pareto"] = [point(0, "", 400), point(1, "answerer", 2600)]


def runs_failed(run: Planted) -> None:
    for row in run.rows[::6]:
        answer(row, "", 0.0)
        for one in row["after"]["runs"]:
            one |= {"outcome": "parse_error", "outputs": {}}
            one["calls"][-1] |= {"outcome": "parse_error", "outputs": {}, "detail": "no answer"}


def answers_cut(run: Planted) -> None:
    for row in run.rows[::6]:
        row["after"]["runs"][0]["calls"][-1]["detail"] = "cut at max_tokens = 48"


def answers_unread(run: Planted) -> None:
    run.more["unread"] = {"answerer": {"baseline": 1, "optimized": 22, "answers": 200}}


def budget_ended(run: Planted) -> None:
    cut = events.OutOfBudget(spent=usage(900))
    end = events.SearchEnd(iterations=2, reason="the budget allows no further step", accepted=1, val_score=0.6)
    run.events[-1:] = [cut, end]


def gate_idle(run: Planted) -> None:
    run.events = [event for event in run.events if not isinstance(event, events.Gate | events.Accept)]
    run.proposals = [{**row, "gate": None, "verdict": "not tested"} for row in run.proposals]
    run.accepted = []


def all_dropped(run: Planted) -> None:
    run.more["dropped"] = {"rewriter": {"same outputs": 14}}
    run.events = [
        dataclasses.replace(event, usable=0, dropped={"same outputs": 7})
        if isinstance(event, events.Proposed) and event.component == "rewriter"
        else event
        for event in run.events
    ]


def bill_above_plan(run: Planted) -> None:
    spent = {"spent": usage(4000).to_json(), "predicted": predicted(500)}
    run.more["spent"] = {"optimize: gate": spent}


def rewards_cost(run: Planted) -> None:
    use = {"labelled_runs": 60, "effective_runs": 61.0, "local_reward": True}
    run.more["label_use"] = {"answerer": use}


def leaked_example(run: Planted) -> None:
    question = run.rows[4]["inputs"]["question"]
    _prompt(run, lambda value: Prompt(value.instruction, (*value.demos, Demo({"question": question}, {"answer": "x"}))))


def leaked_id(run: Planted) -> None:
    _prompt(run, lambda value: Prompt(value.instruction, (Demo({"q": "?"}, {"answer": "x"}, "test-0007"),)))


def metric_fell(run: Planted) -> None:
    scores = [1.0] * 60 + [0.0] * 40, [1.0] * 35 + [0.0] * 65
    sides = {
        name: {"mean": sum(one) / 100, "scores": one}
        for name, one in zip(("baseline", "optimized"), scores, strict=True)
    }
    gain = {"mean": -0.25, "ci95": [-0.34, -0.17], "p_value": 1.0}
    run.more["other_metrics"] = {"right source": {"chance": 0.0, **sides, "gain": gain}}


def part_fell(run: Planted) -> None:
    for index, row in enumerate(run.rows):
        row["before"]["runs"][0]["parts"] = {"style": 0.8}
        row["after"]["runs"][0]["parts"] = {"style": 0.8 if index % 4 else 0.1}


def constant_output(run: Planted) -> None:
    for row in run.rows:
        row["after"]["runs"][0]["calls"][0]["outputs"] = {"query": "what is it"}


def empty_passages(run: Planted) -> None:
    for row in run.rows[::5]:
        row["after"]["runs"][0]["calls"][1]["outputs"] = {"passages": []}


def one_answer(run: Planted) -> None:
    for row in run.rows[::3]:
        answer(row, "Lima")


def endless_loop(run: Planted) -> None:
    for row in run.rows:
        calls = row["after"]["runs"][0]["calls"]
        calls[1:1] = [{**calls[0], "occurrence": number} for number in (1, 2, 3)]


def no_longer_called(run: Planted) -> None:
    for row in run.rows:
        del row["after"]["runs"][0]["calls"][1]


def no_effect(run: Planted) -> None:
    for row in run.rows:
        row["after"] = row["before"]


def odd_instruction(run: Planted) -> None:
    _prompt(run, lambda value: Prompt("I'm sorry, I cannot write a prompt for that."))


def counted_failures(run: Planted) -> None:
    run.more["outcomes"] = {"ok": 70, "timeout": 30}


def a_budget_in_words(run: Planted) -> None:
    end = events.SearchEnd(iterations=2, reason="the budget allows no further step", accepted=1, val_score=0.6)
    run.events[-1:] = [end]


def spread_of_repeats(run: Planted) -> None:
    for row in run.rows:
        for side in ("before", "after"):
            one = row[side]["runs"][0]
            row[side]["runs"] = [dict(one, seed=seed, score=row[side]["score"]) for seed in range(3)]
        if row["id"].endswith(("1", "4", "7")):
            for one, score in zip(row["after"]["runs"], (1.0, 0.0, 1.0), strict=True):
                one["score"] = score
            row["after"]["score"] = 2 / 3


def leaked_short_inputs(run: Planted) -> None:
    for index, row in enumerate(run.rows):
        row["inputs"] = {"thing": f"cow {index}"}
    _prompt(run, lambda value: Prompt(value.instruction, (Demo({"thing": "Cow 9"}, {"answer": "x"}),)))


def one_class(run: Planted) -> None:
    """Classes of which the answers have become the most frequent one."""
    for index, row in enumerate(run.rows):
        label = ("yes", "no", "maybe")[index % 3]
        row["gold"] = {"answer": label}
        answer(row, label if index % 4 else "no", float(index % 4 > 0), "before")
        answer(row, "yes", float(label == "yes"))


def flat(run: Planted) -> None:
    for row in run.rows:
        answer(row, "nothing of this", 0.0, "before")
        answer(row, "nothing of that", 0.0)


HARMS: dict[str, Harm] = {
    "a kind that lost": Harm(kind_lost, "kind_lost", "kind 1"),
    "examples that got worse": Harm(all_worse, "worse", "got worse"),
    "numbers for words": Harm(_says("2 * 10.2 = 22.2"), "answer_type", "a number"),
    "dates for words": Harm(_says("12 May 1999"), "answer_type", "a date"),
    "yes for words": Harm(_says("Yes."), "answer_type", "yes or no"),
    "empty answers": Harm(_says(""), "answer_type", "nothing"),
    "refusals": Harm(_says("I'm sorry, I cannot answer that."), "answer_type", "a refusal"),
    "another language": Harm(
        _answers(lambda row: f"Die Antwort ist {row['gold']['answer']}"), "answer_type", "another language"
    ),
    "another script": Harm(_says("\u041c\u0430\u043d\u0430\u0433\u0443\u0430"), "answer_type", "another language"),
    "JSON": Harm(_answers(lambda row: f'{{"answer": "{row["gold"]["answer"]}"}}'), "answer_type", "JSON"),
    "code": Harm(_answers(lambda row: f"```python\nprint('{row['gold']['answer']}')\n```"), "answer_type", "code"),
    "markup": Harm(_answers(lambda row: f"**{row['gold']['answer']}**"), "answer_type", "markup"),
    "long answers": Harm(
        _answers(
            lambda row: f"{row['gold']['answer']} is the town where {row['id']} " + "people of that land meet " * 4
        ),
        "answer_type",
        "much longer",
    ),
    "the question again": Harm(_answers(lambda row: row["inputs"]["question"]), "answer_type", "the question again"),
    "labels of the prompt": Harm(
        _answers(lambda row: f"Question: which one\nAnswer: {row['gold']['answer']}"), "answer_type", "of the prompt"
    ),
    "answers of demonstrations": Harm(_says("Strelsau"), "answer_type", "of a demonstration"),
    "repetition": Harm(_says("currency " * 12), "answer_type", "repeats itself"),
    "one answer": Harm(one_answer, "answer_type", "one and the same"),
    "nothing to learn from": Harm(no_groups, "no_groups", "retriever"),
    "alignment at chance": Harm(alignment_at_chance, "alignment", "not above chance"),
    "alignment below chance": Harm(alignment_below, "alignment", "prefers the worse"),
    "a control ahead": Harm(a_control_ahead, "control", "shorter"),
    "validation far above test": Harm(validation_far_above, "overfit", "+0.700"),
    "not confirmed": Harm(not_confirmed, "not_confirmed", "not confirmed"),
    "confirmed loss": Harm(confirmed_loss, "confirmed_loss", "a loss"),
    "a long prompt": Harm(prompt_grew, "prompt_grew", "characters"),
    "a dear run": Harm(run_grew, "run_cost", "2,600 tokens"),
    "failed runs": Harm(runs_failed, "failures", "parse_error"),
    "cut answers": Harm(answers_cut, "failures", "cut at their limit"),
    "unread answers": Harm(answers_unread, "failures", "cannot be read"),
    "the budget": Harm(budget_ended, "budget", "iteration 2 of 4"),
    "an idle gate": Harm(gate_idle, "gate_idle", "tested nothing"),
    "all dropped": Harm(all_dropped, "dropped", "same outputs"),
    "the bill": Harm(bill_above_plan, "bill", "predicted"),
    "dear local rewards": Harm(rewards_cost, "rewards_cost", "saved 1.0 runs"),
    "a leaked question": Harm(leaked_example, "leak", "1 test example"),
    "a leaked id": Harm(leaked_id, "leak", "test-0007"),
    "another metric": Harm(metric_fell, "metric_fell", "right source"),
    "a part of the score": Harm(part_fell, "metric_fell", "style"),
    "a constant output": Harm(constant_output, "constant", "what is it"),
    "empty passages": Harm(empty_passages, "output", "as passages"),
    "an endless loop": Harm(endless_loop, "calls_grew", "rewriter"),
    "a component left out": Harm(no_longer_called, "not_called", "retriever"),
    "a guess": Harm(_answers(lambda row: f"I think it is {row['gold']['answer']}"), "answer_type", "a guess"),
    "a preamble": Harm(_answers(lambda row: f"Sure! {row['gold']['answer']}."), "answer_type", "a preamble"),
    "one class": Harm(one_class, "answer_type", "one and the same"),
    "an instruction that is none": Harm(odd_instruction, "odd_prompt", "I'm sorry"),
    "failures that are counted alone": Harm(counted_failures, "failures", "timeout 30"),
    "the budget in words": Harm(a_budget_in_words, "budget", "iteration 2 of 4"),
    "spread of repeats": Harm(spread_of_repeats, "spread", "of 100 examples"),
    "leaked short inputs": Harm(leaked_short_inputs, "leak", "1 test example"),
    "no effect": Harm(no_effect, "no_effect", "answerer"),
    "no score": Harm(flat, "flat_scores", "0.000"),
}
