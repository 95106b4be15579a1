import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import example, group, tool

from optimas_jax.core.types import Call, Outcome, Trace
from optimas_jax.core.values import (
    Choice,
    Demo,
    Grid,
    Hyperparameters,
    Models,
    Prompt,
    PromptSpace,
    other_values,
    shows,
)
from optimas_jax.llm.component import LanguageModel
from optimas_jax.search.optimisers.demos import demo_pool, propose_demos
from optimas_jax.search.optimisers.instructions import parse_instruction, propose_instructions
from optimas_jax.search.optimisers.opro import opro_requests
from optimas_jax.search.optimisers.task import Effort, PromptTask, ScoredDemo
from optimas_jax.search.optimisers.templates import ScoredInstruction

CURRENT = Prompt("current")


def said(text):
    return {"said": text}


def scored(name, reward, text="x"):
    return ScoredDemo(Demo({"q": name}, said(text)), reward, name)


def propose(pool, current=CURRENT, size=2, count=3, seed=0):
    return propose_demos(pool, current, size=size, count=count, rng=random.Random(seed))


# Demonstrations: the pool

BAD = group((said("bad"), 0.0), (said("worse"), 0.0), name="bad")


def test_the_pool_holds_the_best_candidate_of_every_group_best_first():
    pool = demo_pool(
        [
            group((said("a"), 0.6), (said("b"), 0.5), name="e2"),
            group((said("c"), 0.2), (said("d"), 0.9), name="e3"),
            group((said("e"), 0.6), name="e1"),
        ]
    )
    assert pool == [scored("e3", 0.9, "d"), scored("e1", 0.6, "e"), scored("e2", 0.6, "a")]  # all above 2.8 / 5


def test_of_equal_rewards_the_latest_comes_first_and_none_comes_twice():
    old, new = group((said("a"), 1.0), name="e1"), group((said("b"), 1.0), name="e2")
    assert demo_pool([old, new, old, BAD]) == [scored("e1", 1.0, "a"), scored("e2", 1.0, "b")]
    assert [one.example_id for one in demo_pool([old, new, BAD])] == ["e2", "e1"]


def test_among_equally_rewarded_candidates_the_shortest_is_taken():
    [one] = demo_pool([group((said("long"), 1.0), (said("s"), 1.0), (said("mid"), 1.0)), BAD])
    assert one.demo.outputs == said("s")


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (100.0, 0.0), (1.0, -5.0), (1e-6, 3.0)])
def test_what_is_good_is_said_by_the_mean_whatever_the_metrics_range(scale, shift):
    rewards = {"e1": 0.0, "e2": 0.3, "e3": 0.4, "e4": 0.9}  # mean 0.4
    groups = [group((said("x"), scale * reward + shift), name=name) for name, reward in rewards.items()]
    pool = demo_pool(groups)
    assert [one.example_id for one in pool] == ["e4"]
    wide = [scored(name, scale * reward + shift) for name, reward in rewards.items()]
    same = [scored(name, reward) for name, reward in rewards.items()]
    assert [str(p) for p in propose(wide, count=6)] == [str(p) for p in propose(same, count=6)]


def test_where_all_is_equally_good_or_bad_nothing_is_a_demonstration():
    assert demo_pool([group((said("x"), 0.0), name="e1"), BAD]) == demo_pool([]) == []
    assert demo_pool([group((said("x"), 0.1), name=f"e{i}") for i in range(3)]) == []


def test_failures_are_never_demonstrations():
    assert demo_pool([group(({}, 1.0)), BAD]) == []
    [one] = demo_pool([group(({}, 0.0), (said("x"), 0.1)), BAD])
    assert one.demo.outputs == said("x")


def test_long_demonstrations_are_left_out():
    groups = [group((said("bb"), 1.0), inputs={"q": "a"}), BAD]  # {'q': 'a'} and {'said': 'bb'}: 10 + 14 characters
    assert len(demo_pool(groups, max_chars=24)) == 1
    assert demo_pool(groups, max_chars=23) == []


# Demonstrations: the proposals


def test_proposed_demonstrations_name_the_example_that_they_come_from():
    """So that a prompt is not tried on the examples that it shows, whatever the component's inputs have become."""
    pool = demo_pool([group((said(name), reward), name=name) for name, reward in (("e1", 0.9), ("e2", 0.8), ("e3", 0))])
    prompts = propose(pool)
    shown = [(demo.example_id, demo.outputs["said"]) for prompt in prompts for demo in prompt.demos]
    assert len(shown) >= 2 and all(name == text for name, text in shown)
    assert all(shows(prompt, "e1", {"q": "rewritten since"}) for prompt in prompts)
    assert not any(shows(prompt, "e3", {"q": "rewritten since"}) for prompt in prompts)


def test_the_first_proposal_is_the_best_of_the_pool():
    pool = [scored("e1", 1.0), scored("e2", 0.9), scored("e3", 0.8)]
    first = propose(pool)[0]
    assert first == Prompt("current", (pool[0].demo, pool[1].demo))


def test_the_current_demonstrations_are_not_proposed_again():
    pool = [scored("e1", 1.0)]
    current = propose(pool, size=1)[0]
    assert propose(pool, current, size=1) == []
    assert propose([]) == []


def test_worthless_demonstrations_do_not_make_up_the_number():
    assert len(propose([scored("e1", 1.0), scored("e2", 0.0)], size=1)) == 1


def test_draws_are_random_and_follow_the_generator():
    pool = [scored(f"e{i}", 1.0) for i in range(20)]
    assert propose(pool, seed=1) == propose(pool, seed=1)
    assert propose(pool, seed=1)[0] == propose(pool, seed=2)[0]
    assert propose(pool, seed=1)[1:] != propose(pool, seed=2)[1:]


def test_heavier_demonstrations_are_drawn_more_often():
    pool = [scored("e1", 1.0), scored("e2", 0.9), scored("e3", 0.1)]
    drawn = [prompt.demos[0] for seed in range(200) for prompt in propose(pool, size=1, count=2, seed=seed)[1:]]
    assert len(drawn) > 180
    assert drawn.count(pool[1].demo) > 0.95 * len(drawn)  # e2 comes before e3 with chance 0.81 / 0.82


POOLS = st.lists(
    st.builds(scored, st.sampled_from(["e1", "e2", "e3", "e4"]), st.floats(0, 1), st.sampled_from("xy")), max_size=8
)


@given(POOLS, st.integers(0, 4), st.integers(1, 4), st.integers(0, 100), st.booleans())
def test_proposals_are_distinct_new_and_of_one_demonstration_per_example(pool, size, count, seed, tuned):
    current = dataclasses.replace(CURRENT, demos=tuple(one.demo for one in pool[:size]) if tuned else ())
    prompts = propose(pool, current, size, count, seed)
    assert len(prompts) <= count
    for index, prompt in enumerate(prompts):
        assert prompt not in prompts[:index]
        assert prompt.instruction == "current"
        assert prompt != current
        assert 1 <= len(prompt.demos) <= size
        names = [demo.inputs["q"] for demo in prompt.demos]
        assert len(set(names)) == len(names)
    assert prompts == propose(pool, current, size, count, seed)


# Instructions


@pytest.mark.parametrize(
    ("answer", "instruction"),
    [
        ("Do this.\n\nThen that.", "Do this.\n\nThen that."),
        ("  Do this.\n", "Do this."),
        ("Sure!\n<instruction>\nDo this.\nThen that.\n</instruction>\nDone.", "Do this.\nThen that."),
        ("<instruction>Do this.\nThen", "Do this.\nThen"),
        ("<instruction>A</instruction><instruction>B</instruction>", "B"),  # drafts come first
        ('"Do this."', "Do this."),
        ('{"instruction": "Do this."}', "Do this."),
        ('```json\n{"instruction": "Do this."}\n```', "Do this."),
        (json.dumps(json.dumps({"instruction": "Do this."})), "Do this."),
        ("{'reason': 'Clear.', 'new_instruction': 'Do this.'}", "Do this."),
        ("```\nDo this.\n```", "Do this."),
        ("Between <instruction> and </instruction>:\n<instruction>Do this.</instruction>", "Do this."),
        ("<instruction>Do this.</instruction>\nIt is between <instruction> and </instruction>.", "Do this."),
        ("<think>maybe <instruction>a draft</instruction></think>\n<instruction>Do this.</instruction>", "Do this."),
        ("maybe <instruction>a draft</instruction></think><instruction>Do this.</instruction>", "Do this."),
        ("<INSTRUCTION>Do this.</Instruction>", "Do this."),
        ("<instruction><instruction>Do this.</instruction></instruction>", "Do this."),
        ("Do this.</instruction>", "Do this."),
        ("<instruction>a draft\n<instruction>Do this.</instruction>", "Do this."),
        ('<instruction>{"instruction": "Do this."}</instruction>', "Do this."),
        ('{"answer": 5}', '{"answer": 5}'),
        ('It is:\n```json\n{"instruction": "Do this."}\n```', "Do this."),
        ("**New instruction:** Do this.", "Do this."),
        ("<instruction>Do this.</instruction", "Do this."),
        ("<instruction> Do this. </ instruction>", "Do this."),
        ("&lt;instruction&gt;Do this.&lt;/instruction&gt;", "Do this."),
        ("<instruction>Do this.</instruction>\nI used <instruction> tags.", "Do this."),
        ("[[ ## instruction ## ]]\nDo this.\n\n[[ ## completed ## ]]", "Do this."),
        ('{"instructions": ["Do that.", "Do this."]}', "Do this."),
        ("<instruction>'Do this.'</instruction>", "Do this."),
        ('Say "yes"', 'Say "yes"'),
        ("\"Do this.'", "\"Do this.'"),
        ('"yes" or "no"', '"yes" or "no"'),
        ('"', '"'),
        ('""', ""),
        ("<instruction></instruction>", ""),
        ("", ""),
    ],
)
def test_an_instruction_is_taken_whole(answer, instruction):
    assert parse_instruction(answer) == instruction


@given(st.text(st.characters(exclude_characters="<\"'")))
def test_tags_around_an_instruction_change_nothing(text):
    assert parse_instruction(text) == text.strip()
    assert parse_instruction(f"Here: <instruction>\n{text}\n</instruction>") == text.strip()


def test_new_instructions_are_distinct_allowed_and_keep_the_demonstrations():
    current = Prompt("current", (Demo({"q": 1}, said("x")),))
    answers = ["new", "", "x" * 21, "current", '"current"', " new ", "other", "<instruction> </instruction>", "y" * 20]
    prompts = propose_instructions(answers, current, PromptSpace(max_instruction_chars=20))
    assert prompts == [Prompt(text, current.demos) for text in ("new", "other", "y" * 20)]


OLDER = ScoredInstruction("older", -0.5)


def opro_task(style="chat", count=3, seed=0, history=(OLDER,), score=0.25):
    component = dataclasses.replace(tool("speaker", ("q",), str), description="Says something.")
    step = Call("speaker", {"q": "where?"}, {"speaker_out": "nowhere"})
    return PromptTask(
        component=component,
        space=PromptSpace(),
        current=Prompt("in use"),
        runs=[(example(), Trace("e", 0, (step,), {}, Outcome.OK, 0.125))],
        pool=(),
        labelled=(),
        history=history,
        current_score=score,
        scale="mean of something",
        proposer=LanguageModel("m", max_tokens=48, style=style),
        effort=Effort(instructions=count, depth=1, rewrites=1, demo_sets=0, demo_size=0, trials=1),
        seed=seed,
        rng=random.Random(0),
        ask=lambda requests: [],
        gains=lambda prompts: [],
    )


def opro(**settings):
    return opro_requests(opro_task(**settings))


@pytest.mark.parametrize("style", ["chat", "text"])
def test_proposers_see_the_task_what_was_tried_and_failures(style):
    [message] = opro(style=style)[0].messages
    text = message.content
    assert message.role == ("user" if style == "chat" else "text")
    assert "Says something." in text and "mean of something" in text
    assert text.index("Score -0.50: older") < text.index("Score 0.25 (in use): in use")
    assert "Q: where?\nSpeaker out: nowhere" in text
    assert "0.12" in text


@pytest.mark.parametrize("style", ["chat", "text"])
def test_the_history_shows_the_best_five_each_once_worst_first_and_the_one_in_use_with_its_own_score(style):
    tried = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.2, "e": 0.9, "in use": 7.0}
    history = [ScoredInstruction(text, score) for text, score in [("b", -3.0), *tried.items()]]
    text = opro(style=style, history=history, score=0.25)[0].messages[0].content
    lines = [line for line in text.splitlines() if line.startswith("Score ") and not line.startswith("Score above")]
    assert lines == ["Score 0.20: d", "Score 0.25 (in use): in use", "Score 0.30: c", "Score 0.50: b", "Score 0.90: e"]
    assert "1.00" not in text  # no end of a scale that has none
    assert "core above 0.90" in text


def test_requests_to_a_proposer_differ_only_by_their_seeds():
    requests = opro()
    assert len({request.seed for request in requests}) == 3
    assert len({dataclasses.replace(request, seed=0) for request in requests}) == 1
    assert len({request.key for request in requests}) == 3  # so that a tape keeps three answers
    assert (requests[0].role, requests[0].model, requests[0].max_tokens) == ("proposer", "m", 48)
    assert opro() == requests
    assert opro(count=4)[:3] == requests
    assert not {request.seed for request in opro(seed=1)} & {request.seed for request in requests}


# Values that can be listed


def test_other_values_of_a_grid_or_of_models():
    grid = Grid({"x": (1, 2), "y": (3, 4)})
    assert other_values(grid, Hyperparameters({"x": 1, "y": 4})) == [
        Hyperparameters({"x": 1, "y": 3}),
        Hyperparameters({"x": 2, "y": 3}),
        Hyperparameters({"x": 2, "y": 4}),
    ]
    assert other_values(Models(("m", "n")), Choice("m")) == [Choice("n")]
