"""Parses programs that a model wrote, without running them."""

from __future__ import annotations

import ast
import symtable
import threading
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LOCK = threading.Lock()  # warning filters are shared by all threads


def parse(text: str) -> ast.Module:
    """The syntax tree of a program; warnings about its text (an escape such as ``\\d``) are ignored.

    Raises:
      SyntaxError: for text that is not Python, or too deeply nested for the parser.
    """
    return _quietly(ast.parse, text)


def symbols(text: str) -> symtable.SymbolTable:
    """The names of a program, by scope. Raises like ``parse``, and for a statement in a wrong place."""
    return _quietly(symtable.symtable, text, "program", "exec")


def _quietly(read: Callable[..., T], *arguments: str) -> T:
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(*arguments)
        except (ValueError, RecursionError, MemoryError) as error:  # a null byte, brackets nested too deep
            raise SyntaxError(str(error) or type(error).__name__) from error
