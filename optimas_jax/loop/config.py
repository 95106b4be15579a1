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
from optimas_jax.core.objective import Objective
from optimas_jax.core.running.tracking import tracker_names
from optimas_jax.core.schema import ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, Share, from_dict, to_dict
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import digest
from optimas_jax.llm.accounts.ledger import Budget
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.stage_configs import AlignConfig, EvaluateConfig, OfflineConfig, ProbeConfig, RefreshConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.rewards.collect import CollectConfig
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.search.gate import GateConfig
from optimas_jax.search.optimisers.registry import proposer_names
from optimas_jax.search.optimisers.task import Effort

STAGES = ("collect", "train", "optimize", "evaluate")  # stages of a whole run
ALIGN = "align"  # a separate stage, after train or optimize
PROBE = "probe"  # a separate stage, before all others
REFRESH = "refresh"  # a separate stage, after optimize


MODES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "pick": "uniform",
        "adapt": "after_accept",
        "pairs": "two",
        "ranking": "mean",
        "labels": 0,
        "rounds": 1,
        "gate": {"kind": "strict"},
        "proposers": "opro",
        "per_instance": "sample",
    },
    "improved": {
        "pick": "gap",
        "adapt": "on_drift",
        "pairs": "all",
        "ranking": "corrected",
        "labels": 4,
        "rounds": 3,
        "gate": {"kind": "paired"},
        "proposers": "demos,feedback,opro",
        "per_instance": "argmax",
    },
}
# Switches by score. Where no local reward is trained there is nothing to adapt; random numbers and likelihood can
# choose among outputs instead of it.
_WITHOUT_REWARDS: Mapping[str, Mapping[str, str]] = {
    "local": {},
    "random": {"adapt": "never"},
    "likelihood": {"adapt": "never"},
    "own": {"adapt": "never"},
    **{score: {"adapt": "never", "per_instance": "never"} for score in ("oracle", "judge", "off", "global")},
}
_CHOOSES = ("local", "random", "likelihood", "own")  # scores that need neither a run of the system nor a request


@dataclasses.dataclass(frozen=True)
class OptimizeConfig:
    """The host loop (paper, Algorithm 1) and its ablations.

    ``OptimizeConfig.paper`` and ``OptimizeConfig.improved`` set the switches of a mode (``MODES``); every switch can
    be changed on its own. In plain data ``mode`` does the same: ``with_mode`` fills in the switches that are None.

    Attributes:
      mode: the mode of all switches that were not changed.
      components: names to tune, separated by commas; ``all`` for every one.
      iterations: number of iterations of the search (paper: T).
      inputs: training examples per iteration, on which proposals are ranked.
      pick: rule that chooses the next component: ``uniform``, ``gap`` or ``bandit``.
      adapt: when local rewards are trained further: ``after_accept`` of a proposal, in ``every`` iteration on its
        labels, ``on_drift`` (in iterations whose labels they order badly) or ``never``.
      adapt_inputs: training examples drawn anew for each adaptation ``after_accept``.
      pairs: ``all`` ordered pairs of a group, or of ``two`` sampled candidates, the current output not among them.
      start: ``best/`` folder of an earlier run, whose values the search starts from (``setup.start``); or a ``.json``
        file of DSPy or of instructions by component, or such an object itself; "" for the defaults of the system.
      start_names: component for each prompt name in ``start``: NAME=COMPONENT, separated by commas.
      order: components of the first iterations, names separated by commas; then ``pick`` chooses.
      score: score by which proposals are ranked: ``local`` rewards corrected by labels, or a replacement: ``random``
        numbers (a control); the ``likelihood`` of an output under the untrained reward model; the ``oracle``, the
        global reward itself, whose runs of the system are not charged (an upper bound for local rewards); a language
        model as ``judge``, the same as the proposer; ``own``, a function of the user's (``search.hooks``), which is set
        where there is one; ``off`` for the labels alone; or the ``global`` metric on all training inputs on which a
        proposal is tried. Without ``local``, ``adapt`` is ``never``. Random numbers, likelihood and an own function
        also choose outputs and tune weights as local rewards do (controls: by likelihood a policy is rewarded for
        likelier answers); with the others ``per_instance`` is ``never``, and weights are tuned by
        ``policy.reinforce``.
      labels: inputs of an iteration on which every proposal is followed to its global reward, for the correction.
      trial_inputs: inputs on which an optimiser scores a value while it proposes; it scores at most ``trials`` values
        (TPE, MIPRO) or ``depth`` times ``instructions`` (COPRO).
      global_search: components with listed values whose values are ranked by the global metric on all training
        examples, whatever ``score`` is; names separated by commas.
      ranking: of proposals: by the ``mean`` local reward, or by it ``corrected`` where global rewards are known
        (``search.evidence``).
      fewest_groups: least number of groups with different rewards from which a component's trained local reward is
        used; with fewer, its proposals are ranked by their labels alone (``corrected``). A fitted local reward is
        always used: it includes likelihood.
      rounds: rounds of a race. Each doubles the inputs, and only the better half of the proposals enters the next one.
        1 tries all proposals on all inputs.
      proposers: optimisers (``search.optimisers``), separated by commas, all in every iteration: for prompts ``demos``,
        ``opro``, ``copro``, ``mipro``, ``reflect``, ``feedback``, ``random``; for models ``llmselector``, instead of
        trying each. ``random`` alone also draws listed values at random. ``own:NAME`` is a function of the user's
        (``search.hooks``), for values of any kind.
      instructions: instructions that an optimiser requests per step; the breadth of COPRO.
      local_steps: steps of proposing prompts in an iteration, each from the best value of the steps before.
      depth: rounds of COPRO.
      rewrites: requests of reflective rewriting per step.
      trials: points that TPE scores in an iteration, for MIPRO and for grids of more than 32 values.
      per_instance: proposes that a component chooses its model for each input by its local reward: ``argmax``,
        ``sample`` (in proportion to exp(r)) or ``never``.
      best_of: N of best-of-N, proposed for every component: the local reward keeps one of N samples; 0 for never.
      demo_sets: bootstrapped demonstration sets per step, and a third as many of labelled examples; 0 for
        instructions only.
      demo_size: demonstrations per set.
      gate_top: proposals, best first, that the gate may test in an iteration.
      gate: the gate.
      gate_examples: validation examples that the gate compares on, the first of the split; 0 for all of them.
      buffer: groups of earlier rounds mixed into an adaptation of trained heads; fitted ones learn from all groups.
      drift_accuracy: ``on_drift`` trains when pair accuracy on fresh groups is below this.
      max_tokens: prompt and completion tokens, of collecting and of answers from the tape too, after which the search
        stops with the best configuration so far; 0 for no limit.
      objective: weights of a run's costs in its score, and limits on them.
    """

    mode: Literal["paper", "improved"] = "improved"
    components: str = "all"
    iterations: NonNegativeInt = 8
    inputs: PositiveInt = 20
    pick: Literal["uniform", "gap", "bandit"] = "gap"
    adapt: Literal["after_accept", "every", "on_drift", "never"] = "on_drift"
    adapt_inputs: PositiveInt = 20
    pairs: Literal["two", "all"] = "all"
    start: str = ""
    start_names: str = ""
    order: str = ""
    score: Literal["local", "random", "likelihood", "oracle", "judge", "own", "off", "global"] = "local"
    labels: NonNegativeInt = 4
    trial_inputs: PositiveInt = 4
    global_search: str = ""
    ranking: Literal["mean", "corrected"] = "corrected"
    fewest_groups: NonNegativeInt = 4
    rounds: PositiveInt = 3
    proposers: str = "demos,feedback,opro"
    instructions: NonNegativeInt = 3
    local_steps: PositiveInt = 1
    depth: NonNegativeInt = 2
    rewrites: NonNegativeInt = 8
    trials: PositiveInt = 16
    per_instance: Literal["never", "argmax", "sample"] = "argmax"
    best_of: NonNegativeInt = 0
    demo_sets: NonNegativeInt = 3
    demo_size: NonNegativeInt = 3
    gate_top: NonNegativeInt = 2
    gate: GateConfig = GateConfig()
    gate_examples: NonNegativeInt = 0
    buffer: NonNegativeInt = 32
    drift_accuracy: Share = 0.75
    max_tokens: NonNegativeInt = 0
    objective: Objective = Objective()

    def __post_init__(self) -> None:
        proposer_names(self.proposers)
        if not self.chooses and self.best_of:
            raise ValueError(f"best_of needs local rewards, and score is {self.score!r}: set one of them otherwise")
        if self.score == "off" and self.ranking == "mean":
            raise ValueError(
                "score is 'off', and ranking 'mean' ranks by local rewards alone: set ranking to 'corrected'"
            )
        for name, value in _WITHOUT_REWARDS.get(self.score, {}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def paper(cls, **changes: Any) -> OptimizeConfig:
        """The switches of the paper's loop, with changes."""
        return cls._of_mode("paper", changes)

    @classmethod
    def improved(cls, **changes: Any) -> OptimizeConfig:
        """The switches of this project's loop, with changes."""
        return cls._of_mode("improved", changes)

    def for_component(self, name: str) -> OptimizeConfig:
        """Settings of a component's search: by the global metric on all inputs if it is in ``global_search``."""
        if name not in self.searched_globally:
            return self
        return dataclasses.replace(self, score="global", ranking="mean", rounds=1, best_of=0)

    @property
    def chooses(self) -> bool:
        """Whether outputs can be chosen, and weights tuned, by ``score`` while a system runs."""
        return self.score in _CHOOSES

    @property
    def searched_globally(self) -> tuple[str, ...]:
        """The names in ``global_search``."""
        return _names(self.global_search)

    @property
    def first_components(self) -> tuple[str, ...]:
        """The names in ``order``."""
        return _names(self.order)

    @property
    def effort(self) -> Effort:
        """Limits of an optimiser of prompts in one step."""
        return Effort(
            instructions=self.instructions,
            depth=self.depth,
            rewrites=self.rewrites,
            demo_sets=self.demo_sets,
            demo_size=self.demo_size,
            trials=self.trials,
        )

    @classmethod
    def _of_mode(cls, mode: str, changes: Mapping[str, Any]) -> OptimizeConfig:
        gate = GateConfig(**MODES[mode]["gate"])
        return cls(**{**MODES[mode], "gate": gate, **changes, "mode": mode})


def _names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def with_mode(optimize: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of an ``OptimizeConfig``; switches that are None or absent get the values of its ``mode``."""
    data = dict(optimize)
    mode = data.get("mode", "improved")
    for name, value in MODES[mode].items() if mode in tuple(MODES) else ():  # from_dict refuses an unknown mode
        if isinstance(value, Mapping):
            given = data.get(name)
            if given is None or isinstance(given, Mapping):
                data[name] = {**(given or {}), **{key: value[key] for key in value if (given or {}).get(key) is None}}
        elif data.get(name) is None:
            data[name] = value
    return data


def without_mode(optimize: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``with_mode``: switches with their mode's value become None, so that they follow another mode."""
    data, bundle = dict(optimize), {**MODES[optimize["mode"]], **_WITHOUT_REWARDS[optimize["score"]]}
    for name, value in bundle.items():
        if isinstance(value, Mapping):
            data[name] = {key: None if item == value.get(key) else item for key, item in data[name].items()}
        elif data[name] == value:
            data[name] = None
    return data


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
      benchmark: name of a benchmark, or path of a file that defines one (``benchmarks.modules``).
      variant: name, for the banner and results.
      seed: seed of all randomness except the data's.
      concurrency: examples in flight; changes speed, and the request at which a budget cuts a block.
      mesh: devices; (0, 1) puts all of them along ``data``.
      server: server of models called ``openai:NAME``; OpenAI itself without an address.
      anthropic: server of models called ``anthropic:NAME``; Anthropic itself without an address.
      prices: override ``llm.accounts.prices``: ``MODEL=PROMPT/COMPLETION, ...``, US dollars per million tokens.
      budget: the most that all completions of the run folder may cost. The cost of baseline, confirmation and final
        test is set aside from the start.
      stop_grace: seconds for answers in flight after an interrupt or SIGTERM, before they are abandoned.
      trackers: trackers that log the run as it happens (``report.trackers``), separated by commas: ``tensorboard``,
        ``wandb``, ``mlflow``, ``otel``; "" for none.
      traces: files of recorded calls, separated by commas (``traces.read``): they become demonstrations and the first
        candidates of groups (``loop.setup.recordings``).
      system: settings of the benchmark's own class.
      data, proposer, offline, collect, reward, policy, optimize, align, probe, refresh, evaluate: see
        the classes.
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
    stop_grace: PositiveFloat = 30.0
    trackers: str = "tensorboard"
    traces: str = ""
    offline: OfflineConfig = OfflineConfig()
    collect: CollectConfig = CollectConfig()
    policy: PolicyConfig = PolicyConfig()
    optimize: OptimizeConfig = OptimizeConfig()
    align: AlignConfig = AlignConfig()
    probe: ProbeConfig = ProbeConfig()
    refresh: RefreshConfig = RefreshConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self) -> None:
        tracker_names(self.trackers)


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from nested plain data: its ``system`` is parsed by the benchmark's own class, and
    missing switches follow its mode (``with_mode``).

    Raises:
      ConfigError: as ``from_dict``; and for an unknown benchmark, or a data source that it does not have.
    """
    if isinstance(data, Mapping) and isinstance(data.get("optimize"), Mapping):
        data = {**data, "optimize": with_mode(data["optimize"])}
    config = from_dict(RunConfig, data)
    try:
        benchmark = find_benchmark(config.benchmark)
    except BenchmarkError as error:
        raise ConfigError(str(error)) from error
    sources = getattr(benchmark, "SOURCES", ("",))
    if config.data.source not in sources:
        raise ConfigError(
            f"config.data.source is {shown(config.data.source)}; allowed: {', '.join(map(repr, sources))}"
        )
    return dataclasses.replace(config, system=from_dict(settings_class(benchmark), config.system, "config.system"))


def with_overrides(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested plain data with other values at some paths.

    Raises:
      ConfigError: a path continues below a value.
    """
    data = dict(base)
    for path, value in overrides.items():
        name, _, rest = path.partition(".") if isinstance(path, str) else (path, "", "")
        if rest and not isinstance(data.get(name) or {}, Mapping):
            raise ConfigError(f"config.{name} is a value, {shown(data[name])}, and has no field {shown(rest)}")
        data[name] = with_overrides(data.get(name) or {}, {rest: value}) if rest else value
    return data


def overridden(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """A configuration with other settings, by their path, such as ``optimize.iterations``.

    Raises:
      ConfigError: as ``from_dict``.
    """
    plain = to_dict(config)
    data = with_overrides({**plain, "optimize": without_mode(plain["optimize"])}, overrides)
    changed = from_dict(RunConfig, {**data, "optimize": with_mode(data["optimize"])})
    return dataclasses.replace(changed, system=from_dict(type(config.system), changed.system, "config.system"))


def key_of(config: RunConfig) -> str:
    """Digest of all settings, by which a plan and its run are matched."""
    return digest(to_dict(config))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "config") -> list[str]:
    """``path: old -> new`` for every leaf that differs."""
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after, path = old.get(key, "(absent)"), new.get(key, "(absent)"), f"{prefix}.{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, path)
        elif before != after:
            lines.append(f"{path}: {shown(before)} -> {shown(after)}")
    return lines
