"""What a run folder belongs to: the parts of a program, its metric and its rows, as digests."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from optimas_jax.core.types import Example, digest
from optimas_jax.core.values import value_digest
from optimas_jax.llm.component import LanguageModel
from optimas_jax.programs.declared import Declared
from optimas_jax.programs.discover import reached_from
from optimas_jax.programs.program import Program
from optimas_jax.programs.prompts import PromptDeclaration


def parts_of(program: Program, metric: Callable[..., Any], examples: Sequence[Example]) -> dict[str, str]:
    """Digests by the name of a part. Comments and the layout of code do not count, nor does what it reads elsewhere."""
    rows = sorted([one.id, digest(one.inputs, one.gold)] for one in examples)
    components = {f"component {one.name!r}": _component(one) for one in program.components}
    return {
        "the program": _code(program.function),
        **components,
        "the metric": _code(metric),
        "the rows": digest(rows),
    }


def _component(declared: Declared) -> str:
    built = declared.build(LanguageModel(""))
    function = inspect.unwrap(declared) if callable(declared) else None  # type: ignore[arg-type]
    return digest(
        built.description,
        "" if built.default is None else value_digest(built.default),
        repr(built.space),
        repr(declared.settings) if isinstance(declared, PromptDeclaration) else "",
        _code(function) if inspect.isfunction(function) else "",
    )


def _code(function: Callable[..., Any]) -> str:
    """Digest of the source of a function and of the user's functions that it calls."""
    return digest(sorted({_source(one) for one in reached_from(function)}))


def _source(function: Callable[..., Any]) -> str:
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):  # typed into an interpreter, or a part of a line
        return getattr(function, "__qualname__", type(function).__qualname__)
