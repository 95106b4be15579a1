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

    ``OptimizeConfig.paper`` and ``OptimizeConfig.improved`` set the switches of a mode (``MODES``). Every switch can be
    changed on its own. In plain data ``mode`` does the same: ``with_mode`` fills in the switches that are None.

    Attributes:
      mode: preset for all switches that are not set themselves.
      components: names of the components to tune, separated by commas; ``all`` for every tunable one.
      iterations: number of iterations of the search (paper: T).
      inputs: number of training examples in an iteration, on which proposals are ranked.
      pick: rule that chooses the next component: ``uniform``, ``gap`` or ``bandit``.
      adapt: when local rewards are trained further. ``after_accept``: after a proposal is accepted. ``every``: in every
        iteration, on its labels. ``on_drift``: in iterations whose labels they order badly. ``never``: not at all.
      adapt_inputs: number of training examples drawn anew for each adaptation with ``after_accept``.
      pairs: pairs of candidates that local rewards are trained on. ``all``: all ordered pairs of a group. ``two``: two
        samples of the value in use; for listed values an output of the value in use and one of another value.
      start: where the search starts. ``best/`` folder of an earlier run (``setup.start``); or a ``.json`` file of DSPy;
        or a ``.json`` file of instructions by component; or the object of such a file. "" for the system's defaults.
      start_names: component for each prompt name in ``start``: NAME=COMPONENT, separated by commas.
      order: names of the components of the first iterations, separated by commas. Afterwards ``pick`` chooses.
      score: score that ranks proposals.
        ``local``: local rewards, corrected by labels.
        ``random``: random numbers, a control.
        ``likelihood``: likelihood of an output under the untrained reward model.
        ``oracle``: the global reward itself, an upper bound for local rewards; its runs of the system are not charged.
        ``judge``: a language model as judge, the same model as the proposer.
        ``own``: a function of the user's (``search.hooks``); set automatically where there is one.
        ``off``: labels alone.
        ``global``: the metric on all training inputs on which a proposal is tried.
        With any score but ``local``, ``adapt`` is ``never``. With ``random``, ``likelihood`` and ``own`` the score also
        chooses outputs and tunes weights, as a local reward does; by likelihood a policy is rewarded for likelier
        answers. With ``oracle``, ``judge``, ``off`` and ``global``, ``per_instance`` is ``never``, and weights are
        tuned by ``policy.reinforce``.
      labels: number of inputs in an iteration on which every proposal gets its global reward, to correct the ranking.
      trial_inputs: number of inputs on which an optimiser scores a value while it proposes. It scores at most
        ``trials`` values (TPE, MIPRO) or ``depth`` times ``instructions`` (COPRO).
      global_search: names of components with listed values that are always ranked by the global metric on all training
        examples, whatever ``score`` is; separated by commas.
      ranking: how proposals are ranked: by the ``mean`` local reward, or by the mean ``corrected`` with known global
        rewards (``search.evidence``).
      fewest_groups: least number of groups with different rewards for a component's trained local reward to be used.
        With fewer, labels alone rank its proposals (``corrected``). A fitted local reward is always used, because it
        includes likelihood.
      rounds: number of rounds of a race. Each round doubles the inputs, and only the better half of the proposals
        enters the next one. 1 tries all proposals on all inputs.
      proposers: optimisers (``search.optimisers``), separated by commas; all propose in every iteration. For prompts:
        ``demos``, ``opro``, ``copro``, ``mipro``, ``reflect``, ``feedback``, ``random``. For models: ``llmselector``,
        instead of trying each. ``random`` alone also draws listed values at random. ``own:NAME`` is a function of the
        user's (``search.hooks``), for values of any kind.
      instructions: number of instructions that an optimiser requests per step; the breadth of COPRO.
      local_steps: number of steps of proposing prompts in an iteration. Each step starts from the best value so far.
      depth: number of rounds of COPRO.
      rewrites: number of requests of reflective rewriting per step.
      trials: number of points that TPE scores in an iteration, for MIPRO and for grids of more than 32 values.
      per_instance: how a component chooses its model for each input, which is a proposal of its own: ``argmax`` takes
        the highest local reward r, ``sample`` draws in proportion to exp(r), ``never`` proposes no such choice.
      best_of: N of best-of-N, which is proposed for every component: the local reward keeps one of N samples. 0 for
        never.
      demo_sets: number of bootstrapped demonstration sets per step. A third as many sets of labelled examples are
        added. 0 for instructions only.
      demo_size: number of demonstrations in a set.
      gate_top: largest number of proposals that the gate tests in an iteration, best first.
      gate: the test that accepts or refuses a proposal.
      gate_examples: number of validation examples that the gate compares on, from the start of the split; 0 for all.
      buffer: number of groups from earlier rounds that are added when trained heads are adapted. Fitted heads learn
        from all groups.
      drift_accuracy: ``on_drift`` trains if the pair accuracy on fresh groups is below this.
      max_tokens: prompt and completion tokens after which the search stops with the best configuration so far.
        Collecting and answers from the tape count. 0 for no limit.
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
      variant: name of the variant, shown in the banner and in results.
      seed: seed of all randomness except the data's.
      concurrency: number of examples in flight. It changes speed, and the request at which a budget cuts a block.
      mesh: devices; (0, 1) puts all of them along ``data``.
      server: server of models called ``openai:NAME``; without an address OpenAI itself.
      anthropic: server of models called ``anthropic:NAME``; without an address Anthropic itself.
      prices: prices that replace ``llm.accounts.prices``: ``MODEL=PROMPT/COMPLETION, ...``, US dollars per million
        tokens.
      budget: limits on all completions of the run folder. The cost of baseline, confirmation and final test is set
        aside from the start.
      stop_grace: seconds to wait for answers in flight after an interrupt or SIGTERM; later answers are abandoned.
      trackers: trackers that log the run as it happens (``report.trackers``), separated by commas: ``tensorboard``,
        ``wandb``, ``mlflow``, ``otel``; "" for none.
      traces: files of recorded calls, separated by commas (``traces.read``). The calls become demonstrations and the
        first candidates of groups (``loop.setup.recordings``).
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
