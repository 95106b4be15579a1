"""The optimisers of prompts, each with a proposer whose answers are scripted and gains that are known."""

from __future__ import annotations

import collections
import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import example, tool

from optimas_jax.core.schema import ConfigError, from_dict
from optimas_jax.core.types import Call, Example, Outcome, Trace
from optimas_jax.core.values import Demo, Prompt, PromptSpace
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.search.optimisers import copro, demos, feedback, mipro, opro, random_search, reflect
from optimas_jax.search.optimisers.demos import labelled_demos
from optimas_jax.search.optimisers.instructions import propose_instructions
from optimas_jax.search.optimisers.registry import PROPOSERS, proposer_names
from optimas_jax.search.optimisers.task import Effort, PromptTask, ScoredDemo
from optimas_jax.search.optimisers.templates import ScoredInstruction, shorten

CURRENT = Prompt("Say it.", ())
COMPONENT = dataclasses.replace(tool("speaker", ("q",), str), description="Says something.", outputs=("said",))


def one_run(name, score):
    step = Call("speaker", {"q": f"question {name}"}, {"said": f"output {name}"})
    where = Example(name, {"q": f"question {name}"}, {"said": f"gold {name}"}, "train")
    return where, Trace(name, 0, (step,), {"said": f"final {name}"}, Outcome.OK, score, feedback="Be loud.")


class Scripted:
    """A task whose proposer answers by ``answer(text, seed)``, and whose prompts gain ``gain(prompt)``."""

    def __init__(self, answer, gain=lambda prompt: 0.0, style="chat", **changes):
        self.received, self.scored, self.dropped = [], [], []
        effort = {"instructions": 3, "depth": 2, "rewrites": 5, "demo_sets": 2, "demo_size": 2, "trials": 9}
        fields = {
            "component": COMPONENT,
            "space": PromptSpace(max_demos=3, max_instruction_chars=60),
            "current": CURRENT,
            "runs": [one_run(f"e{rank}", rank / 10) for rank in range(8)],
            "pool": [
                ScoredDemo(Demo({"q": f"p{rank}"}, {"said": "x"}), 1.0 - rank / 10, f"p{rank}") for rank in range(5)
            ],
            "labelled": [Demo({"q": f"l{rank}"}, {"said": "y"}) for rank in range(4)],
            "history": (),
            "current_score": 0.0,
            "scale": "mean reward",
            "proposer": LanguageModel("m", max_tokens=48, style=style),
            "seed": 0,
        }
        self.task = PromptTask(
            **{**fields, **{name: value for name, value in changes.items() if name not in effort}},
            effort=Effort(**{**effort, **{name: value for name, value in changes.items() if name in effort}}),
            rng=random.Random(0),
            ask=self.ask,
            gains=self.gains,
            dropped=lambda reason, text: self.dropped.append((reason, text)),
        )
        self.answer, self.gain = answer, gain

    def ask(self, requests):
        self.received += requests
        return [self.answer(request.messages[0].content, request.seed) for request in requests]

    def gains(self, prompts):
        self.scored += prompts
        return [self.gain(prompt) for prompt in prompts]


def numbered(text, seed):
    return f"<instruction>Way {seed}.</instruction>"


NAMES = list(PROPOSERS)


@pytest.mark.parametrize("style", ["chat", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_allowed_new_and_the_same_again(name, style):
    first, again = Scripted(numbered, style=style), Scripted(numbered, style=style)
    proposals = PROPOSERS[name](first.task)
    assert proposals and proposals == PROPOSERS[name](again.task)
    prompts = [prompt for _, prompt in proposals]
    assert CURRENT not in prompts and all(prompts.count(prompt) == 1 for prompt in prompts)
    for prompt in prompts:
        first.task.space.check(prompt)
    assert {message.role for request in first.received for message in request.messages} <= {
        "user" if style == "chat" else "text"
    }
    assert {request.role for request in first.received} <= {"proposer"}
    assert all("Says something." in request.messages[0].content for request in first.received)


NONSENSE = [
    "",
    "   ",
    "<instruction></instruction>",
    '{"instruction": ',
    "<instruction> and </instruction>",
    "[your new instruction here]",
    "<instruction><instruction><instruction>",
    "...",
    "x" * 5000,
    "Say it.",
    "\x00\ud7ff",
    "</instruction>",
]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(NONSENSE) | st.text(max_size=80), min_size=1, max_size=6), st.sampled_from(NAMES))
def test_whatever_a_model_answers_nothing_breaks(answers, name):
    script = Scripted(lambda text, seed: answers[seed % len(answers)])
    for _, prompt in PROPOSERS[name](script.task):
        script.task.space.check(prompt)
        assert prompt != CURRENT


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_learn_from_breaks_nothing(name):
    for changes in ({"runs": [], "pool": [], "labelled": []}, {"instructions": 0, "demo_sets": 0, "rewrites": 0}):
        assert isinstance(PROPOSERS[name](Scripted(numbered, **changes).task), list)


def test_what_is_no_instruction_is_dropped_with_its_reason():
    dropped = []
    space = PromptSpace(max_instruction_chars=20)
    answers = ["", "y" * 21, "<instruction> and </instruction>", "[insert instruction]", "Say it.", "New.", "New."]
    prompts = propose_instructions(answers, CURRENT, space, lambda reason, text: dropped.append(reason))
    assert prompts == [Prompt("New.")]
    assert dropped == [
        "empty", "longer than 20 characters", "placeholder", "placeholder", "repeated", "repeated"
    ]  # fmt: skip
    assert propose_instructions(["Read the instruction [1] first."], CURRENT, PromptSpace()) != []


def test_opro_shows_the_worst_runs_and_what_was_tried():
    script = Scripted(numbered, history=[ScoredInstruction("Older.", -0.25)])
    assert [kind for kind, _ in opro.propose(script.task)] == ["opro"] * 3
    text = script.received[0].messages[0].content
    assert "Score -0.25: Older." in text and text.index("question e0") < text.index("question e1")
    assert "question e3" not in text and not script.scored


def test_copro_climbs_from_round_to_round():
    def longer(text, seed):
        shown = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("Gain ")]
        return f"<instruction>{shown[-1]}{seed % 10}</instruction>"

    script = Scripted(longer, gain=lambda prompt: float(len(prompt.instruction)), instructions=4, depth=3)
    prompts = [prompt for _, prompt in copro.propose(script.task)]
    assert prompts == script.scored  # each once
    assert max(len(prompt.instruction) for prompt in prompts) == len(CURRENT.instruction) + 3
    assert len(script.received) == 12
    last = script.received[-1].messages[0].content
    shown = [float(line.split()[1][:-1]) for line in last.splitlines() if line.startswith("Gain ")]
    assert shown == sorted(shown) and 2 <= len(shown) <= 6


def test_reflection_reads_failures_with_what_was_expected():
    script = Scripted(numbered)
    assert [kind for kind, _ in reflect.propose(script.task)] == ["reflect"] * 5
    texts = [request.messages[0].content for request in script.received]
    assert len(set(texts)) > 1  # each reads other failures
    for text in texts:
        shown = [number for number in range(8) if f"question e{number}" in text]
        assert len(shown) == 3 and max(shown) < 4  # of the worse half
        for number in shown:
            assert all(f"{word} e{number}" in text for word in ("output", "final", "gold"))
        assert "Say it." in text
    assert not script.scored  # screening is the ranking's


def test_proposers_are_told_what_was_refused_and_why():
    tried = [
        ScoredInstruction("Sing it.", 0.9, "refused: gain -0.25 on 8 other examples"),
        ScoredInstruction("Hum.", 0.1),
    ]
    for style in ("chat", "text"):
        script = Scripted(numbered, style=style, history=tried)
        opro.propose(script.task)
        reflect.propose(script.task)
        for request in script.received:
            text = request.messages[0].content
            assert "Sing it." in text and "refused: gain -0.25 on 8 other examples" in text
        assert (
            "Score 0.90 (refused: gain -0.25 on 8 other examples): Sing it." in script.received[0].messages[0].content
        )
        assert "Hum." not in script.received[-1].messages[0].content


def told(*texts):
    """Runs with feedback."""
    runs = [one_run(f"e{rank}", rank / 10) for rank in range(len(texts))]
    return [(one, dataclasses.replace(trace, feedback=text)) for (one, trace), text in zip(runs, texts, strict=True)]


@pytest.mark.parametrize(
    ("texts", "added"),
    [
        (["Expected a.", "Expected b.", ""], []),  # of one run each
        (["Be brief. Expected a.", "Expected b. Be brief.", ""], ["Be brief."]),
        (["Be brief.\nNo dots, such as 1.5 ones", "No dots, such as 1.5 ones", "Be brief.", "Be brief."],
         ["Be brief.", "No dots, such as 1.5 ones", "Be brief.\nNo dots, such as 1.5 ones"]),
        (["Say it.", "Say it."], []),  # the instruction says so
        (["x" * 70, "x" * 70], []),  # too long for the space
        (["Twice. Twice.", "Once."], []),
    ],
)  # fmt: skip
def test_what_a_metric_says_of_several_runs_is_added_to_the_instruction(texts, added):
    script = Scripted(numbered, runs=told(*texts))
    proposals = feedback.propose(script.task)
    assert proposals == [("feedback", Prompt(f"Say it.\n{text}", ())) for text in added]
    assert not script.received  # it asks nobody


def test_mipro_searches_pairs_of_instructions_and_demonstrations():
    def gain(prompt):
        return float(prompt.instruction.startswith("Way")) + float(any(d.inputs["q"][0] == "l" for d in prompt.demos))

    script = Scripted(numbered, gain=gain, trials=12)
    prompts = [prompt for _, prompt in mipro.propose(script.task)]
    assert max(map(gain, prompts)) == 2.0
    assert len(script.scored) <= 12 and set(map(str, prompts)) == set(map(str, script.scored)) - {str(CURRENT)}
    summary, *proposals = script.received
    assert summary.temperature == 0.0 and "question e0" in summary.messages[0].content
    assert all(summary_answer in request.messages[0].content for request in proposals
               for summary_answer in [numbered("", summary.seed)])  # fmt: skip
    sets = mipro.demo_candidates(script.task)
    assert () in sets and any(demo in script.task.labelled for one in sets for demo in one)
    assert all(len(one) <= 2 for one in sets) and all(sets.count(one) == 1 for one in sets)


def test_every_three_sets_of_good_runs_come_with_one_of_labelled_examples():
    def kinds(**changes):
        return collections.Counter(kind for kind, _ in demos.propose(Scripted(numbered, **changes).task))

    assert kinds(demo_sets=3) == {"demos": 3, "labelled": 1}
    assert kinds(demo_sets=4) == {"demos": 4, "labelled": 2}
    assert kinds(demo_sets=3, labelled=[]) == {"demos": 3}
    assert kinds(demo_sets=3, pool=[]) == {"labelled": 1}
    assert kinds(demo_sets=0) == kinds(demo_size=0) == {}
    task = Scripted(numbered, demo_sets=4).task
    one, two = (prompt for kind, prompt in demos.propose(task) if kind == "labelled")
    assert one.instruction == CURRENT.instruction and len(set(map(str, one.demos))) == 2
    assert set(map(str, one.demos + two.demos)) <= set(map(str, task.labelled)) and one != two


def test_random_search_sees_no_score():
    script = Scripted(numbered)
    random_pairs = random_search.propose(script.task)
    assert not script.scored and {kind for kind, _ in random_pairs} == {"random"}
    assert all(
        "Score" not in request.messages[0].content and "question" not in request.messages[0].content
        for request in script.received
    )
    assert (
        len({prompt.instruction for _, prompt in random_pairs}) > 1
        or len({prompt.demos for _, prompt in random_pairs}) > 1
    )


def test_labelled_demonstrations_need_gold_for_every_output():
    runs = [one_run("a", 0.0), (example("b"), one_run("b", 1.0)[1])]
    [demo] = labelled_demos(COMPONENT, runs)
    assert demo == Demo({"q": "question a"}, {"said": "gold a"}) and demo.example_id == runs[0][0].id
    assert labelled_demos(dataclasses.replace(COMPONENT, outputs=("said", "more")), runs) == []
    assert labelled_demos(COMPONENT, runs, max_chars=10) == []


def test_long_fields_lose_their_middle():
    assert shorten("abc", 10) == "abc"
    assert shorten("a" * 50 + "b" * 50, 25) == "a" * 10 + " ... " + "b" * 10


# Names in the configuration


def test_names_are_read_in_their_order():
    assert proposer_names("opro, demos") == ("opro", "demos")


@pytest.mark.parametrize("text", ["opro,gepa", ",", "opro,opro"])
def test_a_wrong_name_is_refused_where_it_enters(text):
    with pytest.raises(ConfigError, match="known: demos, opro, copro, mipro, reflect, feedback, random, llmselector"):
        from_dict(OptimizeConfig, {"proposers": text})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"trials": 0}, "trials is 0, expected at least 1"),
        ({"depth": -1}, "depth is -1, expected at least 0"),
        ({"score": "global", "best_of": 2}, "local rewards"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        from_dict(OptimizeConfig, fields)
