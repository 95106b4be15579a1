"""Runs tests in this process and the program in another, which is forked before the tests are read.

If the tests call a function of the program, it runs in that process, by messages of plain data (``plain``). Both
processes share files. Working folder, environment and the state of ``random`` are sent with each call, and so are the
contents of arguments that the program changed. If a value is more than plain data, the tests need the program's own
process: the run is given up, and ``together`` runs them in another sandbox.
"""

from __future__ import annotations

import os
import random
import select
import socket
import sys
import traceback
import types
import unittest
from collections.abc import Callable
from typing import Any, NoReturn

from . import outcomes, plain

World = tuple[str, dict[str, str], Any]


class ProgramEnded(Exception):
    """The program's process is gone."""


def start(closed: list[int]) -> tuple[int, socket.socket]:
    """Forks the program's process, which closes the descriptors ``closed``; returns its id and a channel."""
    here, there = socket.socketpair()
    process = os.fork()
    if process == 0:
        here.close()
        for descriptor in closed:
            os.close(descriptor)
        serve(there)
    there.close()
    return process, here


# The program's process


def serve(channel: socket.socket) -> NoReturn:
    """Answers messages until the channel is closed."""
    names = outcomes.names_of(outcomes.MODULE)
    module = types.ModuleType(outcomes.MODULE)
    vars(module).update(names)
    sys.modules[outcomes.MODULE], sys.modules["__main__"] = module, types.ModuleType("__main__")
    own = os.getpid()
    send, leave, getpid = plain.send, os._exit, os.getpid
    while True:
        message = _receive(channel)
        answer = _answer(vars(module), *plain.load(message)) if message else b""
        if getpid() != own or not message:  # a process that the program forked does not answer
            leave(0)
        send(channel, answer)


def _answer(names: dict[str, Any], kind: str, what: Any) -> bytes:
    try:
        if kind == "load":
            outcomes.load(what["program"], outcomes.PROGRAM, names)
            exec(what["imports"], names)  # noqa: S102 (the program gets the names that the tests import)
            value = None
        elif kind == "look":
            value = {name: _shown(names[name]) for name in what if name in names}
        else:
            name, args, kwargs, world = what
            _enter(world)
            before = _world()
            result = names[name](*args, **kwargs)
            value = (result, args, kwargs, _since(before))
    except BaseException as error:
        return plain.dump(("raised", _told(error)))
    try:
        return plain.dump(("returned", plain.dump(value)))
    except plain.NotPlain as error:
        return plain.dump(("odd", str(error)))


def _shown(value: Any) -> tuple[bool, Any]:
    """Description of a name for the tests: whether it is a function, and its value if not; a class is no plain data."""
    is_function = callable(value) and not isinstance(value, type)
    return is_function, None if is_function else value


def _told(error: BaseException) -> tuple[bytes, list[tuple[str, str]], str, list[tuple[str, int, str]], Any]:
    try:
        text = str(error)
    except Exception:
        text = ""
    try:
        data = plain.dump(error)
    except plain.NotPlain:
        data = b""
    classes = [(known.__module__, known.__qualname__) for known in type(error).__mro__]
    stack = traceback.extract_tb(error.__traceback__)
    frames = [(frame.filename, frame.lineno or 0, frame.name) for frame in stack if frame.filename == outcomes.PROGRAM]
    return data, classes, text, frames[-20:], _world()


# The tests' process


class Program:
    """The program's process as the tests see it."""

    def __init__(self, process: int, channel: socket.socket, give_up: Callable[[str], NoReturn]):
        """``give_up`` ends this process with a reason, if the tests need the program's own process."""
        self._process, self._channel, self._give_up = process, channel, give_up
        self._world: World | None = None  # the state that both processes have

    def load(self, program: str, imports: str, names: tuple[str, ...]) -> dict[str, Any]:
        """Loads the program; returns the names that it defines: functions as functions that call them in its process,
        other values themselves."""
        self._ask("load", {"program": program, "imports": imports})
        found = self._ask("look", names)
        return {name: self._caller(name) if is_function else value for name, (is_function, value) in found.items()}

    def _caller(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            world = _since(self._world)
            self._world = world or self._world
            value, new_args, new_kwargs, world = self._ask("call", (name, args, kwargs, world))
            pairs = [*zip(args, new_args, strict=True), *((kwargs[key], new_kwargs[key]) for key in kwargs)]
            for old, new in pairs:
                plain.update(old, new)
            _enter(world)
            self._world = world or self._world
            return next((old for old, new in pairs if new is value), value)

        call.__name__ = call.__qualname__ = name
        return call

    def _ask(self, kind: str, what: Any) -> Any:
        try:
            message = plain.dump((kind, what))
            plain.load(message)
        except plain.NotPlain as error:
            self._give_up(f"an argument is no plain data ({error})")
        try:
            plain.send(self._channel, message)
            answer = _receive(self._channel, self._process)
        except OSError:
            answer = b""
        if not answer:
            raise ProgramEnded("the program ended its process")
        kind, value = plain.load(answer)
        if kind == "raised":
            self._world = None
            _raise(*value)
        try:
            if kind == "odd":
                raise plain.NotPlain(value)
            return plain.load(value)
        except plain.NotPlain as error:
            self._give_up(f"a result is no plain data ({error})")


def _raise(data: bytes, classes: list[tuple[str, str]], text: str, frames: list[Any], world: Any) -> NoReturn:
    _enter(world)
    error = plain.error_of(data, classes, text)
    error.program_frames = frames  # type: ignore[attr-defined]
    raise error


def _receive(channel: socket.socket, process: int = 0) -> bytes:
    """One message; empty at the end of the channel, and once ``process`` has exited without answering."""

    def read(count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            while process and not select.select([channel], [], [], 0.5)[0]:
                if os.waitpid(process, os.WNOHANG)[0]:
                    return b""
            part = channel.recv(min(1 << 20, count - len(data)))
            if not part:
                return b""
            data += part
        return bytes(data)

    size = int.from_bytes(read(8), "big")
    return read(size) if size <= plain.MOST else b""


def _world() -> World:
    """State that a call shares with its caller besides its arguments: working folder, environment, state of
    ``random``."""
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        folder = ""
    return folder, dict(os.environ), random.getstate()


def _since(known: World | None) -> World | None:
    """The current state; None if it equals the known one."""
    now = _world()
    return None if now == known else now


def _enter(world: World | None) -> None:
    if world is None:
        return
    folder, environment, state = world
    now, variables, _ = _world()
    if folder and folder != now:
        os.chdir(folder)
    if environment != variables:
        os.environ.clear()
        os.environ.update(environment)
    random.setstate(state)


def run(work: dict[str, Any], program: Program, report: outcomes.Report) -> None:
    """Runs the tests of ``work``, which ``sandbox.unittests`` makes."""
    module = types.ModuleType(outcomes.MODULE)
    names = vars(module)
    names.update(outcomes.names_of(outcomes.MODULE))
    sys.modules[outcomes.MODULE] = module
    outcomes.show(work["program"], outcomes.PROGRAM)
    names.update(program.load(work["program"], work["test_imports"], tuple(work["remote"])))
    exec(work["program_imports"], names)  # noqa: S102 (import statements alone)
    outcomes.load(work["tests"], outcomes.TESTS, names)
    suite = outcomes.suite(unittest, names, work["case"])
    suite.run(outcomes.result(unittest, report, may_skip=lambda test: True, intact=lambda: ""))
