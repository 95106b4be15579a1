"""Agents and routers: groups of every call, followed to the end as if all were run anew, whatever the latencies."""

import asyncio
import dataclasses
import random

import pytest
from fakes import ScriptedCompleter

import optimas_jax as oj
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.types import Example, derive_seed, digest
from optimas_jax.llm.component import LanguageModel
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.collect import CollectConfig, collect, rollout_seeds, standard_tries

MODEL = LanguageModel("scripted", temperature=1.0)
EXAMPLES = [Example(f"e{number}", {"question": f"q{number}"}, {}, "train") for number in range(6)]
ROLLOUTS, SEED = 3, 7


def agent():
    """Thinks and looks things up until it has had enough: nobody knows how often."""
    think = oj.prompt("Say what to look up, or end.", name="think")

    @oj.component
    def look(key):
        return f"{key} is {len(key)}"

    async def react(question):
        notes = []
        while len(notes) < 9:
            action = await think(question=question, notes=notes)
            if action.startswith("end"):
                break
            notes = [*notes, await look(action)]
        return {"notes": notes, "action": action}

    return oj.program(react, components=[think, look])


def router():
    """Goes one of three ways, one of them with parallel calls of one component, and checks what it has."""
    route, write, check = (oj.prompt(f"Do {name}.", name=name) for name in ("route", "write", "check"))

    async def routed(question):
        kind = await route(question=question)
        if kind == "look a":
            parts = await asyncio.gather(*(write(question=question, part=part) for part in range(3)))
        elif kind == "look b":
            parts = [await write(question=question, part="whole")]
        else:
            return {"text": question}
        checked = await asyncio.gather(*(check(text=part) for part in parts))
        return {"text": " ".join(parts), "checked": checked}

    return oj.program(routed, components=[route, write, check])


def say(request):
    """Words by the request and its seed: the model is a hot one."""
    choices = ("look a", "look b", "look abc", "end x", "end yy")
    return choices[derive_seed(digest(request.to_json())) % len(choices)]


class Slow(ScriptedCompleter):
    """Answers after a time of its own."""

    def __init__(self, seed):
        super().__init__(say)
        self._rng = random.Random(seed)

    async def complete(self, request):
        for _ in range(self._rng.randrange(6)):
            await asyncio.sleep(0)
        return await super().complete(request)


def score(outputs):
    return len(digest(outputs).strip("0123456789")) + len(str(outputs)) % 7 / 7  # of everything in it


def system_of(program, latency):
    return program.system(score, ("question",), MODEL).using(Slow(latency))


def groups_of(system):
    configuration = system.default_configuration()
    traces = run_many(system, [Job(configuration, one, SEED) for one in EXAMPLES], concurrency=4)
    runs = list(zip(EXAMPLES, traces, strict=True))
    config = CollectConfig(samples=2, temperature=1.0, rollouts=ROLLOUTS)
    tries = [one for name in system.tunable for one in standard_tries(system, configuration, name, runs, config, SEED)]
    quiet = ConsoleProgress(quiet=True)
    groups = collect(system, configuration, tries, rollouts=ROLLOUTS, seed=SEED, concurrency=4, progress=quiet)
    return runs, groups


def rewards_from_scratch(system, example, trace, index, outputs):
    """Rewards of another output of one call: the whole program run again, with nothing known but what came before it,
    under the seed of each rollout."""
    configuration, call = system.default_configuration(), trace.calls[index]
    given = {one.key: one for one in trace.calls[:index]}
    given[call.key] = dataclasses.replace(call, outputs=outputs)
    jobs = [Job(configuration, example, seed, given) for seed in rollout_seeds(SEED, ROLLOUTS)]
    return tuple(one.score for one in run_many(system, jobs, concurrency=1))


@pytest.mark.parametrize("program", [agent, router])
def test_every_call_has_a_group_whose_rewards_are_those_of_running_again_from_scratch(program):
    system = system_of(program(), latency=0)
    runs, groups = groups_of(system)
    traces = {example.id: (example, trace) for example, trace in runs}
    calls = {(g.component, g.example_id, g.occurrence) for g in groups}
    assert calls == {
        (call.component, example.id, call.occurrence)
        for example, trace in runs
        for call in trace.calls
        if call.component in system.tunable
    }
    assert max(group.occurrence for group in groups) >= 2
    assert len({len(trace.calls) for _, trace in runs}) > 1  # as long as it takes
    checked = 0
    for group in groups:
        example, trace = traces[group.example_id]
        [index] = [i for i in trace.indices(group.component) if trace.calls[i].occurrence == group.occurrence]
        assert group.inputs == trace.calls[index].inputs
        for candidate in group.candidates:
            assert candidate.rewards == rewards_from_scratch(system, example, trace, index, candidate.outputs)
            checked += 1
    assert checked > 2 * len(EXAMPLES)


@pytest.mark.parametrize("program", [agent, router])
def test_records_seeds_and_groups_do_not_depend_on_latencies(program):
    runs, groups = groups_of(system_of(program(), latency=0))
    for latency in range(1, 5):
        assert groups_of(system_of(program(), latency)) == (runs, groups)
