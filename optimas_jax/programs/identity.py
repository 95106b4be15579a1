"""Identity of a user's function: the code and the constants on which its results may depend besides its arguments.

It is part of the key of taped results, so that an edited function is called again. A run folder recognises its program
by it.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Collection
from typing import Any

from optimas_jax.programs.declared import Declared
from optimas_jax.programs.discover import function_of, functions_from, nonlocals_of, object_of

_STORES = ("STORE_GLOBAL", "STORE_DEREF")  # instructions that write variables around a function
_CONSTANTS = str | int | float


def source_of(function: Callable[..., Any]) -> str:
    """A function's source; if there is none, its name and its compiled code."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        name = getattr(function, "__qualname__", repr(type(function)))
        code = getattr(function, "__code__", None)
        return name if code is None else f"{name} {_compiled(code)}"


def _compiled(code: types.CodeType) -> list[Any]:
    constants = [_compiled(value) if inspect.iscode(value) else value for value in code.co_consts]
    ordered = [sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value) for value in constants]
    return [code.co_code.hex(), code.co_names, ordered]


def globals_read(function: Callable[..., Any]) -> list[str]:
    """Variables of its module that a function's own code reads."""
    code = getattr(function, "__code__", None)
    return [] if code is None else [name for name in code.co_names if name in function.__globals__]  # type: ignore[attr-defined]


def constants_of(function: Callable[..., Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Texts and numbers outside of a function that its own code reads. Lists, dicts and variables that it writes are
    left out, because they may change from call to call.

    Args:
      without: further names to leave out.
    """
    if not inspect.isfunction(function):
        return {}
    values = {name: function.__globals__[name] for name in globals_read(function)}
    values |= nonlocals_of(function)
    names = [name for name in values if name not in without and name not in _written(function)]
    return {name: values[name] for name in names if isinstance(values[name], _CONSTANTS)}


def _written(function: Callable[..., Any], stores: Collection[str] = _STORES) -> set[str]:
    return {step.argval for step in dis.get_instructions(function) if step.opname in stores}


def surroundings_of(function: Callable[..., Any], without: Collection[str] = ()) -> list[Any]:
    """Everything else that the result of a function may depend on: sources and constants of the user's functions that
    it calls by name; for a method, class and constants of its object; for a partial, its arguments. Empty for a
    function that uses nothing else."""
    reached = [helper for helper, _ in functions_from(function) if not isinstance(helper, Declared)]
    first, *helpers = reached or [function]
    written = set().union(*(_written(helper) for helper in (first, *helpers) if inspect.isfunction(helper)), without)
    around: list[Any] = [[source_of(helper), constants_of(helper, written)] for helper in helpers]
    while isinstance(function, functools.partial):
        keywords = {name: _argument(value) for name, value in sorted(function.keywords.items())}
        around.append([repr([_argument(value) for value in function.args]), repr(keywords)])
        around.append([source_of(function_of(function)), constants_of(function_of(function), written)])
        function = function.func
    holder = object_of(function)
    if holder is not None and not isinstance(holder, type | Declared) and not inspect.ismodule(holder):
        method = function_of(function)
        changed = _written(method, ("STORE_ATTR",)) if inspect.isfunction(method) else set()
        kept = {name: value for name, value in getattr(holder, "__dict__", {}).items() if name not in changed}
        around.append([source_of(type(holder)), {k: v for k, v in kept.items() if isinstance(v, _CONSTANTS)}])
    return around


def _argument(value: Any) -> Any:
    """An argument of a partial as plain data; an object, which may differ in every process, as the name of its type."""
    if isinstance(value, list | tuple):
        return [type(value).__qualname__, *map(_argument, value)]
    if isinstance(value, dict):
        return ["dict", *([_argument(key), _argument(item)] for key, item in value.items())]
    if isinstance(value, set | frozenset):
        return [type(value).__qualname__, *sorted(repr(_argument(item)) for item in value)]
    return value if isinstance(value, _CONSTANTS) or value is None else type(value).__qualname__


def identity_of(function: Callable[..., Any], without: Collection[str] = ()) -> list[Any]:
    """The identity of a function as plain data: code without comments and layout, and constants, of the function and
    its surroundings."""
    inner = function_of(function)
    itself = [source_of(inner), constants_of(inner, without)]
    return [[_normal(source), constants] for source, constants in (itself, *surroundings_of(function, without))]


def _normal(source: str) -> str:
    try:
        return ast.unparse(ast.parse(textwrap.dedent(source)))
    except SyntaxError:  # of a lambda, the line that holds it
        return source
