"""Finds the components that a program calls by the names in its code."""

from __future__ import annotations

import inspect
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.programs.declared import Declared

_PACKAGE = str(Path(__file__).parents[1])
_STANDARD = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))


def declared_in(function: Callable[..., Any]) -> Iterator[tuple[str, Declared]]:
    """Declared components that a function names, and with it the functions that it names, with the variables that hold
    them; in the order of the code."""
    for one in reached_from(function):
        yield from ((holder, value) for holder, value in _named_in(one) if isinstance(value, Declared))


def reached_from(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A function, and the user's functions that its code names, and so on."""
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        code_of = inspect.unwrap(waiting.pop(0), stop=lambda one: isinstance(one, Declared))
        code = getattr(code_of, "__code__", None)
        if code is None or id(code) in seen:
            continue
        seen.add(id(code))
        yield code_of
        values = [value for _, value in _named_in(code_of)]
        waiting += [one for one in values if inspect.isfunction(one) and not is_library(one.__code__.co_filename)]


def _named_in(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """What a function's code names, with the variables that hold it, in its order."""
    known = {**getattr(function, "__globals__", {}), **inspect.getclosurevars(function).nonlocals}
    for variable in _names_in(function.__code__):
        yield from _values_of(variable, known)


def _names_in(code: Any) -> list[str]:
    """Names in a function's code and in the functions that it defines, in their order."""
    names = [*code.co_names, *code.co_freevars]
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names += _names_in(constant)
    return list(dict.fromkeys(names))


def _values_of(variable: str, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The value of a variable; of a list, tuple or dict the values in it; of a module what the code may read of it."""
    if variable not in known:
        modules = [value for value in known.values() if inspect.ismodule(value) and hasattr(value, variable)]
        own = [module for module in modules if not is_library(getattr(module, "__file__", None) or "")]
        yield from ((variable, getattr(module, variable)) for module in own)
        return
    value = known[variable]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    yield variable, value
    yield from ((one.name, one) for one in items if isinstance(one, Declared))


def is_library(file: str) -> bool:
    """Whether a file was installed, or is of this package: it holds no code of the user's."""
    return not file or "site-packages" in file or file.startswith((_PACKAGE, *_STANDARD))
