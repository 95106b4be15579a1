"""Follows the names in the code of a user's function: to the components that it calls, and to its helpers."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from optimas_jax.core.text.frames import is_library
from optimas_jax.programs.declared import Declared


def without_partials(called: Any) -> Any:
    """The callable inside of partials; any other callable is returned unchanged."""
    while isinstance(called, functools.partial):
        called = called.func
    return called


def function_of(called: Any) -> Any:
    """The function behind a partial, a bound method or a callable object; anything else is returned unchanged."""
    called = without_partials(called)
    if inspect.ismethod(called):
        return called.__func__
    if isinstance(called, Declared) or inspect.isroutine(called) or isinstance(called, type):
        return called
    return type(called).__call__ if callable(called) else called


def object_of(called: Any) -> Any:
    """The object of a bound method, or the callable object itself; None for a function."""
    called = without_partials(called)
    return getattr(called, "__self__", None) if inspect.isroutine(called) else called


def declared_in(function: Callable[..., Any]) -> Iterator[tuple[str, Declared]]:
    """Declared components that a function and the functions that it calls by name use, each with the variable that
    holds it, in the order of the code. For a method also the components that its object holds."""
    held = getattr(object_of(function), "__dict__", {})
    yield from ((name, value) for name, value in held.items() if isinstance(value, Declared))
    for _, named in functions_from(function):
        yield from ((name, value) for name, value in named if isinstance(value, Declared))


def functions_from(function: Callable[..., Any]) -> Iterator[tuple[Any, list[tuple[str, Any]]]]:
    """A function, then the user's functions that it names, directly or through others: each with its names and their
    values."""
    seen: set[int] = set()
    waiting: list[Any] = [function_of(function)]
    while waiting:
        code_of = inspect.unwrap(waiting.pop(0), stop=lambda value: isinstance(value, Declared))
        code = getattr(code_of, "__code__", None)
        if code is None or id(code) in seen:
            continue
        seen.add(id(code))
        known = {**getattr(code_of, "__globals__", {}), **nonlocals_of(code_of)}
        named = [pair for variable in _names_in(code) for pair in _values_of(variable, known)]
        yield code_of, named
        functions = [value for _, value in named if inspect.isfunction(value)]
        waiting += [helper for helper in functions if not is_library(helper.__code__.co_filename)]


def nonlocals_of(function: Any) -> dict[str, Any]:
    """Variables of the functions around a function that have a value already."""
    held = dict[str, Any]()
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable without a value
            held[name] = cell.cell_contents
    return held


def _names_in(code: Any) -> list[str]:
    """Names in a function's code and in the functions that it defines, in their order."""
    names = [*code.co_names, *code.co_freevars]
    for constant in code.co_consts:
        if inspect.iscode(constant):
            names += _names_in(constant)
    return list(dict.fromkeys(names))


def _values_of(variable: str, known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Variables and their values: for a list, tuple or dict also the components in it, for an attribute its values in
    known modules."""
    if variable not in known:
        modules = [value for value in known.values() if inspect.ismodule(value)]
        user_modules = [module for module in modules if not is_library(getattr(module, "__file__", None) or "")]
        yield from ((variable, getattr(module, variable)) for module in user_modules if hasattr(module, variable))
        return
    value = known[variable]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    yield variable, value
    yield from ((item.name, item) for item in items if isinstance(item, Declared))
