import random

from systems import example, system, tool

from optimas_jax.core.system import Component, ComponentFailure, Job, RunContext, run_many
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import BASE, Demo, Hyperparameters, LoraSpace, Prompt, PromptSpace
from optimas_jax.loop.progress import ConsoleProgress
from optimas_jax.rewards.collect import CollectConfig, collect

QUIET = ConsoleProgress(quiet=True)


def speaker(answers, calls=None):
    """A prompt component that answers from {instruction: text} or, when sampled, with a random letter."""

    async def run(fields, value: Prompt, context: RunContext):
        if calls is not None:
            calls.append((fields["q"], value.instruction, context.temperature))
        if context.temperature:
            return {"said": random.Random(context.seed).choice("abcdef")}
        text = answers[value.instruction]
        if not text:
            raise ComponentFailure(Outcome.PARSE_ERROR)
        return {"said": text}

    return Component("speaker", "Says something.", ("q",), ("said",), run, PromptSpace(), Prompt("default"))


def chain(answers, calls=None, grid=(1, 2)):
    return system(
        speaker(answers, calls),
        tool("length", ("said",), lambda said, x: x * (ord(said[0]) - ord("a")), grid=grid),
        output="length_out",
    )


def gather_groups(some_system, examples, components=None, **settings):
    settings = {"config": CollectConfig(samples=3, temperature=1.0, rollouts=1, values=2), **settings}
    configuration = some_system.default_configuration()
    traces = run_many(some_system, [Job(configuration, one, 0) for one in examples], concurrency=4)
    bases = {name: list(zip(examples, traces, strict=True)) for name in components or some_system.tunable}
    return traces, collect(some_system, configuration, bases, seed=0, concurrency=4, progress=QUIET, **settings)


def test_groups_hold_distinct_candidates_with_the_reward_of_what_follows():
    traces, groups = gather_groups(chain({"default": "c"}), [example(f"e{i}", q=i) for i in range(3)])
    assert [trace.score for trace in traces] == [2.0] * 3
    spoken = [group for group in groups if group.component == "speaker"]
    assert [group.example_id for group in spoken] == ["e0", "e1", "e2"]
    for group in spoken:
        said = [candidate.outputs["said"] for candidate in group.candidates]
        assert said[0] == "c"
        assert len(set(said)) == len(said)
        assert list(group.rewards) == [float(ord(text) - ord("a")) for text in said]
    numbers = [group for group in groups if group.component == "length"]
    assert [group.rewards for group in numbers] == [(2.0, 4.0)] * 3
    assert [candidate.source[:6] for candidate in numbers[0].candidates] == ["curren", "value:"]


def test_candidates_do_not_depend_on_concurrency_or_on_other_examples():
    examples = [example(f"e{i}", q=i) for i in range(4)]
    everything = gather_groups(chain({"default": "c"}), examples)[1]
    alone = gather_groups(chain({"default": "c"}), examples[2:3])[1]
    assert [group for group in everything if group.example_id == "e2"] == alone


def test_proposed_values_are_tried_but_not_on_their_own_demonstrations():
    mine = Demo({"q": 0}, {"said": "f"})
    better = Prompt("better", (mine,))
    seen = []

    def propose(name, groups):
        seen.append((name, len(groups)))
        return [better] if name == "speaker" else []

    calls = []
    some_system = chain({"default": "a", "better": "f"}, calls)
    examples = [example(f"e{i}", q=i) for i in range(2)]
    _, groups = gather_groups(some_system, examples, ["speaker"], propose_values=propose)
    assert seen == [("speaker", 2)]
    assert [q for q, instruction, _ in calls if instruction == "better"] == [1]
    assert max(groups[1].rewards) == 5.0


def test_a_policy_is_sampled_as_its_rollouts_are():
    temperatures = []

    async def policy(fields, value, context):
        assert value == BASE
        temperatures.append(context.temperature)
        return {"said": random.Random(context.seed).random()}

    some_system = system(Component("policy", "", ("q",), ("said",), policy, LoraSpace(), BASE), output="said")
    _, groups = gather_groups(some_system, [example()], config=CollectConfig(samples=0, policy_samples=4))
    assert temperatures == [None] + [1.0] * 4
    assert len(groups[0].candidates) == 5


def test_failed_candidates_get_the_failure_score():
    _, groups = gather_groups(
        chain({"default": "c", "silent": ""}), [example()], ["speaker"], propose_values=lambda n, g: [Prompt("silent")]
    )
    failed = [candidate for candidate in groups[0].candidates if not candidate.outputs]
    assert [candidate.rewards for candidate in failed] == [(0.0,)]


def test_rollouts_average_over_seeds():
    async def noisy(fields, value, context):
        return {"score": context.seed % 2}

    some_system = system(
        tool("pick", ("q",), lambda q, x: x, grid=(1, 2)),
        Component("noise", "", ("pick_out",), ("score",), noisy),
        output="score",
    )
    _, groups = gather_groups(some_system, [example()], config=CollectConfig(rollouts=16, samples=0))
    for candidate in groups[0].candidates:
        assert len(candidate.rewards) == 16
        assert 0 < candidate.reward < 1
    # common random numbers: candidates are compared under the same seeds
    assert groups[0].candidates[0].rewards == groups[0].candidates[1].rewards


def test_a_component_behind_a_failed_one_has_no_group():
    traces, groups = gather_groups(chain({"default": ""}), [example()])
    assert traces[0].outcome is Outcome.PARSE_ERROR
    assert [group.component for group in groups] == ["speaker"]  # the failure and its sampled alternatives


def test_candidates_that_all_agree_are_no_group():
    some_system = system(tool("a", ("q",), lambda q, x: 1, grid=(1, 2)), output="a_out")
    assert gather_groups(some_system, [example()])[1] == []


def test_values_are_hyperparameters():
    assert Hyperparameters({"x": 1}) == chain({"default": "a"}).default_configuration()["length"]


def test_values_may_be_tried_in_place_of_samples_and_of_all_others():
    answers = {"default": "c", "loud": "e", "shy": "b"}
    asked: list[str] = []
    _, groups = gather_groups(
        chain(answers),
        [example("e0", q=0)],
        components=("speaker",),
        propose_values=lambda name, groups: asked.append(name) or [],
        instead=[Prompt("loud"), Prompt("shy")],
    )
    [group] = groups
    assert group.candidates[0].outputs["said"] == "c" and not asked
    assert {c.outputs["said"] for c in group.candidates} == {"c", "e", "b"}
    _, groups = gather_groups(
        chain(answers, grid=(1, 2, 3)), [example("e0", q=0)], ("length",), instead=[Hyperparameters({"x": 3})]
    )
    assert [group.rewards for group in groups] == [(2.0, 6.0)]
