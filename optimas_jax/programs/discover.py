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
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting:
        code_of = inspect.unwrap(waiting.pop(0), stop=lambda one: isinstance(one, Declared))
        code = getattr(code_of, "__code__", None)
        if code is None or id(code) in seen:
            continue
        seen.add(id(code))
        known = {**getattr(code_of, "__globals__", {}), **inspect.getclosurevars(code_of).nonlocals}
        for variable in _names_in(code):
            for holder, value in _values_of(variable, known):
                if isinstance(value, Declared):
                    yield holder, value
                elif inspect.isfunction(value) and not is_library(value.__code__.co_filename):
                    waiting.append(value)


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
