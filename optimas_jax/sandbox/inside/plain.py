"""Messages of plain data between the process of the tests and the program's process; they cannot carry code.

Messages are pickles. ``load`` reads what the program's process sends: it knows the classes of plain values and of
exceptions, and calls nothing else.
"""

from __future__ import annotations

import builtins
import io
import pickle
import socket
import sys
from typing import Any

_BUILTINS = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"
VALUES = {
    "builtins": _BUILTINS.split(),
    "collections": ["Counter", "OrderedDict", "defaultdict", "deque"],
    "datetime": ["date", "datetime", "time", "timedelta", "timezone"],
    "decimal": ["Decimal"],
    "fractions": ["Fraction"],
    "pathlib": ["Path", "PosixPath", "PurePath", "PurePosixPath"],
    "uuid": ["SafeUUID", "UUID"],
}
MOST = 1 << 30  # bytes of a message


class NotPlain(Exception):
    """A value that is more than plain data."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in VALUES.get(module, ()):
            return super().find_class(module, name)
        value = getattr(sys.modules.get(module), name, None)  # the program cannot cause an import
        if is_error(value):
            return value
        raise NotPlain(f"{module}.{name}")


def is_error(value: Any) -> bool:
    """Whether this is a class of exceptions that a program may raise in a test; exceptions that skip a test are not."""
    is_class = isinstance(value, type) and issubclass(value, BaseException)
    return is_class and not any(known.__module__.startswith("unittest") for known in value.__mro__)


def load(data: bytes) -> Any:
    """Reads plain data.

    Raises:
      NotPlain: the data is not plain.
    """
    try:
        return _Reader(io.BytesIO(data)).load()
    except NotPlain:
        raise
    except Exception as error:
        raise NotPlain(f"{type(error).__name__}: {error}") from error


def dump(value: Any) -> bytes:
    """The value as a message.

    Raises:
      NotPlain: the value cannot be sent.
    """
    try:
        return pickle.dumps(value, protocol=4)
    except Exception as error:
        raise NotPlain(f"{type(error).__name__}: {error}") from error


def update(old: Any, new: Any) -> None:
    """Gives a list, dict, set, deque or bytearray the contents of its changed copy; other values are immutable."""
    if type(old) is not type(new):
        return
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, set | dict):
        old.clear()
        old.update(new)
    elif hasattr(old, "extend"):  # a deque
        old.clear()
        old.extend(new)


def send(channel: socket.socket, message: bytes) -> None:
    """Sends one message."""
    channel.sendall(len(message).to_bytes(8, "big") + message)


def error_of(data: bytes, classes: list[tuple[str, str]], text: str) -> BaseException:
    """The exception in a message: itself if it is plain, else an exception of the first of its classes that is
    known."""
    try:
        error = load(data)
        if isinstance(error, BaseException):
            return error
    except NotPlain:
        pass
    for module, name in classes:
        known: Any = getattr(builtins if module == "builtins" else sys.modules.get(module), name, None)
        if is_error(known) and known not in (BaseException, Exception):
            return known.__new__(known, text)
    return Exception(text)
