"""Watches the runs of a system: what they wait for, and how many of the last runs ended with an exception."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Literal

from optimas_jax.core.text.frames import UserBug
from optimas_jax.core.types import Outcome, Trace
from optimas_jax.core.values import Configuration

_LAST = 100  # number of last runs that are judged
_SHARE, _FEWEST = 0.2, 20  # share of them that may end with an exception; fewest runs to which the share applies
_ALL = 5  # number of first runs that may not all end with an exception
_LATE = 60.0  # seconds after which a wait is reported

Kind = Literal["component", "metric", "hook", "request", "program"]


class TooManyFailures(UserBug):
    """Exceptions of components or of the program ended too many runs."""


@dataclasses.dataclass(frozen=True)
class Wait:
    """Something that a run waits for.

    Attributes:
      kind: a ``component``, ``metric`` or ``hook`` of the user's, which may never end; a ``request``, which always
        ends; or the whole ``program``.
      name: of the component, metric, hook or program.
      since: its beginning, by ``time.monotonic()``.
    """

    kind: Kind
    name: str
    since: float


@dataclasses.dataclass
class Watch:
    """Watches the runs of a system; changes no result.

    Attributes:
      configuration: the one in use, whose runs are counted. Failing runs of a candidate lower its scores and stop
        nothing. None counts the runs of every configuration.
      ends: for each of the last runs the cause of the exception that ended it; "" if it ended otherwise.
      waits: those in progress, by ``id``.
    """

    configuration: Configuration | None = None
    ends: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=_LAST))
    waits: dict[int, Wait] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def waiting(self, kind: Kind, name: str) -> Iterator[None]:
        """Records that a run waits for something, while the block runs."""
        wait = Wait(kind, name, time.monotonic())
        self.waits[id(wait)] = wait
        try:
            yield
        finally:
            del self.waits[id(wait)]

    def late(self, seconds: float) -> list[str]:
        """Lines about waits of at least ``seconds``: for users' functions, or for a program that waits for nothing
        else."""
        waits = list(self.waits.values())
        functions = [wait for wait in waits if wait.kind in ("component", "metric", "hook")]
        alone = not functions and all(wait.kind == "program" for wait in waits)
        now, oldest = time.monotonic(), dict[tuple[Kind, str], list[float]]()
        for wait in waits if alone else functions:
            if now - wait.since >= seconds:
                oldest.setdefault((wait.kind, wait.name), []).append(now - wait.since)
        return [_line(kind, name, max(ages), len(ages)) for (kind, name), ages in oldest.items()]

    def ended(self, trace: Trace, configuration: Configuration) -> None:
        """Counts a run under the configuration in use.

        Raises:
          TooManyFailures: it ended with an exception, or at the program's time limit, as did more than a fifth of the
            last runs (if there are at least 20), or each of the first 5. Unusable answers of models are no exceptions.
        """
        if self.configuration is not None and configuration != self.configuration:
            return
        by_program = trace.outcome is Outcome.CRASHED or (trace.outcome is Outcome.TIMEOUT and trace.feedback)
        self.ends.append(why_failed(trace) if by_program else "")
        failed = [why for why in self.ends if why]
        runs = len(self.ends)
        if not self.ends[-1] or not (len(failed) == runs >= _ALL or (runs >= _FEWEST and len(failed) > _SHARE * runs)):
            return
        places = [why.rpartition(" (")[2] for why in failed]  # messages may hold data
        [(place, count)] = collections.Counter(places).most_common(1)
        most = failed[places.index(place)]
        hint = "Calls of components have to be awaited. " * ("'coroutine' object" in most)
        raise TooManyFailures(
            f"{len(failed)} of the last {runs} runs ended with an exception, {count} of them with\n  {most}\n"
            f"Above {_SHARE:.0%} the run stops. {hint}Correct it and run the same command again: paid answers are "
            "kept. on_error='stop' of a component or program ends the run at its first exception"
        )


def tell_waits(watch: Watch | None, line: Callable[[str], None]) -> None:
    """Shows a line about every wait of a minute or more."""
    for text in [] if watch is None else watch.late(_LATE):
        line(text)


def why_failed(trace: Trace) -> str:
    """Reason why a run failed, from the call that failed last or from the program itself; "" for a run that
    succeeded."""
    if trace.outcome is Outcome.OK:
        return ""
    if trace.feedback:
        return trace.feedback
    failed = [call for call in trace.calls if call.outcome is trace.outcome]
    return f"component {failed[-1].component!r}: {failed[-1].detail}" if failed else str(trace.outcome)


def _line(kind: Kind, name: str, seconds: float, count: int) -> str:
    titles = {"component": f"component {name!r}", "metric": f"the metric {name!r}", "hook": name}
    what = titles.get(kind, "the program itself")
    way = "; give it timeout=SECONDS if it may never end" if kind in ("component", "program") else ""
    return f"waiting for {what} for {seconds:.0f} s" + f" ({count} calls)" * (count > 1) + way
