"""Planted faults: one component's output in a passing run is replaced so that the run fails, and blame is asked which
one it was. Prints its table with

python tests/planted_faults.py [embedded] [programs] [enumerable] [--seed=0] [--faults=40] [--workdir=DIR]

Local rewards are trained on at least 50 groups a component. Runs that faults are planted in, and passing runs that they
are compared with, are of examples that no local reward has seen. ``enumerable`` has exact local rewards.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from enumerable import EXAMPLES, QUIET, ExactRewards, enumerable_system
from fakes import ScriptedCompleter
from runs import get_config, run_config

import optimas_jax as oj
from optimas_jax.benchmarks.data import Dataset
from optimas_jax.benchmarks.modules import Benchmark
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.system import System
from optimas_jax.core.types import Call, Example, Trace, derive_seed, digest
from optimas_jax.core.values import Choice, Configuration, Hyperparameters, Prompt
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OfflineConfig, RunConfig, parse_config
from optimas_jax.loop.context import Run
from optimas_jax.loop.local_rewards import collect_on, train_first
from optimas_jax.loop.stages import open_run
from optimas_jax.loop.steps.blame import Contrasts, behind, by_component, contrasts_of, run_scores
from optimas_jax.programs.program import program as declare
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.scorer import RewardScorer
from optimas_jax.search.blame import Measures, Scores, blame, passes
from optimas_jax.search.optimisers.demos import demo_pool, propose_demos

Corrupt = Callable[[Call, random.Random], Mapping[str, Any] | None]  # a wrong output in place of a right one


@dataclasses.dataclass(frozen=True)
class Fault:
    """A planted fault: the guilty component, the measures of the run that it failed, and who reads whom there."""

    guilty: str
    scores: Scores
    behind: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Planted:
    """Faults of one system.

    Attributes:
      groups: that local rewards were trained on, by component.
      passing: measures of the calls of passing runs, by component.
    """

    faults: Sequence[Fault]
    groups: Mapping[str, int]
    passing: Mapping[str, Sequence[Measures]]

    def right(self) -> list[bool]:
        """Whether the guilty component is first, by fault."""
        return [blame(one.scores, self.passing, one.behind).component == one.guilty for one in self.faults]

    def lowest(self) -> list[float]:
        """The same of the component with the lowest percentile, whoever reads whom; of equal ones, one drawn at random
        is right by its chance."""
        chances = []
        for one in self.faults:
            levels = blame(one.scores, self.passing, {}).percentiles
            low = [name for name in levels if levels[name] == min(x for x in levels.values() if x is not None)]
            chances.append((one.guilty in low) / len(low))
        return chances

    @property
    def chance(self) -> float:
        """Share of right answers of a guess among the components that the run calls."""
        return sum(1 / len(dict(one.scores)) for one in self.faults) / len(self.faults)


def plant(
    system: System,
    configuration: Configuration,
    runs: Sequence[tuple[Example, Trace]],
    names: Sequence[str],
    corrupt: Corrupt,
    count: int,
    seed: int,
) -> list[tuple[str, Trace]]:
    """Runs that fail by one component's output, guilty components in turn: (component, failed run)."""
    rng = random.Random(derive_seed("faults", seed))
    tries = [(name, example, trace) for example, trace in runs for name in names if trace.reaches(name)]
    rng.shuffle(tries)
    planted: dict[str, list[tuple[str, Trace]]] = {name: [] for name in names}
    jobs, guilty = [], []
    for name, example, trace in tries[: 3 * count]:
        index = rng.choice(trace.indices(name))
        outputs = corrupt(trace.calls[index], rng)
        if outputs is not None and outputs != trace.calls[index].outputs:
            given = system.followed(trace, {index: outputs}, trace.seed)
            jobs.append(Job(configuration, example, trace.seed, given))
            guilty.append((name, trace))
    for (name, before), after in zip(guilty, run_many(system, jobs, concurrency=64), strict=True):
        if after.score < 0.5 <= before.score:
            planted[name].append((name, after))
    ordered = [one for row in zip_longest(planted.values()) for one in row]
    return ordered[:count]


def zip_longest(rows: Any) -> list[list[Any]]:
    rows = list(rows)
    return [[row[i] for row in rows if i < len(row)] for i in range(max(map(len, rows), default=0))]


def measured(
    run: Run, configuration: Configuration, train: Sequence[Example], fresh: Sequence[Example], **settings: Any
) -> Planted:
    """Trains local rewards on ``train``, plants faults in runs on ``fresh``."""
    host, config, names = run.host, run.config, run.host.components
    corrupt, count, seed = settings["corrupt"], settings["count"], settings["seed"]
    with host.ledger.phase("faults"):
        groups = collect_on(host, config, configuration, names, train, ())
        reward, _ = train_first(host, run.device, config, groups)
        traces = host.run("fresh runs", [Job(configuration, example, host.seed) for example in fresh])
        passed = passes([trace.score for trace in traces])
        good = [(example, trace) for example, trace, one in zip(fresh, traces, passed, strict=True) if one]
        known, spoiled = good[::2], good[1::2]
        if callable(getattr(corrupt, "learn", None)):
            corrupt.learn([trace for _, trace in known])
        planted = plant(host.system, configuration, spoiled, names, corrupt, count, seed)
        scorer = run.device.rewards.scorer
        contrasts = contrasts_of([trace for _, trace in known], names, host.seed)
        passing = by_component(run_scores(scorer, host.system, reward, contrasts, [trace for _, trace in known]))
        scores = run_scores(scorer, host.system, reward, contrasts, [trace for _, trace in planted])
    several = [group for group in groups if len(group.candidates) > 1]
    return Planted(
        [Fault(name, one, behind(host.system, trace)) for (name, trace), one in zip(planted, scores, strict=True)],
        {name: sum(group.component == name for group in several) for name in names},
        passing,
    )


# --- two scripted programs

_STYLES = ("um, whatever {n}", "cannot say", "it depends, maybe {n} or not", "lorem ipsum {n} dolor")
_WORDS = {
    "outline": "Plan: look up item {n}, then compare.",
    "facts": "Item {n} is listed in the register of {n}.",
    "draft": "The register lists item {n}.",
    "final": "Item {n} is listed.",
    "query": "register of item {n}",
    "check": "The evidence on {n} is complete.",
}


def scripted(request: CompletionRequest) -> str:
    """Right where its inputs are right, unless it is hot and unlucky. Behind something wrong it is wrong: half of the
    time in words that sound wrong, too."""
    text = request.messages[-1].content
    number = next((word.strip(".,") for word in text.split() if word.strip(".,").isdigit()), "0")
    if request.role == "proposer":
        return f"Do it in way {request.seed % 7}."
    drawn = derive_seed("scripted", request.role, text, request.seed if request.temperature else 0)
    if is_wrong(text):
        return _STYLES[drawn % len(_STYLES)].format(n=number) if drawn % 2 else wrong(request.role, number)
    if request.temperature and drawn % 2:
        return _STYLES[drawn // 2 % len(_STYLES)].format(n=number)
    return _WORDS[request.role].format(n=number)


def wrong(role: str, number: str) -> str:
    """In right words of another item."""
    return _WORDS[role].format(n=f"9{number}")


def is_wrong(text: str) -> bool:
    return any(mark in text for mark in ("um, ", "cannot say", "maybe", "lorem", " 9", "9-"))


outline = oj.prompt("Write a plan.", name="outline")
facts = oj.prompt("Write down facts.", name="facts")
draft = oj.prompt("Write a draft.", name="draft")
final = oj.prompt("Answer.", name="final")
query = oj.prompt("Write a query.", name="query")
check = oj.prompt("Check the evidence.", name="check")


async def chain(q):
    plan = await outline(q=q)
    known = await facts(q=q, plan=plan)
    text = await draft(known=known)
    return await final(text=text)


async def loop(q):
    """Two rounds at most; the second query reads the first check."""
    said = ""
    for _ in range(2):
        asked = await query(q=q, said=said) if said else await query(q=q)
        said = await check(asked=asked)
        if "complete" in said:
            break
    return await final(said=said)


PROGRAMS = {"chain": chain, "loop": loop}


def unlike(call: Call, rng: random.Random) -> Mapping[str, Any]:
    """What the scripted model says where it is wrong."""
    [(field, text)] = call.outputs.items()
    number = next((word.strip(".,") for word in str(text).split() if word.strip(".,").isdigit()), "0")
    return {field: rng.choice(_STYLES).format(n=number)}


def planted_in_program(name: str, seed: int, count: int, workdir: Path) -> Planted:
    """Faults in a scripted program; local rewards are fitted on a tiny random backbone."""
    declared = declare(PROGRAMS[name])
    model = LanguageModel("scripted", style="text", max_tokens=16)

    def metric(example: Mapping[str, Any], outputs: Any) -> float:
        return float(outputs == _WORDS["final"].format(n=example["n"]))

    numbers = random.Random(seed).sample(range(100, 900), 240)
    numbers = [number for number in numbers if "9" not in str(number)]
    rows = [Example(str(n), {"q": f"Is item {n} listed?"}, {"n": str(n)}, "train") for n in numbers]
    completer = ScriptedCompleter(scripted)
    base = run_config(
        seed=seed,
        proposer=model,
        reward=dataclasses.replace(run_config().reward, model="random:0", heads="fitted"),
        collect=CollectConfig(samples=3, temperature=1.0, other_values=0),
        offline=OfflineConfig(groups=0, stop=0.0, report=0.0),
    )
    base = dataclasses.replace(base, optimize=dataclasses.replace(base.optimize, demo_sets=0))
    splits = {"train": tuple(rows[:64]), "val": tuple(rows[64:72]), "test": tuple(rows[72:])}
    system = declared.system(metric, ("q",), model)
    benchmark = Benchmark("exact", lambda settings: Dataset(splits), lambda dataset, settings: system)
    with open_run(base, workdir, QUIET, completer, benchmark=benchmark) as run:
        default = run.host.system.default_configuration()
        return measured(run, default, rows[:64], rows[72:], corrupt=unlike, count=count, seed=seed)


# --- the enumerable system, with exact local rewards


def planted_in_enumerable(seed: int, count: int, workdir: Path) -> Planted:
    """Faults in enumerable systems of many seeds: those whose run on a question scores high, and low with another
    word."""
    faults, good_runs = list[Fault](), list[Scores]()
    words, names = ("ape", "bee", "cat", "dog"), ("writer", "router", "tuner")
    field = dict(zip(names, "abc", strict=True))
    for index in range(40 * count):
        system = enumerable_system(derive_seed("enumerable", seed, index))
        rng = random.Random(derive_seed("word", seed, index))
        configuration = Configuration(
            {
                "writer": Prompt(rng.choice(("red", "green", "blue"))),
                "router": Choice(rng.choice(("small", "large"))),
                "tuner": Hyperparameters({"x": rng.choice((1, 2)), "y": rng.choice((1, 2))}),
            }
        )
        rewards = cast(RewardScorer, ExactUnder(configuration, system, workdir / str(index)))

        def corrupt(call: Call, drawn: random.Random) -> Mapping[str, Any]:
            return {field[call.component]: drawn.choice(words)}

        traces = run_many(system, [Job(configuration, example, 0) for example in EXAMPLES], concurrency=8)
        good = [(e, trace) for e, trace in zip(EXAMPLES, traces, strict=True) if trace.score >= 0.5]
        contrasts = {
            name: Contrasts({}, {digest({field[name]: word}): {field[name]: word} for word in words}) for name in names
        }
        good_runs += run_scores(rewards, system, "exact", contrasts, [trace for _, trace in good])
        turn = names[index % 3]
        planted = plant(system, configuration, good[:1], [turn], corrupt, 1, derive_seed(seed, index))
        scores = run_scores(rewards, system, "exact", contrasts, [trace for _, trace in planted])
        faults += [Fault(g, one, behind(system, trace)) for (g, trace), one in zip(planted, scores, strict=True)]
        if len(faults) == count:
            break
    return Planted(faults, {}, by_component(good_runs))


class ExactUnder(ExactRewards):
    """Exact local rewards under a configuration."""

    def __init__(self, configuration: Configuration, system: System, workdir: Path):
        super().__init__(system, workdir)
        self._configuration = configuration

    def scores(self, name: str, groups: Sequence[Any]) -> list[list[float]]:
        return [[self._score(self._configuration, group, text) for text in group.candidates] for group in groups]


# --- the embedded model


class Spoiled:
    """Wrong outputs of text components and retrievers: of another example, in another order, or saying nothing."""

    def learn(self, traces: Sequence[Trace]) -> None:
        self.others: dict[str, list[Mapping[str, Any]]] = {}
        for call in (call for trace in traces for call in trace.calls):
            self.others.setdefault(call.component, []).append(call.outputs)

    def __call__(self, call: Call, rng: random.Random) -> Mapping[str, Any] | None:
        kind = rng.choice(("other", "other", "shuffled", "unknown"))
        other = dict(rng.choice(self.others[call.component]))
        if kind == "other" or not all(isinstance(value, str) for value in call.outputs.values()):
            return other
        words = {name: str(value).split() for name, value in call.outputs.items()}
        if kind == "shuffled" and all(len(one) > 3 for one in words.values()):
            return {name: " ".join(rng.sample(one, len(one))) for name, one in words.items()}
        return dict.fromkeys(call.outputs, "I do not know.")


def embedded_config(seed: int) -> RunConfig:
    """``configs/hotpotqa.py`` on SmolLM2, three candidates an input: of two, the answer generator's are often equal."""
    config = parse_config(get_config("embedded").to_dict())
    return dataclasses.replace(
        config,
        seed=seed,
        data=dataclasses.replace(
            config.data, seed=1000 + seed, train=66, val=8, confirm=8, test=152, mix={"one-hop": 1.0}
        ),
        collect=dataclasses.replace(config.collect, samples=2, temperature=1.0, other_values=0),
        offline=dataclasses.replace(config.offline, groups=60, stop=0.0, report=0.0),
    )


def planted_in_embedded(seed: int, count: int, workdir: Path) -> Planted:
    """Faults in the five-component system, whose answer generator is shown two demonstrations, as searches find."""
    config = embedded_config(seed)
    with open_run(config, workdir, ConsoleProgress()) as run:
        host = run.host
        default, train = host.system.default_configuration(), list(host.splits["train"])
        with host.ledger.phase("demonstrations"):
            groups = collect_on(host, config, default, ["answer_generator"], train[:12], ())
        prompt = default["answer_generator"]
        assert isinstance(prompt, Prompt)
        [shown, *_] = propose_demos(demo_pool(groups), prompt, size=2, count=1, rng=random.Random(seed))
        configuration = default.replace("answer_generator", shown)
        fresh = [example for split in ("val", "confirm", "test") for example in host.splits[split]]
        return measured(run, configuration, train, fresh, corrupt=Spoiled(), count=count, seed=seed)


# --- table


def report(title: str, planted: Planted) -> str:
    """A line of the table."""
    right, lowest = planted.right(), planted.lowest()
    names = list(dict.fromkeys(fault.guilty for fault in planted.faults))
    found = {name: [ok for ok, one in zip(right, planted.faults, strict=True) if one.guilty == name] for name in names}
    cells = [
        title,
        str(min(planted.groups.values())) if planted.groups else "exact",
        str(max(map(len, planted.passing.values()))),
        f"{sum(right)} of {len(right)} = {sum(right) / len(right):.2f}",
        f"{sum(lowest) / len(lowest):.2f}",
        f"{planted.chance:.2f}",
        ", ".join(f"{name} {sum(each)}/{len(each)}" for name, each in found.items()),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("systems", nargs="*", default=["embedded", "programs", "enumerable"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--workdir", default="")
    flags = parser.parse_args()
    print("| system | fewest groups | passing calls | guilty one first | lowest percentile | chance | by component |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(flags.workdir or stack.enter_context(tempfile.TemporaryDirectory()))
        for system in flags.systems:
            if system == "programs":
                for name in PROGRAMS:
                    planted = planted_in_program(name, flags.seed, flags.faults, folder / f"{name}-{flags.seed}")
                    print(report(f"program {name}", planted), flush=True)
                continue
            of = {"embedded": planted_in_embedded, "enumerable": planted_in_enumerable}[system]
            planted = of(flags.seed, flags.faults, folder / f"{system}-{flags.seed}")
            print(report(system, planted), flush=True)


if __name__ == "__main__":
    main()
