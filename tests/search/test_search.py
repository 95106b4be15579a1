import collections
import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import example, group, tool

from optimas_jax.core.stats import Comparison, compare, mean_interval
from optimas_jax.core.types import Outcome, Step, Trace
from optimas_jax.core.values import Choice, Demo, Grid, Hyperparameters, Models, Prompt, PromptSpace, other_values
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.iteration import MODES, resolve_mode
from optimas_jax.search.demos import ScoredDemo, demo_pool, propose_demos
from optimas_jax.search.gate import GateConfig, accepts, is_futile, looks
from optimas_jax.search.instructions import parse_instruction, propose_instructions
from optimas_jax.search.opro import opro_requests
from optimas_jax.search.pick import pick_component, reward_gaps
from optimas_jax.search.task import Effort, PromptTask
from optimas_jax.search.templates import ScoredInstruction

CURRENT = Prompt("current")


def said(text):
    return {"said": text}


def scored(name, reward, text="x"):
    return ScoredDemo(Demo({"q": name}, said(text)), reward, name)


def propose(pool, current=CURRENT, size=2, count=3, seed=0):
    return propose_demos(pool, current, size=size, count=count, rng=random.Random(seed))


# Demonstrations: the pool


def test_the_pool_holds_the_best_candidate_of_every_group_best_first():
    pool = demo_pool(
        [
            group((said("a"), 0.6), (said("b"), 0.5), name="e2"),
            group((said("c"), 0.2), (said("d"), 0.9), name="e3"),
            group((said("e"), 0.6), name="e1"),
        ],
        min_reward=0.5,
    )
    assert pool == [scored("e3", 0.9, "d"), scored("e1", 0.6, "e"), scored("e2", 0.6, "a")]


def test_of_equal_rewards_the_latest_comes_first_and_none_comes_twice():
    old, new = group((said("a"), 1.0), name="e1"), group((said("b"), 1.0), name="e2")
    assert demo_pool([old, new, old], min_reward=0.5) == [scored("e1", 1.0, "a"), scored("e2", 1.0, "b")]
    assert [one.example_id for one in demo_pool([old, new], min_reward=0.5)] == ["e2", "e1"]


def test_among_equally_rewarded_candidates_the_shortest_is_taken():
    [one] = demo_pool([group((said("long"), 1.0), (said("s"), 1.0), (said("mid"), 1.0))], min_reward=0.5)
    assert one.demo.outputs == said("s")


def test_the_least_reward_is_inclusive():
    groups = [group((said("a"), 0.5), name="in"), group((said("b"), 0.49), name="out")]
    assert [one.example_id for one in demo_pool(groups, min_reward=0.5)] == ["in"]


def test_failures_are_never_demonstrations():
    assert demo_pool([group(({}, 1.0))], min_reward=0.5) == []
    [one] = demo_pool([group(({}, 0.0), (said("x"), 0.0))], min_reward=0.0)
    assert one.demo.outputs == said("x")


def test_long_demonstrations_are_left_out():
    groups = [group((said("bb"), 1.0), inputs={"q": "a"})]  # {'q': 'a'} and {'said': 'bb'}: 10 + 14 characters
    assert len(demo_pool(groups, min_reward=0.0, max_chars=24)) == 1
    assert demo_pool(groups, min_reward=0.0, max_chars=23) == []


# Demonstrations: the proposals


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
    for place, prompt in enumerate(prompts):
        assert prompt not in prompts[:place]
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
        ("<instruction>A</instruction><instruction>B</instruction>", "A"),
        ('"Do this."', "Do this."),
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


def opro(style="chat", count=3, seed=0):
    component = dataclasses.replace(tool("speaker", ("q",), str), description="Says something.")
    step = Step({"q": "where?"}, {"speaker_out": "nowhere"})
    task = PromptTask(
        component=component,
        space=PromptSpace(),
        current=Prompt("in use"),
        runs=[(example(), Trace("e", 0, {"speaker": step}, {}, Outcome.OK, 0.125))],
        pool=(),
        labelled=(),
        history=[ScoredInstruction("older", -0.5)],
        proposer=LanguageModel("m", max_tokens=48, style=style),
        effort=Effort(instructions=count, depth=1, rewrites=1, demo_sets=0, demo_size=0, trials=1),
        seed=seed,
        rng=random.Random(0),
        ask=lambda requests: [],
        gains=lambda prompts: [],
    )
    return opro_requests(task)


@pytest.mark.parametrize("style", ["chat", "text"])
def test_proposers_see_the_task_what_was_tried_and_failures(style):
    [message] = opro(style)[0].messages
    text = message.content
    assert message.role == ("user" if style == "chat" else "text")
    assert "Says something." in text
    assert text.index("Score -0.50: older") < text.index("Score 0.00: in use")
    assert "Score" not in text.split("Score 0.00: in use")[1].replace("Score 1.00:", "")
    assert "Q: where?\nSpeaker out: nowhere" in text
    assert "0.12" in text


def test_requests_to_a_proposer_differ_only_by_their_seeds():
    requests = opro()
    assert len({request.seed for request in requests}) == 3
    assert len({dataclasses.replace(request, seed=0) for request in requests}) == 1
    assert len({request.key for request in requests}) == 3  # so that a tape keeps three answers
    assert (requests[0].role, requests[0].model, requests[0].max_tokens) == ("proposer", "m", 48)
    assert opro() == requests
    assert opro(count=4)[:3] == requests
    assert not {request.seed for request in opro(seed=1)} & {request.seed for request in requests}


# The gate


def test_a_paired_comparison_by_hand():
    comparison = compare([1, 1, 0], [0, 1, 0])  # differences 1, 0, 0
    assert comparison.n == 3
    assert comparison.mean == pytest.approx(1 / 3)
    # All three draws hit a zero with chance 8/27, which counts half; all hit the one with chance 1/27 > 2.5 %.
    assert comparison.p_positive == pytest.approx(1 - 4 / 27, abs=0.015)
    assert comparison.ci95 == (0.0, 1.0)


def test_equal_scores_say_nothing_either_way():
    assert compare([0.3, 0.7, 0.1], [0.3, 0.7, 0.1]) == Comparison(3, 0.0, (0.0, 0.0), 0.5)


def test_a_gain_on_every_example_is_certain():
    comparison = compare([0.6, 0.3], [0.5, 0.2])
    assert comparison.p_positive == 1.0
    assert comparison.ci95 == pytest.approx((0.1, 0.1))


SCORES = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=1, max_size=6)


@settings(max_examples=20)
@given(SCORES)
def test_comparing_the_other_way_round_mirrors_the_result(scores):
    new, old = zip(*scores, strict=True)
    forth, back = compare(new, old), compare(old, new)
    assert back.mean == pytest.approx(-forth.mean)
    assert back.p_positive == pytest.approx(1 - forth.p_positive)
    assert back.ci95 == pytest.approx((-forth.ci95[1], -forth.ci95[0]))
    assert compare(new, old) == forth


@pytest.mark.parametrize(("new", "old"), [([1.0], [1.0, 2.0]), ([], []), ([], [1.0])])
def test_scores_that_do_not_pair_are_refused(new, old):
    with pytest.raises(ValueError, match=f"as many new scores as old ones, got {len(new)} and {len(old)}"):
        compare(new, old)


def test_the_interval_of_a_mean():
    assert mean_interval([0.0, 1.0]) == (0.5, (0.0, 1.0))
    assert mean_interval([0.25] * 5) == (0.25, (0.25, 0.25))


def comparison(mean, p_positive):
    return Comparison(10, mean, (-1.0, 1.0), p_positive)


def test_the_strict_gate_wants_a_higher_mean():
    gate = GateConfig("strict")
    assert accepts(gate, comparison(0.01, 0.51))
    assert not accepts(gate, comparison(0.0, 0.5))
    assert not accepts(gate, comparison(-0.01, 0.4))


def test_the_paired_gate_wants_a_gain_that_is_probably_real():
    gate = GateConfig("paired", confidence=0.8)
    assert accepts(gate, comparison(0.01, 0.8))
    assert not accepts(gate, comparison(0.01, 0.79))
    assert not accepts(gate, comparison(0.0, 0.9))


def test_only_the_paired_gate_gives_up_early():
    assert is_futile(GateConfig("paired", futility=0.3), comparison(-0.1, 0.29))
    assert not is_futile(GateConfig("paired", futility=0.3), comparison(-0.1, 0.3))
    assert not is_futile(GateConfig("strict", futility=0.3), comparison(-0.1, 0.0))


def test_the_first_look_is_at_eight_examples_or_more():
    assert looks(GateConfig("paired"), 32) == [8, 16, 32]
    assert looks(GateConfig("paired"), 31) == [15, 31]
    assert looks(GateConfig("paired"), 2) == [1, 2] and looks(GateConfig("paired"), 1) == [1]
    assert looks(GateConfig("strict"), 32) == [32]


def test_a_quarter_of_the_examples_must_say_it_twice_as_clearly():
    assert is_futile(GateConfig("paired", futility=0.3), comparison(-0.1, 0.14), 0.25)
    assert not is_futile(GateConfig("paired", futility=0.3), comparison(-0.1, 0.15), 0.25)


# Which component next

NAMES = ("a", "b", "c")


def test_gaps_are_what_the_best_candidate_would_gain():
    groups = [
        group((said("x"), 0.25), (said("y"), 0.75), (said("z"), 0.0), component="a"),
        group((said("x"), 0.5), (said("y"), 0.25), component="a"),
        group((said("x"), 0.0), (said("y"), 1.0), component="other"),
        group((said("x"), 1.0), component="a"),  # one candidate says nothing about a gain
    ]
    assert reward_gaps(groups, ("a", "b")) == {"a": 0.25, "b": 0.0}


def test_uniform_picks_ignore_what_is_known():
    picks = [pick_component("uniform", NAMES, {"a": 1.0}, {"a": [1.0]}, {}, random.Random(seed)) for seed in range(300)]
    counts = collections.Counter(picks)
    assert set(counts) == set(NAMES)
    assert min(counts.values()) > 60
    assert picks[0] == pick_component("uniform", NAMES, {}, {}, {}, random.Random(0))


def test_the_gap_rule_tries_every_component_before_it_repeats_one():
    gaps, gains, picks = {"a": 0.1, "b": 0.3, "c": 0.2}, {}, []
    for _ in range(6):
        picks.append(pick_component("gap", NAMES, gaps, gains, {}, random.Random(0)))
        gains[picks[-1]] = [*gains.get(picks[-1], []), 0.0]
    assert picks == ["b", "c", "a"] * 2


def test_the_gap_rule_weighs_gaps_by_what_a_run_from_there_costs():
    gaps = {"a": 0.25, "b": 0.1, "c": 0.0}
    assert pick_component("gap", NAMES, gaps, {}, {"a": 310, "b": 60}, random.Random(0)) == "b"
    assert pick_component("gap", NAMES, gaps, {}, {"a": 100, "b": 60}, random.Random(0)) == "a"
    assert pick_component("gap", NAMES, gaps, {}, {"a": 100, "b": 0}, random.Random(0)) == "b"  # costs no tokens


def test_the_bandit_lets_the_gap_shrink_with_every_try():
    def pick(gains):
        return pick_component("bandit", ("a", "b"), {"a": 0.6, "b": 0.2}, gains, {}, random.Random(0))

    assert pick({}) == "a"
    assert pick({"a": [0.0]}) == "a"  # 0.6 / 2 = 0.3
    assert pick({"a": [0.0, 0.0]}) == "b"  # 0.6 / (1 + 2.83) = 0.16
    assert pick({"a": [0.2, 0.1]}) == "a"  # 0.9 / 3.83 = 0.23
    assert pick({"a": [0.0, 0.0], "b": [0.0]}) == "a"  # 0.16 against 0.2 / 2


def test_the_bandit_weighs_gain_by_what_it_costs():
    def pick(gains, costs):
        return pick_component("bandit", ("a", "b"), {"a": 0.4, "b": 0.3}, gains, costs, random.Random(0))

    assert pick({}, {"a": 1000, "b": 700}) == "b"  # 0.4 / 1000 against 0.3 / 700
    assert pick({"a": [0.1], "b": [0.1]}, {"a": 1000, "b": 1000}) == "a"  # 0.25 against 0.2, for the same
    assert pick({"a": [0.1], "b": [0.1]}, {"a": 1000, "b": 700}) == "b"  # 0.25 / 1000 against 0.2 / 700
    assert pick({"a": [0.5], "b": [0.0]}, {}) == "a"  # what costs no tokens is not free of meaning


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="'best'; known: uniform, gap, bandit"):
        pick_component("best", NAMES, {}, {}, {}, random.Random(0))


# Values that can be listed


def test_other_values_of_a_grid_or_of_models():
    grid = Grid({"x": (1, 2), "y": (3, 4)})
    assert other_values(grid, Hyperparameters({"x": 1, "y": 4})) == [
        Hyperparameters({"x": 1, "y": 3}),
        Hyperparameters({"x": 2, "y": 3}),
        Hyperparameters({"x": 2, "y": 4}),
    ]
    assert other_values(Models(("m", "n")), Choice("m")) == [Choice("n")]


# Modes


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_fills_in_the_switches_that_were_left_to_it(mode):
    config = resolve_mode(OptimizeConfig(mode=mode))
    assert {**{name: getattr(config, name) for name in MODES[mode]}, "gate": config.gate.kind} == MODES[mode]
    assert resolve_mode(config) == config


def test_a_switch_that_was_set_stays():
    config = OptimizeConfig(mode="paper", pick="bandit", gate=GateConfig("paired", confidence=0.9), iterations=3)
    assert resolve_mode(config) == dataclasses.replace(
        config, adapt="after_accept", pairs="two", ranking="mean", rounds=1, proposers="opro", per_instance="sample"
    )
