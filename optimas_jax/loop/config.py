"""The configuration of a run: frozen dataclasses, each next to the code it configures, gathered here.

``configs/*.py`` fill these in and hand them to ``ml_collections`` as plain data; ``parse_config`` turns the data back.
Library code sees the dataclasses only. A field is declared once, where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.modules import BenchmarkError, find_benchmark, settings_class
from optimas_jax.core.plain import ConfigError, from_dict
from optimas_jax.core.ranges import NonNegativeInt, PositiveInt, Share
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.ledger import Budget
from optimas_jax.llm.remote import ServerConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.search.gate import GateConfig
from optimas_jax.search.proposers import proposer_names

STAGES = ("collect", "train", "optimize", "evaluate")


@dataclasses.dataclass(frozen=True)
class OptimizeConfig:
    """The host loop (paper, Algorithm 1) and its ablations.

    ``mode`` fills in every switch that is left empty: ``paper`` or ``improved`` (see ``loop.iteration.MODES``).

    Attributes:
      mode: bundle of switches.
      components: names to tune, separated by commas; ``all`` for every one.
      iterations: T.
      inputs: training examples per iteration, for adaptation and for ranking proposals.
      pick: which component next: ``uniform``, ``gap`` or ``bandit``.
      adapt: when local rewards are trained further: ``after_accept`` of a proposal, in ``every`` iteration on what the
        proposals make, ``on_drift`` (the same, where they do not order it well) or ``never``.
      pairs: ``all`` ordered pairs of a group, or the ``two`` first candidates only.
      score: what ranks proposals: ``local`` rewards, or the ``global`` metric on training inputs, for which nothing is
        collected or trained.
      ranking: of proposals: by the ``mean`` local reward, or by it ``corrected`` where global rewards are known
        (``search.evidence``).
      rounds: in which proposals are tried, each on twice as many of the inputs as the one before; only the better half
        goes on. 0 for the mode's.
      proposers: optimisers of prompts (``search.proposers``), separated by commas, all in every iteration: ``demos``,
        ``opro``, ``copro``, ``mipro``, ``reflect``, ``random``. ``random`` alone draws listed values blindly, too.
      instructions: that an optimiser asks for in an iteration; the breadth of COPRO.
      depth: rounds of COPRO.
      rewrites: of reflective rewriting in an iteration.
      trials: points that TPE scores in an iteration, for MIPRO and for grids of more than 32 values.
      per_instance: how a component that chooses a model may choose one for each input, by its local reward: ``argmax``,
        ``sample`` (in proportion to exp(r)) or ``never``.
      best_of: samples of which the local reward keeps one, proposed for every component; 0 for no such proposals.
      demo_sets: bootstrapped demonstration sets per iteration, and a third as many of labelled examples; 0 for
        instructions only.
      demo_size: demonstrations of a set.
      demo_min_reward: least global reward of a trajectory that demonstrations are taken from.
      gate_top: this many proposals, the best first, may pay for the gate in an iteration.
      gate: the gate.
      buffer: groups of earlier rounds mixed into an adaptation.
      drift_accuracy: ``on_drift`` trains when pair accuracy on fresh groups is below this.
      max_tokens: prompt and completion tokens after which the search stops with the best so far, those of collecting
        and those from the tape included; 0 for no limit.
    """

    mode: Literal["paper", "improved"] = "improved"
    components: str = "all"
    iterations: NonNegativeInt = 8
    inputs: PositiveInt = 20
    pick: Literal["", "uniform", "gap", "bandit"] = ""
    adapt: Literal["", "after_accept", "every", "on_drift", "never"] = ""
    pairs: Literal["", "two", "all"] = ""
    score: Literal["local", "global"] = "local"
    ranking: Literal["", "mean", "corrected"] = ""
    rounds: NonNegativeInt = 0
    proposers: str = ""
    instructions: NonNegativeInt = 3
    depth: NonNegativeInt = 2
    rewrites: NonNegativeInt = 8
    trials: PositiveInt = 16
    per_instance: Literal["", "never", "argmax", "sample"] = ""
    best_of: NonNegativeInt = 0
    demo_sets: NonNegativeInt = 3
    demo_size: NonNegativeInt = 3
    demo_min_reward: float = 0.5
    gate_top: NonNegativeInt = 2
    gate: GateConfig = GateConfig()
    buffer: NonNegativeInt = 32
    drift_accuracy: Share = 0.75
    max_tokens: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.proposers:
            proposer_names(self.proposers)
        if self.score == "global" and self.best_of:
            raise ValueError("best_of needs local rewards, and score is 'global': set one of them otherwise")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What the evaluate stage measures.

    Attributes:
      folder: a saved ``best/`` folder; empty for the run's own.
      split: ``val`` or ``test``.
      repeats: runs of every example, each with fresh sampling seeds.
      changes: also runs the system after each accepted change, to say what each brought.
    """

    folder: str = ""
    split: Literal["val", "test"] = "test"
    repeats: PositiveInt = 1
    changes: bool = True


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """Which training examples the offline groups come from.

    Attributes:
      inputs: training examples, from the first on.
      calls: most component calls that one candidate per example may cost, for each component; 0 for no limit. A
        candidate costs a call of its component and of everything behind it, so components at the front are tried on
        fewer examples, best base runs first.
      held_out: share of inputs that no local reward is trained on.
    """

    inputs: PositiveInt = 50
    calls: NonNegativeInt = 0
    held_out: Share = 0.3


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on.

    Attributes:
      benchmark: name of a benchmark, or path of a file that defines one (``benchmarks.modules``).
      variant: name, for the banner and results.
      seed: names all randomness but that of the data.
      concurrency: examples in flight; changes speed only.
      mesh: devices; (0, 1) puts all of them along ``data``.
      server: answers for models called ``openai:NAME``; OpenAI itself without an address.
      anthropic: answers for models called ``anthropic:NAME``; Anthropic itself without an address.
      prices: in place of those of ``llm.prices``: ``MODEL=PROMPT/COMPLETION, ...``, US dollars per million tokens.
      budget: the most that all completions of the run folder may cost.
      system: settings of the benchmark's own class.
      data, proposer, offline, collect, reward, policy, optimize, evaluate: see the classes.
    """

    benchmark: str
    variant: str
    system: Any
    proposer: LanguageModel
    reward: RewardConfig
    data: DataConfig
    seed: int = 0
    concurrency: PositiveInt = 32
    mesh: MeshConfig = MeshConfig()
    server: ServerConfig = ServerConfig()
    anthropic: ServerConfig = ServerConfig()
    prices: str = ""
    budget: Budget = Budget()
    offline: OfflineConfig = OfflineConfig()
    collect: CollectConfig = CollectConfig()
    policy: PolicyConfig = PolicyConfig()
    optimize: OptimizeConfig = OptimizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from nested plain data, its ``system`` by the benchmark's own class.

    Raises:
      ConfigError: as ``from_dict``; and for an unknown benchmark, or a data source that it does not have.
    """
    config = from_dict(RunConfig, data)
    try:
        benchmark = find_benchmark(config.benchmark)
    except BenchmarkError as error:
        raise ConfigError(str(error)) from error
    sources = getattr(benchmark, "SOURCES", ("",))
    if config.data.source not in sources:
        raise ConfigError(f"config.data.source is {config.data.source!r}; allowed: {', '.join(map(repr, sources))}")
    return dataclasses.replace(config, system=from_dict(settings_class(benchmark), config.system, "config.system"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "config") -> list[str]:
    """``path: old -> new`` for every leaf that differs."""
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after, path = old.get(key, "(absent)"), new.get(key, "(absent)"), f"{prefix}.{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, path)
        elif before != after:
            lines.append(f"{path}: {before!r} -> {after!r}")
    return lines
