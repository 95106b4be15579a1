"""What local rewards are collected and trained on: which inputs, until when, and which groups."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from enumerable import ExactRewards, make_run
from systems import example, group, system, tool

from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Group
from optimas_jax.loop.align import align
from optimas_jax.loop.config import AlignConfig, OfflineConfig
from optimas_jax.loop.context import Run
from optimas_jax.loop.local_rewards import adapt, collect_offline, train_first
from optimas_jax.loop.state import State
from optimas_jax.rewards.split import part_of

INPUTS = tuple(example(f"train-{i:04d}", q=i) for i in range(80))


class Trainer(ExactRewards):
    """Notes the groups of every training call: those learned from, and those for early stopping."""

    def __init__(self, system: System, workdir: Path):
        super().__init__(system, workdir)
        self.calls: list[tuple[list[Group], list[Group]]] = []

    def train(self, system: Any, parent: Any, train: Sequence[Group], stop: Sequence[Group], **settings: Any) -> Any:
        self.calls.append((list(train), list(stop)))
        return f"trained-{len(self.calls)}", {"history": []}


def a_run(
    some_system: System,
    workdir: Path,
    *,
    seed: int = 0,
    offline: OfflineConfig | None = None,
    heads: Literal["trained", "fitted"] = "trained",
    **search,
) -> Run:
    """A run with ``INPUTS`` to train on."""
    settings = {"mode": "improved", "engine": Trainer(some_system, workdir), "iterations": 1, **search}
    run = make_run(some_system, workdir, seed=seed, **settings)
    reward = dataclasses.replace(run.config.reward, heads=heads)
    config = dataclasses.replace(run.config, offline=offline or run.config.offline, reward=reward)
    return dataclasses.replace(run, host=dataclasses.replace(run.host, splits={"train": INPUTS}), config=config)


def close(run: Run) -> None:
    run.tape.close()
    run.host.folder.close()


def parts(run: Run, groups: Sequence[Group]) -> set[str]:
    return {part_of(one.example_id, run.config.offline.shares) for one in groups}


# Collecting


def test_inputs_are_collected_in_random_order_whatever_they_score(tmp_path: Path) -> None:
    """The base score falls from input to input: taken in the order of the file or by base score, the first inputs would
    be the first or the last twelve of the file."""
    setting = tool("setting", ("q",), lambda q, x: x / 10 - q, grid=(0, 1))
    taken = []
    for seed in (0, 1, 0):
        offline = OfflineConfig(inputs=12, groups=80)
        workdir = tmp_path / str(len(taken))
        run = a_run(system(setting, output="setting_out"), workdir, seed=seed, offline=offline)
        taken.append([int(one.example_id[-4:]) for one in collect_offline(run.host, run.config).groups])
        close(run)
    first, other, again = taken
    assert first == again != other and len(set(first)) == 12
    for numbers in (first, other):
        assert numbers != sorted(numbers) and numbers != sorted(numbers, reverse=True)
        assert 25 < statistics.fmean(numbers) < 55  # of all 80 it is 39.5, of the first or last twelve 5.5 or 73.5


def uneven_system(tried: dict[str, list[int]]) -> System:
    """Four components side by side: other values of ``rich`` change every score, those of ``rare`` every seventh, those
    of ``tied`` the output alone, those of ``alike`` nothing. Notes the inputs of other values in ``tried``."""

    def component(name: str, answer: Callable[[int, int], Any]) -> Any:
        def run(q: int, x: int) -> Any:
            if x:
                tried.setdefault(name, []).append(q)
            return answer(q, x)

        return tool(name, ("q",), run, grid=(0, 1))

    components = (
        component("rich", lambda q, x: x),
        component("rare", lambda q, x: x * (q % 7 == 0)),
        component("tied", lambda q, x: x),
        component("alike", lambda q, x: 0),
    )
    outputs = tuple(one.outputs[0] for one in components)
    return System(components, ("q",), outputs, lambda out, gold: float(out["rich_out"] + out["rare_out"]))


def test_collecting_goes_on_for_a_component_until_it_has_enough_and_says_why_it_ended(tmp_path: Path) -> None:
    tried: dict[str, list[int]] = {}
    run = a_run(uneven_system(tried), tmp_path, offline=OfflineConfig(inputs=80, groups=4, calls=48))
    collected = collect_offline(run.host, run.config)
    close(run)
    assert collected.reasons == {
        "rich": "enough groups with different rewards",
        "rare": "enough groups with different rewards",
        "tied": "its calls are used (config.offline.calls = 48)",
        "alike": "all its candidates are alike",
    }
    # Four inputs at a time. Two candidates each: 48 calls are 24 inputs. Of equal candidates 16 inputs are enough.
    assert {name: len(tried[name]) for name in ("rich", "tied", "alike")} == {"rich": 4, "tied": 24, "alike": 16}
    informative = [q % 7 == 0 for q in tried["rare"]]
    assert len(informative) > 24 and sum(informative[:-4]) < 4 <= sum(informative)


def test_collecting_ends_with_the_inputs(tmp_path: Path) -> None:
    tried: dict[str, list[int]] = {}
    run = a_run(uneven_system(tried), tmp_path, offline=OfflineConfig(inputs=12, groups=4))
    reasons = collect_offline(run.host, run.config).reasons
    close(run)
    assert reasons["rich"] == "enough groups with different rewards"
    assert {reasons[name] for name in ("rare", "tied", "alike")} == {"no more inputs"}
    assert len(tried["rich"]) == 4 and len(tried["rare"]) == 12


# Training

CHAIN = system(tool("a", ("q",), lambda q, x: x, grid=(1, 2)), output="a_out")


def labelled(inputs: Sequence[Example], rewards: tuple[float, float] = (0.0, 1.0), step: str = "now") -> list[Group]:
    """A group of two candidates on every input."""
    first, second = rewards
    return [group(({"a_out": 1}, first), ({"a_out": 2}, second), name=e.id, inputs={"q": step}) for e in inputs]


def test_a_local_reward_learns_from_inputs_for_training_and_stops_by_inputs_for_stopping(tmp_path: Path) -> None:
    run = a_run(CHAIN, tmp_path)
    groups = labelled(INPUTS)
    assert parts(run, groups) == {"train", "stop", "report"}
    train_first(run.host, run.device, run.config, [*groups, *labelled(INPUTS, rewards=(0.5, 0.5))])
    close(run)
    [(learned, stopping)] = run.device.rewards.trainer.calls
    assert (parts(run, learned), parts(run, stopping)) == ({"train"}, {"stop"})
    shares = run.config.offline.shares
    for part, taken in (("train", learned), ("stop", stopping)):
        assert taken == [one for one in groups if part_of(one.example_id, shares) == part]


def test_fitted_heads_learn_from_all_but_report_inputs_and_see_ties(tmp_path: Path) -> None:
    run = a_run(CHAIN, tmp_path, heads="fitted")
    groups = [*labelled(INPUTS[:40]), *labelled(INPUTS[40:], rewards=(0.5, 0.5))]
    single = [dataclasses.replace(one, candidates=one.candidates[:1]) for one in labelled(INPUTS, step="one")]
    train_first(run.host, run.device, run.config, [*groups, *single])
    close(run)
    [(learned, stopping)] = run.device.rewards.trainer.calls
    assert learned == [one for one in groups if part_of(one.example_id, run.config.offline.shares) != "report"]
    assert not stopping


def adapted(workdir: Path, earlier: Sequence[Group], fresh: Sequence[Group], **search: Any) -> tuple[Run, list[Group]]:
    """What an adaptation learns from, that has seen ``earlier`` groups."""
    run = a_run(CHAIN, workdir, adapt="every", **search)
    run = dataclasses.replace(run, device=dataclasses.replace(run.device, rewards=Scored(CHAIN, workdir)))
    state = State(CHAIN.default_configuration(), "first", (*earlier, *fresh), ())
    assert adapt(run.host, run.device, run.config, state, fresh, 0).reward == "trained-1"
    close(run)
    [(learned, stopping)] = run.device.rewards.trainer.calls
    assert not stopping
    return run, learned


class Scored(Trainer):
    """Gives every candidate the same score."""

    def scores(self, name: str, groups: Sequence[Any]) -> list[list[float]]:
        return [[0.0] * len(one.candidates) for one in groups]


def test_an_adaptation_learns_from_inputs_for_training_alone(tmp_path: Path) -> None:
    fresh, earlier = labelled(INPUTS[:20]), labelled(INPUTS, step="before")
    run, learned = adapted(tmp_path, earlier, fresh, buffer=200)
    assert parts(run, fresh) == parts(run, earlier) == {"train", "stop", "report"}
    assert parts(run, learned) == {"train"}
    shares = run.config.offline.shares
    assert len(learned) == sum(part_of(one.example_id, shares) == "train" for one in (*fresh, *earlier))


def test_the_replay_buffer_holds_groups_with_a_pair_alone(tmp_path: Path) -> None:
    train = [one for one in INPUTS if part_of(one.id, OfflineConfig().shares) == "train"]
    tied, paired = labelled(train[:30], (0.5, 0.5), "before"), labelled(train[30:34], step="before")
    fresh = labelled(train[34:36])
    _, learned = adapted(tmp_path, [*tied[:15], *paired, *tied[15:]], fresh, buffer=4)
    assert learned[:2] == fresh
    assert sorted(one.example_id for one in learned[2:]) == [one.example_id for one in paired]


# The align stage


def test_alignment_runs_inputs_for_the_report_alone(tmp_path: Path) -> None:
    seen: list[int] = []
    noting = tool("a", ("q",), lambda q, x: seen.append(q) or x, grid=(1, 2))
    run = a_run(system(noting, output="a_out"), tmp_path)
    config = dataclasses.replace(run.config, align=AlignConfig(inputs=80))
    scorer = SimpleNamespace(
        config=SimpleNamespace(loss=config.reward.loss),
        scores=lambda reward, texts: [[float(text[-1]) for text in one.candidates] for one in texts],
        logliks=lambda texts: [[0.0 for _ in one.candidates] for one in texts],
    )
    device = dataclasses.replace(run.device, rewards=SimpleNamespace(scorer=scorer))
    default = run.host.system.default_configuration()
    rows = align(run.host, device, config, default, "reward")
    close(run)
    report = {e.inputs["q"] for e in INPUTS if part_of(e.id, config.offline.shares) == "report"}
    assert set(seen) == report and 0 < len(report) < 80
    assert rows["a"]["n_inputs"] == len(report)
