"""A rehearsal: the stages of a run, in a temporary folder, with imagined models instead of true ones.

All decisions of the loop are made here too: rounds of a race, looks of a gate, limits of a budget, repeated requests.
Nothing is loaded, trained or sent.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.benchmarks.modules import Benchmark
from optimas_jax.core.system import System
from optimas_jax.core.types import Outcome, digest
from optimas_jax.core.usage import Usage
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.speed import EngineSpeed
from optimas_jax.llm.accounts.prices import Price, price_of
from optimas_jax.llm.base import Completion, CompletionRequest, FunctionCall, Returned, Tokens
from optimas_jax.llm.sandbox import Execution, ExecutionRequest
from optimas_jax.llm.specs import provider
from optimas_jax.loop.budget import read_curve
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.context import Device, Run
from optimas_jax.loop.forecast.imagined import (
    ImaginedSystem,
    World,
    draw,
    imagined_length,
    imagined_tokens,
    is_random,
    made_up,
)
from optimas_jax.loop.forecast.imagined_engine import ImaginedEngine
from optimas_jax.loop.forecast.imagined_hooks import imagined_hooks
from optimas_jax.loop.forecast.lengths import FirstRequests
from optimas_jax.loop.forecast.rates import Counter, server_seconds
from optimas_jax.loop.journal import ADAPTERS, CHECKPOINTS, OPTIMIZED
from optimas_jax.loop.stages import open_run, run_stage
from optimas_jax.parallel.platform import default_compute, forgets_programs
from optimas_jax.policy.engine import PolicyEngine, Update
from optimas_jax.rewards.engine import RewardEngine
from optimas_jax.rewards.scorer import InstanceScorer, RewardScorer, ScoredGroup
from optimas_jax.rewards.text import TextGroup
from optimas_jax.sandbox.unittests import Verdict
from optimas_jax.search.gate import GateConfig
from optimas_jax.search.hooks import Hooks


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Results of a rehearsal.

    Attributes:
      used: costs by step and role (``llm.accounts.bill``).
      iterations: number of iterations of the search.
      states: number of configurations of the search, the default included.
      confirmed: whether the last one, or an earlier one, was confirmed.
      cut: number of the iteration in which a budget ended the search; None if none did.
    """

    used: Mapping[str, Mapping[str, Usage]]
    iterations: int = 0
    states: int = 1
    confirmed: bool = False
    cut: int | None = None


class Quiet:
    """Progress that is shown nowhere."""

    def line(self, text: str) -> None:
        pass

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        yield lambda: None


@dataclasses.dataclass
class ImaginedModel:
    """A completer that answers requests with made-up texts, and with the expected costs of true ones.

    Attributes:
      world: assumptions on answers.
      count: counts the tokens of a prompt.
      speeds: of each local model; others are on servers, or take no time.
      prices: ``config.prices``.
      first: gets all requests.
      settle: ``Tape.settle`` of the rehearsal's tape; ``rehearse`` sets it.
    """

    world: World
    count: Counter
    speeds: Mapping[str, EngineSpeed]
    prices: Mapping[str, Price]
    first: FirstRequests = dataclasses.field(default_factory=FirstRequests)
    settle: Callable[[], Awaitable[None]] | None = None
    _in_flight: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # by model
    _engines: dict[str, ImaginedEngine] = dataclasses.field(default_factory=dict)

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request with a made-up text, or "" where the answer is not usable."""
        prompt, answer = self.count(request), imagined_tokens(request, self.world)
        self.first.see(request)
        price = price_of(request.model, self.prices)
        usable = is_random(request) or draw("usable", request.key) < self.world.usable
        return Completion(
            made_up("", request.key[:8], imagined_length(request, self.world)) if usable else "",
            Outcome.OK,
            prompt,
            answer,
            seconds=self.world.speed * await self._seconds(request, prompt, answer),
            usd=price.usd(prompt, answer) if price else 0.0,
            tokens=Tokens((1,), (1,), (0.0,)) if request.tokens else None,
        )

    async def _seconds(self, request: CompletionRequest, prompt: int, answer: int) -> float:
        """Seconds of an answer of so many tokens."""
        model = request.model
        if model in self.speeds:
            if model not in self._engines:
                assert self.settle is not None
                self._engines[model] = ImaginedEngine(self.speeds[model], default_compute(), self.settle)
            return await self._engines[model].answer(request, prompt, answer)
        if not provider(model):
            return 0.0
        self._in_flight[model] += 1
        try:
            await asyncio.sleep(0)  # requests that are sent together are in flight together
            seconds = server_seconds(answer, self._in_flight[model])
            await asyncio.sleep(0)  # until all of them have seen each other
            return seconds
        finally:
            self._in_flight[model] -= 1

    def forget_programs(self) -> None:
        """See ``engine.pool.Engines.forget_programs``."""
        for engine in self._engines.values() if forgets_programs() else ():
            engine.forget_programs()

    def prompt_tokens(self, request: CompletionRequest) -> int:
        return self.count(request)

    async def execute(self, request: ExecutionRequest) -> Execution:
        return Execution(Verdict("failed", (), {}))

    async def call(self, request: FunctionCall) -> Returned:
        return Returned({})


class _Rewards:
    """Trains nothing, and scores at random: trainer and scorer of local rewards."""

    def __init__(self, config: RunConfig, folder: Path):
        self.config, self._folder, self._names = config.reward, folder / CHECKPOINTS, itertools.count()
        self.trainer = self.scorer = self

    def train(self, *arguments: Any, **settings: Any) -> tuple[str, dict[str, Any]]:
        name = f"imagined-{next(self._names)}"
        (self._folder / name).mkdir(parents=True)  # exists because a saved configuration copies what it names
        return name, {"history": []}

    def scores(self, reward: str, groups: Sequence[TextGroup]) -> list[list[float]]:
        return [[draw(group.prefix, text) for text in group.candidates] for group in groups]

    def logliks(self, groups: Sequence[TextGroup]) -> list[list[float]]:
        return self.scores("", groups)

    def held_out(self, reward: str) -> dict[str, list[ScoredGroup]]:
        return {}

    def check(self, reward: str) -> None:
        pass


class _Policies:
    """Updates no weights: every update names another, empty adapter."""

    def __init__(self, config: Any, folder: Path):
        self.config, self._folder = config, folder / ADAPTERS

    def start(self, adapter: str) -> str:
        return f"adapter:{adapter}"

    def update(self, parent: str, rollout: Any, seed: int) -> Update:
        name = digest(parent, seed)
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        return Update(name, name, {"kl": 0.0, "skipped": 0.0, "served_difference": 0.0, "served_limit": 0.0})

    def kl(self, state: str, rollout: Any) -> float:
        return 0.0


def rehearse(
    config: RunConfig,
    system: System,
    data: Dataset,
    stages: Sequence[str],
    world: World,
    model: ImaginedModel,
    hooks: Hooks | None = None,
) -> Rehearsal:
    """Runs stages in an imagined world.

    Raises:
      ValueError, StopRun: as the stages before anything is spent: for a budget below the price of the measurements, for
        example.
    """
    examples = [example for split in data.splits.values() for example in split]
    imagined = ImaginedSystem(system, examples, config.seed, world).system
    gate = GateConfig("none") if world.accepts else config.optimize.gate
    config = dataclasses.replace(config, optimize=dataclasses.replace(config.optimize, start="", gate=gate))
    stand_ins = imagined_hooks(hooks or Hooks(), config.optimize.instructions, accepts=world.accepts)
    benchmark = Benchmark("imagined", lambda settings: data, lambda dataset, settings: imagined, HOOKS=stand_ins)
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, reserve=0))
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(temporary) / "run"
        with open_run(whole, workdir, Quiet(), model, benchmark=benchmark, command="rehearsal") as opened:
            run = _on_nothing(opened, model)
            for stage in stages:
                run_stage(run, stage)
                run.engines.forget_programs()
            search = run.host.folder.read(OPTIMIZED)
            used = run.host.ledger.bill.used
        if search is None:  # only the probe was rehearsed
            return Rehearsal(used)
        points = [point["at"] for point in read_curve(workdir)]
        return Rehearsal(
            used,
            iterations=points.count("iteration"),
            states=1 + len(search["accepted"]),
            confirmed=bool((search["confirmed"] or {}).get("changes")),
            cut=points.count("iteration") if "end" in points else None,
        )


class _Engines:
    """The engines of a run whose models are imagined."""

    def __init__(self, model: ImaginedModel):
        self.forget_programs = model.forget_programs


def _on_nothing(run: Run, model: ImaginedModel) -> Run:
    """The run without devices, whose requests the imagined model answers."""
    model.settle = run.tape.settle
    rewards = cast(RewardEngine, _Rewards(run.config, run.host.folder.path))
    policies = cast(PolicyEngine, _Policies(run.device.policies.config, run.host.folder.path))
    scorer = InstanceScorer(cast(RewardScorer, rewards), run.host.system, run.config.seed)
    host = dataclasses.replace(run.host, system=dataclasses.replace(run.host.system, scorer=scorer))
    return dataclasses.replace(run, host=host, device=Device(rewards, policies), engines=cast(Engines, _Engines(model)))
