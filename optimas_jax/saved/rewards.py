"""The local rewards of a run: they score given outputs, and choose among several outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.core.schema import from_dict
from optimas_jax.core.selection import OWN_REWARD
from optimas_jax.core.system import System
from optimas_jax.core.values import Configuration, PerInstance, PromptSpace, Value
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.hooks.settings import hooks_of
from optimas_jax.loop.journal import CHECKPOINTS, REWARDS, reward_name
from optimas_jax.presets import EMBEDDED
from optimas_jax.programs.program import Program
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.pairs import count_informative
from optimas_jax.rewards.split import Shares, part_of
from optimas_jax.saved.folder import Saved, read_folder
from optimas_jax.saved.models import make_engines
from optimas_jax.saved.source import LOCAL_REWARD, has_source, import_source
from optimas_jax.saved.system import build, observed_fields

if TYPE_CHECKING:
    from optimas_jax.engine.pool import Engines
    from optimas_jax.rewards.scorer import InstanceScorer, RewardScorer


_AT_ONCE = 32  # calls of an own local reward


class NoLocalReward(ValueError):
    """The run trained no local reward of a component; the message has the way out."""


@dataclasses.dataclass(frozen=True)
class LocalReward:
    """The local reward of one component.

    Attributes:
      component: its name.
      name: of the checkpoint in the run's folder.
    """

    component: str
    name: str
    _system: System = dataclasses.field(repr=False)
    _scorer: RewardScorer = dataclasses.field(repr=False)

    def score(self, inputs: Mapping[str, Any], outputs: Sequence[Any]) -> list[float]:
        """Scores of candidate outputs on one input, higher is better. Scores of different inputs are not comparable.

        Args:
          inputs: fields that the component reads.
          outputs: candidates: texts or other values, or fields by name for a component that has several fields.

        Raises:
          ValueError: an input is missing or unknown, or an output does not have the fields of the component.
        """
        from optimas_jax.rewards.scorer import score_outputs

        node = self._system.by_name[self.component]
        if node.inputs and set(node.inputs) != set(inputs):
            raise ValueError(f"{self.component!r} reads {', '.join(node.inputs)}; given are {', '.join(inputs)}")
        if isinstance(outputs, str):
            raise ValueError(
                f"expected a list of candidate outputs of {self.component!r}; got one text: put it in a list"
            )
        fields = [self._fields(output, node.outputs) for output in outputs]
        if not fields:
            return []
        [scores] = score_outputs(self._scorer, self._system, self.name, self.component, [(inputs, fields)])
        return scores

    def under(self, name: str) -> LocalReward:
        """The local reward under another name, an earlier one of the run; raises ``StopRun`` if there is none."""
        self._scorer.check(name)
        return dataclasses.replace(self, name=name)

    def _fields(self, output: Any, names: Sequence[str]) -> Mapping[str, Any]:
        """An output as fields; ``names`` are empty where the run did not see the component in its first runs."""
        if isinstance(output, Mapping):
            if names and set(output) != set(names):
                raise ValueError(
                    f"{self.component!r} has the fields {', '.join(names)}; given are {', '.join(map(str, output))}"
                )
            return output
        if len(names) > 1:
            raise ValueError(f"{self.component!r} has the fields {', '.join(names)}: give candidates as dicts of them")
        return {names[0] if names else self.component: output}


class LocalRewards(Mapping[str, LocalReward]):
    """The local rewards of a run by component."""

    def __init__(self, rewards: Mapping[str, LocalReward]):
        self._rewards = dict(rewards)

    def __getitem__(self, component: str) -> LocalReward:
        if component not in self._rewards:
            raise KeyError(f"no local reward of {component!r}; there are those of {', '.join(self)}")
        return self._rewards[component]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rewards)

    def __len__(self) -> int:
        return len(self._rewards)

    def __repr__(self) -> str:
        return f"LocalRewards({', '.join(self)})"


def load_reward(folder: str | Path, program: Program | System | Callable[..., Any] | None = None) -> LocalRewards:
    """The last local reward of a run, by component.

    Args:
      folder: of the run, or its ``best/``.
      program: as in ``load``.

    Raises:
      FolderError: as ``load``.
      NoLocalReward: the run trained none.

    Example:
      ```python
      rewards = oj.load_reward("runs/rag")
      rewards["answer"].score({"question": "Where is Lima?"}, ["In Peru.", "Lima"])
      ```
    """
    from optimas_jax.report.notebook import keep_libraries_quiet

    keep_libraries_quiet()
    saved = read_folder(folder)
    system = build(saved, program).system
    components = trained_components(saved, system)
    scorer, name = _reward_scorer(saved, system, make_engines()), reward_name(saved.run, saved.configuration)
    scorer.check(name)
    return LocalRewards({component: LocalReward(component, name, system, scorer) for component in components})


def trained_components(saved: Saved, system: System) -> list[str]:
    """Components whose local reward the run trained; raises ``NoLocalReward`` without any."""
    counts = _trained(saved, system)
    if not any(counts.values()):
        raise NoLocalReward(_why_none(saved, counts))
    return [name for name in system.tunable if counts[name]]


def with_best_of(
    saved: Saved,
    system: System,
    configuration: Configuration,
    best_of: int | Mapping[str, int],
    *,
    served: bool = False,
) -> Configuration:
    """A configuration in which components choose among N samples by their local rewards.

    Args:
      served: whether a server computes local rewards; it knows which it has, so that nothing is checked here.

    Raises:
      NoLocalReward: the run trained no local reward of such a component.
      ValueError: for less than two samples, or a component that cannot be sampled.
    """
    if not best_of:
        return configuration
    seen = observed_fields(saved)
    order = [*seen, *(name for name in system.order if name not in seen)]
    prompts = [name for name in order if name in system.tunable and _has_prompt(system, name)]
    if isinstance(best_of, int):
        if not prompts:
            raise ValueError(f"best_of is {best_of}, and no component has a prompt: name one, as in {{'NAME': 8}}")
        best_of = {prompts[-1]: best_of}
    reward = reward_name(saved.run, saved.configuration) or "served"
    temperature = from_dict(CollectConfig, saved.settings.get("collect", {}), "config.collect").temperature
    trained = None if served or reward == OWN_REWARD else _trained(saved, system)
    for name, samples in best_of.items():
        if name not in configuration or isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
            raise ValueError(
                f"best_of is {dict(best_of)}: expected 2 or more samples of a component, one of "
                + ", ".join(configuration)
            )
        if trained is not None and not trained[name]:
            raise NoLocalReward(f"best_of={samples} of {name!r} needs its local reward: {_why_none(saved, trained)}")
        value = _single(name, configuration[name])
        choice = PerInstance((value,), reward, samples, temperature=temperature)  # type: ignore[arg-type]
        configuration = configuration.replace(name, choice)
    return configuration


def scorer_of(saved: Saved, system: System, configuration: Configuration, engines: Engines) -> InstanceScorer | None:
    """The scorer of the local rewards by which values choose among outputs; None if no value does."""
    if not any(isinstance(value, PerInstance) for value in configuration.values()):
        return None
    from optimas_jax.rewards.scorer import InstanceScorer

    scorer = _reward_scorer(saved, system, engines)
    if any(isinstance(value, PerInstance) and value.reward == OWN_REWARD for value in configuration.values()):
        from optimas_jax.loop.hooks.local_reward import with_own_scores

        scorer = with_own_scores(scorer, own_reward(saved), Tape(Path(":memory:")), _AT_ONCE)
    return InstanceScorer(scorer, system, saved.seed)


def own_reward(saved: Saved) -> Callable[..., Any]:
    """The user's own local reward by which a saved configuration chooses among outputs: the function of the run, or the
    function in ``HOOKS`` of its file.

    Raises:
      SourceError: it cannot be imported.
    """
    benchmark = saved.settings.get("benchmark", "")
    if not has_source(saved.run) and benchmark.endswith(".py"):
        function = hooks_of(find_benchmark(benchmark)).local_reward
        if function is not None:
            return function
    return import_source(saved.run, LOCAL_REWARD)


def _reward_scorer(saved: Saved, system: System, engines: Engines) -> RewardScorer:
    """The scorer of a run's local rewards, with the checkpoints of the run or, for a lone ``best/`` folder, its own."""
    from optimas_jax.learn.store import CheckpointStore
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.rewards.engine import reward_engine

    settings = saved.settings.get("reward")
    config = RewardConfig(EMBEDDED) if settings is None else from_dict(RewardConfig, settings, "config.reward")
    in_run = saved.run / CHECKPOINTS
    store = CheckpointStore(in_run if in_run.is_dir() else saved.folder / REWARDS)
    memo = Tape(Path(":memory:"))  # scores that were computed already, until the end of the process
    return reward_engine(config, system.tunable, engines, memo, store, ConsoleProgress(quiet=True)).scorer


def _has_prompt(system: System, name: str) -> bool:
    return isinstance(system.by_name[name].space, PromptSpace)


def _single(name: str, value: Value) -> Value:
    """The value that is sampled: ``value`` itself, or its only value where it already chooses among samples of one."""
    if not isinstance(value, PerInstance):
        return value
    first, *others = value.values
    if others:
        raise ValueError(f"{name!r} chooses among values for every input already: best_of is of a single one")
    return first


def _trained(saved: Saved, system: System) -> dict[str, int]:
    """Number of groups with different rewards by tunable component, from which its local reward was trained."""
    from optimas_jax.rewards.data import load_groups

    if not reward_name(saved.run, saved.configuration) or saved.settings.get("optimize", {}).get("score") != "local":
        return dict.fromkeys(system.tunable, 0)
    reward = from_dict(RewardConfig, saved.settings["reward"], "config.reward")
    shares = from_dict(Shares, saved.settings["offline"].get("shares", {}), "config.offline.shares")
    learned_from = ("train", "stop") if reward.heads == "fitted" else ("train",)
    folders = [folder for folder in (saved.run / "groups").glob("*") if folder.is_dir() and not folder.suffix]
    groups = [group for folder in folders for group in load_groups(folder) or ()]
    learnable = [group for group in groups if part_of(group.example_id, shares) in learned_from]
    return {name: count_informative(learnable, name, reward.loss.threshold) for name in system.tunable}


def _why_none(saved: Saved, counts: Mapping[str, int]) -> str:
    score = saved.settings.get("optimize", {}).get("score")
    if score != "local":
        where = f"config.optimize.score is {score!r}" if score else f"there is no config.json in {saved.run}"
        return f"{saved.run} trained none, as {where}; a run with 'local' trains them"
    names = ", ".join(name for name, count in counts.items() if count)
    return (
        f"{saved.run} trained none of it, as it saw no two outputs of it with different rewards; it has those of "
        f"{names or 'no component'}. More inputs to collect on (config.offline) give more"
    )
