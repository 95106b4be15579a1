"""Finds the user's frames in the traceback of an error. Users see these frames, and none of this package."""

from __future__ import annotations

import functools
import os
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from optimas_jax.core.types import StopRun

P = ParamSpec("P")
T = TypeVar("T")

_PACKAGE = str(Path(__file__).parents[2]) + os.sep
_OURS = (_PACKAGE, str(Path(__file__).parents[3] / "launch") + os.sep)
_STANDARD = tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib"))
_INSTALLED = ("site-packages", "dist-packages")
_LONGEST_LINE = 80  # of code in a message


class UserBug(StopRun):
    """An error of the user's code, or of what it returned, that ends the run; its cause is the code's own exception."""


def is_library(file: str) -> bool:
    """Whether a file holds no code of the user's: it was installed, or belongs to Python or this package."""
    installed = any(part in file for part in _INSTALLED)
    return not file or installed or file.startswith((*_OURS, *_STANDARD, "<frozen "))


def first_of(error: BaseException) -> BaseException:
    """The first error of a group, such as a ``TaskGroup`` raises; any other error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def where(error: BaseException) -> str:
    """`` (file, line: code)`` of the user's line at which an error was raised; "" without one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    if not frames:
        return ""
    code = f": {frames[-1].line[:_LONGEST_LINE]}" if frames[-1].line else ""
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}{code})"


def describe_error(error: BaseException) -> str:
    """One line on an error: its type, its message, and the line of the user's code at which it was raised."""
    return f"{type(error).__name__}: {error}{where(error)}"


def files_of(error: BaseException) -> list[str]:
    """The files of an error's frames, the innermost last."""
    return [entry.tb_frame.f_code.co_filename for entry in _entries(error)]


def is_users(error: BaseException) -> bool:
    """Whether an error was raised by the user's code, or by a library that it calls, and not by this package."""
    files = files_of(error)
    return not all(map(is_library, files)) and not files[-1].startswith(_OURS)


def own_frames(error: BaseException) -> list[TracebackType]:
    """Entries of an error's traceback from the user's first frame on, without frames of this package."""
    entries = [entry for entry in _entries(error) if not _is_generated(entry)]
    files = [entry.tb_frame.f_code.co_filename for entry in entries]
    first = next((index for index, file in enumerate(files) if not is_library(file)), len(files))
    return [entries[i] for i in range(first, len(files)) if not files[i].startswith(_OURS)]


def _is_generated(entry: TracebackType) -> bool:
    """Whether a frame is of the ``__init__`` that Python generates for a dataclass; it shows no code of the user's."""
    code = entry.tb_frame.f_code
    return code.co_filename == "<string>" and code.co_name == "__init__"


def _entries(error: BaseException) -> list[TracebackType]:
    entries, entry = [], error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    return entries


def frames_text(error: BaseException) -> str:
    """The user's frames of an error, as Python prints them; "" without any."""
    summary = [line for entry in own_frames(error) for line in traceback.extract_tb(entry, limit=1)]
    return "".join(traceback.format_list(summary)).rstrip()


def error_text(error: BaseException) -> str:
    """The message of an error for the user, with its notes and the user's frames of its cause."""
    notes = "".join(f"\n  ({note})" for note in getattr(error, "__notes__", ()))
    frames = "" if error.__cause__ is None else frames_text(error.__cause__)
    return f"{error}{notes}\n{frames}".rstrip()


def without_our_frames(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function of the public interface: interrupts, and errors with a message for the user, show only the
    user's frames. Any other error may be a fault of this package, and keeps all its frames."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        __tracebackhide__ = True  # for notebooks and pytest
        try:
            return function(*args, **kwargs)
        except (StopRun, ValueError) as error:
            if not (isinstance(error, StopRun) or type(error).__module__.startswith("optimas_jax.")):
                raise
            shown: BaseException = _with_own_frames(error)
        except KeyboardInterrupt as stopped:
            stopped.__context__ = None
            shown = stopped.with_traceback(None)
        raise shown

    return called


def _with_own_frames(error: Exception) -> Exception:
    """The error without its traceback; the tracebacks of its causes keep only the user's frames."""
    cause: BaseException | None = error.__cause__
    while cause is not None:
        trace: TracebackType | None = None
        for entry in reversed(own_frames(cause)):
            trace = TracebackType(trace, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
        if trace is not None or not isinstance(error, UserBug):  # else it may be a fault of this package
            cause.__traceback__ = trace
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    error.__context__ = None
    error.__suppress_context__ = True
    return error.with_traceback(None)
