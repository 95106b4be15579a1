import dataclasses
import random

from systems import example, system, tool

from optimas_jax.core.component import Component, ComponentFailure, RunContext
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.system import Meter
from optimas_jax.core.types import Outcome
from optimas_jax.core.values import BASE, Demo, Hyperparameters, LoraSpace, Prompt, PromptSpace
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.collect import CollectConfig, collect, standard_tries, value_tries

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


CONFIG = CollectConfig(samples=3, temperature=1.0, rollouts=1, other_values=2)


def base_runs(some_system, examples):
    configuration = some_system.default_configuration()
    return run_many(some_system, [Job(configuration, one, 0) for one in examples], concurrency=4)


def run_tries(some_system, tries, known=(), rollouts=1):
    configuration = some_system.default_configuration()
    return collect(some_system, configuration, tries, known, rollouts=rollouts, seed=0, concurrency=4, progress=QUIET)


def gather_groups(some_system, examples, components=None, config=CONFIG, values=()):
    """Base runs, and groups of the standard tries and of ``values``, component by component."""
    configuration, groups = some_system.default_configuration(), []
    traces = base_runs(some_system, examples)
    runs = list(zip(examples, traces, strict=True))
    for name in components or some_system.tunable:
        tries = standard_tries(some_system, configuration, name, runs, config, 0)
        tries += value_tries(name, runs, values, count=config.other_values, seed=0)
        groups += run_tries(some_system, tries, rollouts=config.rollouts)
    return traces, groups


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


def test_values_are_tried_but_not_on_their_own_demonstrations():
    better = Prompt("better", (Demo({"q": 0}, {"said": "f"}), Demo({"q": "rewritten since"}, {"said": "f"}, "e1")))
    calls = []
    some_system = chain({"default": "a", "better": "f"}, calls)
    examples = [example(f"e{i}", q=i) for i in range(3)]
    _, groups = gather_groups(some_system, examples, ["speaker"], values=[better])
    assert [q for q, instruction, _ in calls if instruction == "better"] == [2]
    assert max(groups[2].rewards) == 5.0


def test_of_many_values_every_input_tries_other_ones():
    answers = {"default": "a", **{f"way {i}": "bcdef"[i % 5] for i in range(12)}}
    values = [Prompt(f"way {i}") for i in range(12)]
    examples = [example(f"e{i}", q=i) for i in range(8)]
    runs = list(zip(examples, base_runs(chain(answers), examples), strict=True))
    tries = value_tries("speaker", runs, values, count=2, seed=0)
    assert len(tries) == 16 and len({one.source for one in tries}) > 6
    assert value_tries("speaker", runs[3:4], values, count=2, seed=0) == tries[6:8]


def test_what_is_known_is_not_followed_again():
    calls = []
    some_system = chain({"default": "a", "better": "f", "same": "f"}, grid=(1, 2))
    metered = dataclasses.replace(some_system, meter=Meter())
    _, known = gather_groups(metered, [example()], ["speaker"], CollectConfig(samples=0), values=[Prompt("better")])
    runs, before = metered.meter.runs, known[0]
    tries = value_tries("speaker", [(example(), base_runs(metered, [example()])[0])], [Prompt("same")], count=1, seed=0)
    [group] = run_tries(metered, tries, known)
    assert group == before and metered.meter.runs == runs + 1 and not calls  # the base run alone
    assert run_tries(metered, [], known) == known


def test_a_value_does_the_same_when_it_is_collected_as_when_the_system_runs_it():
    """At a temperature above 0, with a model that answers with its seed; samples alone are drawn with seeds of their
    own."""

    async def speak(fields, value, context):
        return {"said": f"{value.instruction} {context.seed}"}

    def count(outputs, gold):
        return float(len(outputs["said"]))

    some_system = system(
        Component("speaker", "", ("q",), ("said",), speak, PromptSpace(), Prompt("default")),
        output="said",
        metric=count,
    )
    other, one = Prompt("other"), example("e7", q=7)
    _, [group] = gather_groups(some_system, [one], values=[other])
    said = {candidate.source.split(":")[0]: candidate.outputs["said"] for candidate in group.candidates}
    for source, value in (("current", Prompt("default")), ("value", other)):
        configuration = some_system.default_configuration().replace("speaker", value)
        [trace] = run_many(some_system, [Job(configuration, one, 0)], concurrency=1)
        assert said[source] == trace.outputs["said"]
    assert len({c.outputs["said"] for c in group.candidates}) == 5


def test_groups_carry_the_configuration_that_they_were_gained_under():
    some_system = chain({"default": "c"})
    _, groups = gather_groups(some_system, [example()])
    assert {group.configuration for group in groups} == {some_system.default_configuration().digest}
    assert all(group.current is not None for group in groups)


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
        chain({"default": "c", "silent": ""}), [example()], ["speaker"], values=[Prompt("silent")]
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


def test_equal_candidates_are_one():
    some_system = system(tool("a", ("q",), lambda q, x: 1, grid=(1, 2)), output="a_out")
    [group] = gather_groups(some_system, [example()])[1]
    assert [candidate.source for candidate in group.candidates] == ["current"]


def test_values_are_hyperparameters():
    assert Hyperparameters({"x": 1}) == chain({"default": "a"}).default_configuration()["length"]
