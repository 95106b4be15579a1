"""The parts of a run, which every stage gets (``loop.setup.build``)."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from optimas_jax.benchmarks.data import Dataset
from optimas_jax.core.progress import Progress
from optimas_jax.core.running.event_loop import Waiting
from optimas_jax.core.running.execution import Job, gather, run_many
from optimas_jax.core.running.watch import tell_waits
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome, Trace
from optimas_jax.core.usage import Usage
from optimas_jax.engine.pool import Engines
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.folder.record import Record
from optimas_jax.loop.journal import RunFolder
from optimas_jax.policy.engine import PolicyEngine
from optimas_jax.rewards.engine import RewardEngine
from optimas_jax.search.hooks import Hooks
from optimas_jax.traces.read import TraceFiles

_PRICES = ("first", "baseline", "final", "largest")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Price:
    """The most that measurements are expected to cost.

    Attributes:
      baseline_runs: runs of the system for the validation of the default.
      confirm_runs, test_runs: runs for confirmation and final test under each of two configurations, the default and
        the last one.
      first: cost of the first runs on training inputs, from which the cost of a run is known.
      baseline: cost of the validation of the default.
      final: cost of confirmation and final test under both configurations.
      largest: highest cost of one request, measure by measure.
    """

    baseline_runs: int = 0
    confirm_runs: int = 0
    test_runs: int = 0
    first: Usage = Usage()
    baseline: Usage = Usage()
    final: Usage = Usage()
    largest: Usage = Usage()

    @property
    def final_runs(self) -> int:
        """Runs of confirmation and final test together, under each configuration."""
        return self.confirm_runs + self.test_runs

    @property
    def least(self) -> Usage:
        """The least that ``config.budget`` must allow."""
        return self.first + self.baseline + self.final

    def to_json(self) -> dict[str, Any]:
        runs = {name: getattr(self, name) for name in ("baseline_runs", "confirm_runs", "test_runs")}
        return {**runs, **{name: getattr(self, name).to_json() for name in _PRICES}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Price:
        usages = [Usage.from_json(data[name]) for name in _PRICES]
        return cls(data["baseline_runs"], data["confirm_runs"], data["test_runs"], *usages)


@dataclasses.dataclass(frozen=True)
class Host:
    """The parts that run the system and record its runs.

    Attributes:
      system: its requests go to the tape.
      completer: the same completer, for proposers.
      splits: examples by split.
      components: names that may be tuned, in the system's order.
      folder, ledger, progress: see their classes.
      seed: seed of all randomness except the data's.
      concurrency: calls in flight; changes speed, and under a budget the request at which it ends (``RunConfig``).
      max_tokens: limit of collecting and the search together; 0 for no limit.
      price: cost of the run's measurements, where ``config.budget`` limits them.
      stop_grace: seconds for answers in flight after an interrupt.
      judge: the language model that scores outputs where ``config.optimize.score`` is ``judge``.
      hooks: the user's own steps of the search.
      shared_engine: whether runs share a local engine, so that the seconds of one are no measurement.
      recorded: calls of ``config.traces``.
      held: whether no further run of the system may begin for now.
    """

    system: System
    completer: TapedCompleter
    splits: Mapping[str, tuple[Example, ...]]
    components: tuple[str, ...]
    folder: RunFolder
    ledger: Ledger
    progress: Progress
    seed: int
    concurrency: int
    max_tokens: int = 0
    price: Price = Price()
    stop_grace: float = 30.0
    judge: LanguageModel | None = None
    hooks: Hooks = Hooks()
    shared_engine: bool = False
    recorded: TraceFiles = TraceFiles()
    held: Callable[[], bool] = lambda: False

    def run(self, label: str, jobs: Sequence[Job]) -> list[Trace]:
        """Runs the system; traces are in the order of the jobs. Shows a bar under ``label``."""
        if not jobs:
            return []
        with self.progress.bar(label, len(jobs)) as advance:
            return run_many(self.system, jobs, concurrency=self.concurrency, on_done=advance, waiting=self.waiting)

    def gather(self, label: str, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """Awaits all calls; results are in the order of the calls. Shows a bar under ``label``."""
        if not calls:
            return []
        with self.progress.bar(label, len(calls)) as advance:
            return gather(calls, concurrency=self.concurrency, on_done=advance, waiting=self.waiting)

    @property
    def waiting(self) -> Waiting:
        """What to show while calls run, and what happens to them after an interrupt."""
        return Waiting(self._tell_waits, lambda: self.ledger.in_flight, self.stop_grace, self.held)

    def _tell_waits(self) -> None:
        tell_waits(self.system.watch, lambda text: self.progress.line(f"  {text}"))


def failures(traces: Sequence[Trace]) -> str:
    """Number of failed runs with the most frequent component and outcome; "" if none failed."""
    failed = [trace for trace in traces if trace.outcome is not Outcome.OK]
    if not failed:
        return ""
    calls = [call for trace in failed for call in trace.calls if call.outcome is not Outcome.OK]
    words = f"{len(failed)} of {len(traces)} runs of the system failed"
    if not calls:
        return words
    (name, outcome), _ = collections.Counter((call.component, call.outcome) for call in calls).most_common(1)[0]
    detail = next(call.detail for call in calls if (call.component, call.outcome) == (name, outcome))
    return f"{words}, most at {name}: {outcome}" + (f" ({detail[:300]})" if detail else "")


def report_failures(host: Host, traces: Sequence[Trace]) -> None:
    """Prints a line about failed runs; a warning if all failed, since nothing can be learned from them."""
    words = failures(traces)
    if words:
        every = all(trace.outcome is not Outcome.OK for trace in traces)
        host.progress.line(f"warning: {words}" if every else f"  {words}")


@dataclasses.dataclass(frozen=True)
class Device:
    """The parts that train and score on the devices.

    Attributes:
      rewards: trains local rewards and scores under them.
      policies: updates weights.
    """

    rewards: RewardEngine
    policies: PolicyEngine


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, built once from its configuration.

    Attributes:
      config: its configuration.
      host, device: see their classes.
      data: examples by split, and their chance level.
      engines: local models.
      tape: keeps the results of all requests and executions.
      benchmark: module or object that made system and data.
      record: time and costs of the command.
      opened: the run's files; the caller closes them.
    """

    config: RunConfig
    host: Host
    device: Device
    data: Dataset
    engines: Engines
    tape: Tape
    benchmark: Any
    record: Record
    opened: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
