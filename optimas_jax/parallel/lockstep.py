"""The same device commands in the same order in all processes of a run.

Process 0 leads: it runs the host loop, and all decisions are its own. The others follow: they have the same objects
under the same names, and call the same methods with the same arguments, so that collectives meet.

    process 0                                      process 1, 2, ...
    scores = scorer.score_batch(groups)            follow(link, makers, types)
      @together: "rewards.scorer", "score_batch",
                 groups  ------------------------>   objects["rewards"].scorer.score_batch(groups)
                 and then the method itself

Arguments are plain data (``parallel.wire``), and large arrays go from device to device. One lock holds the order, as
several threads of process 0 call such methods. With a single process there is no leader, and a method is just called.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np

from optimas_jax.core.types import StopRun
from optimas_jax.parallel.link import LAG, Link
from optimas_jax.parallel.wire import Types, decode, encode

T = TypeVar("T")
P = ParamSpec("P")

_LARGE = 1 << 20  # bytes of an array that goes from device to device
_OPEN, _STOP = "open", "stop"


class OutOfStep(StopRun):
    """A process does something else than process 0."""


class Leader:
    """Process 0's side."""

    def __init__(self, link: Link, types: Types):
        """``types``: of arguments, see ``parallel.wire``; the same in all processes."""
        self._link, self._types = link, types
        self._lock = threading.RLock()
        self._inside = False  # a command is under way; only its own thread, which holds the lock, reads it
        self._closed = False

    def run(self, name: str, method: str, args: Sequence[Any], own: Callable[[], T]) -> T:
        """Tells the others to call a method of the object of a name, and calls ``own``, which is this process's part.
        Within another command just calls it: the others get there by themselves."""
        with self._lock:
            if self._inside:
                return own()
            if self._closed:
                raise StopRun("the other processes of this run have ended")
            self._inside = True
            try:
                self._tell(name, method, args)
                result = own()
                self._link.end_command()
                return result
            except Exception as error:
                self._link.end_command(_summary(error))
                self._link.hear_all()  # where another process has died, the run ends with that cause
                raise
            finally:
                self._inside = False

    def _tell(self, name: str, method: str, args: Sequence[Any]) -> None:
        message, large = encode([self._link.error, name, method, list(args)], self._types, _LARGE)
        self._link.send(message)
        if large:
            _from_leader(large)

    def close(self, code: int) -> None:
        """Ends the other processes with an exit code."""
        with self._lock:
            self._closed = True
            self._tell("", _STOP, (code,))
            self._link.end_command()
            if not self._link.wait_for_all(LAG):
                self._link.end_all("process 0 ended, and another process does not end what it does")
            self._link.close()


@dataclasses.dataclass(frozen=True)
class Shared:
    """An object that all processes have; of process 0.

    Attributes:
      leader: tells the others.
      name: that they know, too.
      attribute: of the object of that name; "" for itself.
    """

    leader: Leader
    name: str
    attribute: str = ""

    def part(self, attribute: str) -> Shared:
        """An attribute of the object of this name."""
        return Shared(self.leader, self.name, attribute)


class HasShared(Protocol):
    """An object with methods that run together."""

    @property
    def shared(self) -> Shared | None:
        """None in a single process, and in those that follow."""
        ...


S = TypeVar("S", bound=HasShared)


def together(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that runs in all processes. Its arguments are plain data, by position; what it does to devices depends
    on them and on earlier commands alone."""

    @functools.wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.shared is None:
            return method(self, *args, **kwargs)
        assert not kwargs
        own = functools.partial(method, self, *args)
        path = f"{self.shared.attribute}.{method.__name__}".lstrip(".")
        return self.shared.leader.run(self.shared.name, path, args, own)

    run.runs_together = True  # type: ignore[attr-defined]
    return run


def open_shared(
    leader: Leader | None, name: str, kind: str, args: Sequence[Any], make: Callable[[Shared | None], T]
) -> T:
    """An object that the other processes make, too, if there is a leader.

    Args:
      name: of the object; an earlier one of that name is replaced.
      kind: of ``follow``'s makers; it gets ``args``.
      make: makes the object of this process.
    """
    if leader is None:
        return make(None)
    return leader.run(name, _OPEN, (kind, *args), functools.partial(make, Shared(leader, name)))


def follow(link: Link, makers: Mapping[str, Callable[..., Any]], types: Types) -> int:
    """Does what process 0 tells until it ends; returns the exit code.

    Args:
      makers: of objects, by kind.
      types: as in ``Leader``.

    Raises:
      StopRun: if process 0 has gone, or what it does is something else.
    """
    objects: dict[str, Any] = {}
    while True:
        before, name, method, args = decode(link.receive(), types, _from_leader)
        if bool(before) != bool(link.error):
            there, here = before or "it went well", link.error or "it went well"
            link.end_command(
                f"out of step: command {link.ended} in process 0: {there}; in process {link.index}: {here}"
            )
            link.wait_until_seen()
            raise OutOfStep(link.error)
        if method == _STOP:
            link.end_command()
            link.wait_until_seen()
            return args[0]
        try:
            if method == _OPEN:
                objects.pop(name, None)  # its memory goes before a new one takes some
                objects[name] = makers[args[0]](*args[1:])
            else:
                _method(objects, name, method)(*args)
        except Exception as error:  # where process 0 has the same error, it handles it
            link.end_command(_summary(error))
            print(f"command {link.begun} ({name} {method}): {_summary(error)}", file=sys.stderr, flush=True)
        else:
            link.end_command()


def _method(objects: Mapping[str, Any], name: str, method: str) -> Callable[..., Any]:
    """Raises ``OutOfStep`` for anything but a method that runs together."""
    found: Any = operator.attrgetter(method)(objects[name]) if name in objects else None
    if not getattr(found, "runs_together", False):
        raise OutOfStep(f"{name} has no {method} that processes run together")
    return found


def _from_leader(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Arrays of process 0 in every process; the others give shapes."""
    from jax.experimental import multihost_utils

    own = [array if isinstance(array, np.ndarray) else np.zeros(array.shape, array.dtype) for array in arrays]
    return [np.asarray(array) for array in multihost_utils.broadcast_one_to_all(own)]


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
