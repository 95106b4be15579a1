"""The same device commands in the same order in all processes of a run.

Process 0 leads: it runs the host loop and makes all decisions. The other processes follow: they have the same objects
under the same names, and call the same methods with the same arguments, so that collectives match.

    process 0                                      process 1, 2, ...
    scores = scorer.score_batch(groups)            follow(link, makers, types)
      @together: "rewards.scorer", "score_batch",
                 groups  ------------------------>   objects["rewards"].scorer.score_batch(groups)
                 and then the method itself

Arguments are plain data (``parallel.wire``), and large arrays go from device to device. A lock keeps the order, because
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
    """A process does not do the same as process 0."""


class Leader:
    """The side of process 0: sends commands to the other processes."""

    def __init__(self, link: Link, types: Types):
        """``types``: of arguments, see ``parallel.wire``; the same in all processes."""
        self._link, self._types = link, types
        self._lock = threading.RLock()
        self._inside = False  # whether a command is running; only its own thread, which holds the lock, reads it
        self._closed = False

    def run(self, name: str, method: str, args: Sequence[Any], own: Callable[[], T]) -> T:
        """Makes the other processes call a method of the object with a name, and calls ``own``, the same method in this
        process. Within another command only ``own`` is called: the other processes reach the call by themselves."""
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
                self._link.hear_all()  # if another process has died, the run ends with that cause
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
    """Reference of process 0 to an object that all processes have.

    Attributes:
      leader: sends commands to the other processes.
      name: of the object, the same in all processes.
      attribute: name of an attribute of that object, if it is meant; "" for the object itself.
    """

    leader: Leader
    name: str
    attribute: str = ""

    def part(self, attribute: str) -> Shared:
        """The reference to an attribute of this object."""
        return Shared(self.leader, self.name, attribute)


class HasShared(Protocol):
    """An object with methods that run together in all processes."""

    @property
    def shared(self) -> Shared | None:
        """Its reference; None with a single process, and in processes that follow."""
        ...


S = TypeVar("S", bound=HasShared)


def together(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Makes a method run in all processes. Its arguments are plain data, by position. Its work on devices must depend
    only on them and on earlier commands."""

    @functools.wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.shared is None:
            return method(self, *args, **kwargs)
        assert not kwargs
        call_here = functools.partial(method, self, *args)
        path = f"{self.shared.attribute}.{method.__name__}".lstrip(".")
        return self.shared.leader.run(self.shared.name, path, args, call_here)

    run.runs_together = True  # type: ignore[attr-defined]
    return run


def open_shared(
    leader: Leader | None, name: str, kind: str, args: Sequence[Any], make: Callable[[Shared | None], T]
) -> T:
    """Makes an object, and, if there is a leader, the same object in the other processes.

    Args:
      name: of the object; an earlier one of that name is replaced.
      kind: names the maker of ``follow`` that is called with ``args``.
      make: makes the object of this process.
    """
    if leader is None:
        return make(None)
    return leader.run(name, _OPEN, (kind, *args), functools.partial(make, Shared(leader, name)))


def follow(link: Link, makers: Mapping[str, Callable[..., Any]], types: Types) -> int:
    """Carries out the commands of process 0 until it ends; returns the exit code.

    Args:
      makers: functions that make objects, by kind.
      types: as in ``Leader``.

    Raises:
      StopRun: if process 0 has gone, or the processes are out of step.
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
                objects.pop(name, None)  # frees its memory before the new object is made
                objects[name] = makers[args[0]](*args[1:])
            else:
                _method(objects, name, method)(*args)
        except Exception as error:  # if process 0 has the same error, it handles it
            link.end_command(_summary(error))
            print(f"command {link.begun} ({name} {method}): {_summary(error)}", file=sys.stderr, flush=True)
        else:
            link.end_command()


def _method(objects: Mapping[str, Any], name: str, method: str) -> Callable[..., Any]:
    """The method of an object; raises ``OutOfStep`` if it is none that runs together in all processes."""
    target: Any = operator.attrgetter(method)(objects[name]) if name in objects else None
    if not getattr(target, "runs_together", False):
        raise OutOfStep(f"{name} has no {method} that processes run together")
    return target


def _from_leader(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Broadcasts arrays of process 0 to every process; the other processes pass their shapes."""
    from jax.experimental import multihost_utils

    arrays_here = [array if isinstance(array, np.ndarray) else np.zeros(array.shape, array.dtype) for array in arrays]
    return [np.asarray(array) for array in multihost_utils.broadcast_one_to_all(arrays_here)]


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
