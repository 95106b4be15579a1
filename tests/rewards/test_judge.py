"""The judge in place of a local reward: a step by hand, malformed answers, and how it is measured."""

from __future__ import annotations

import json

import pytest
from fakes import ScriptedCompleter
from hypothesis import given
from hypothesis import strategies as st
from scripted import answer, scripted_config

from optimas_jax.core.types import Outcome
from optimas_jax.llm.base import Completion
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.stages import open_run, run_stage
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.alignment import pair_accuracy
from optimas_jax.rewards.data import load_groups
from optimas_jax.rewards.judge import JudgedExample, judge_examples, judge_scores, parse_scores, render_judge
from optimas_jax.rewards.pairs import count_pairs, is_informative
from optimas_jax.rewards.split import part_of
from optimas_jax.rewards.text import TextGroup, text_group

JUDGE = LanguageModel("judge", max_tokens=64)
GROUPS = [
    TextGroup("a", "Task: a\n", "Q: 1\n", ("Said: x", "Said: yy", "Said: zzz")),
    TextGroup("b", "Task: b\n", "", ("1", "2")),
]


def outputs_of(request):
    """The outputs in a request, in the order of their numbers."""
    lines = request.messages[0].content.splitlines()
    return [lines[index + 1] for index, line in enumerate(lines) if line.startswith("<output ")]


def judged(answer, groups=GROUPS, examples=None, seed=0):
    completer = ScriptedCompleter(answer)
    judgement = judge_scores(completer, JUDGE, groups, examples or {}, seed=seed, concurrency=2)
    return judgement, completer.requests


def test_scores_go_back_to_the_candidates_whatever_the_order_they_were_shown_in():
    orders = set()
    for seed in range(12):
        judgement, requests = judged(lambda r: json.dumps([len(text) for text in outputs_of(r)]), seed=seed)
        assert judgement.scores == [[7.0, 8.0, 9.0], [1.0, 1.0]] and judgement.malformed == 0
        orders.add(tuple(outputs_of(requests[0])))
    assert len(orders) > 1
    assert len(requests) == 2 and {request.role for request in requests} == {"judge"}


def test_a_malformed_answer_is_counted_and_a_tie():
    judgement, _ = judged(lambda r: "[0.5, 1]" if "Task: b" in r.messages[0].content else "The best is 1.")
    assert judgement.scores[0] == [0.0, 0.0, 0.0] and sorted(judgement.scores[1]) == [0.5, 1.0]
    assert judgement.malformed == 1
    assert count_pairs(judgement.scores[0], [0.0, 0.5, 1.0], 0.0) == (1.5, 3)  # ties count half
    refused, _ = judged(lambda r: Completion("[1, 2]", Outcome.REFUSED, 1, 1))
    assert refused.malformed == 2 and refused.scores == [[0.0] * 3, [0.0] * 2]


@pytest.mark.parametrize(
    "answer",
    ["", "0.5", "[0.5]", "[1, 2, 3]", "[1, 2] and so on", "```[1, 2]```", '["1", 2]', "[true, 1]", "[1, NaN]",
     "[1, Infinity]", "[1, null]", '{"scores": [1, 2]}', f"[1, {10**400}]", "[" * 100_000],
)  # fmt: skip
def test_only_a_list_of_as_many_finite_numbers_is_an_answer(answer):
    assert parse_scores(answer, 2) is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_a_list_of_numbers_is_read_as_it_is(numbers):
    assert parse_scores(f" {json.dumps(numbers)}\n", len(numbers)) == tuple(numbers)


@given(st.text(max_size=30), st.integers(0, 3))
def test_whatever_is_answered_nothing_breaks(text, count):
    assert parse_scores(text, count) is None or len(parse_scores(text, count) or ()) == count


def test_examples_are_at_most_twenty_of_a_component_and_the_same_again():
    groups = [TextGroup("a", "", f"Q: {number}\n", ("x", "y")) for number in range(15)]
    rewards = [(float(number), 0.5) for number in range(15)]
    examples = judge_examples([*groups, GROUPS[1]], [*rewards, (1.0, 0.0)], seed=0)
    assert len(examples["a"]) == 20 and len(set(examples["a"])) == 20 and len(examples["b"]) == 2
    assert all(one.reward == (0.5 if one.candidate == "y" else float(one.prefix[3:])) for one in examples["a"])
    assert examples == judge_examples([*groups, GROUPS[1]], [*rewards, (1.0, 0.0)], seed=0)
    assert examples["a"] != judge_examples(groups, rewards, seed=1)["a"]


@pytest.mark.parametrize("style", ["chat", "text"])
def test_the_judge_sees_examples_with_rewards_then_the_outputs(style):
    examples = [JudgedExample("Q: 1\n", "Said: x", 0.25)]
    [(role, text)] = render_judge("Q: 2\n", ["Said: y", "Said: z"], examples, style)
    assert role == ("user" if style == "chat" else "text")
    parts = ["Q: 1\nSaid: x\nReward: 0.250", "Q: 2", "Said: y", "Said: z", "list of 2 numbers"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    [(_, without)] = render_judge("Q: 2\n", ["Said: y"], [], style)
    assert "<example>" not in without


def test_a_judge_is_measured_on_the_groups_of_a_run_as_a_local_reward_is(tmp_path):
    """The scripted system answers rightly where it answers shortly, and so does a judge that prefers short outputs."""
    config = scripted_config()
    with open_run(config, tmp_path, ConsoleProgress(quiet=True), ScriptedCompleter(answer)) as run:
        run_stage(run, "collect")
        groups = load_groups(tmp_path / "groups" / "offline")
        system, threshold = run.host.system, config.reward.loss.threshold
    groups = [g for g in groups if g.component == "answer_generator" and is_informative(g.rewards, threshold)]
    texts = [text_group(system, g.component, g.inputs, [c.outputs for c in g.candidates]) for g in groups]
    rewards = [g.rewards for g in groups]
    shown = [part_of(g.example_id, config.offline.shares) == "train" for g in groups]
    known, report = ([index for index, train in enumerate(shown) if train is part] for part in (True, False))
    assert known and report
    examples = judge_examples([texts[i] for i in known], [rewards[i] for i in known], seed=0)
    judgement, requests = judged(
        lambda r: json.dumps([-len(text) for text in outputs_of(r)]), [texts[i] for i in report], examples
    )
    accuracy, pairs = pair_accuracy(judgement.scores, [rewards[i] for i in report], threshold)
    assert judgement.malformed == 0 and pairs > 0 and accuracy == 1.0
    assert all("Reward: 1.000" in request.messages[0].content for request in requests)
