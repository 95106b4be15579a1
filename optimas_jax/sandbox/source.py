"""Reads source text of programs that a model wrote, without running it."""

from __future__ import annotations

import ast
import threading
import warnings

_LOCK = threading.Lock()  # warning filters are shared by all threads


def parse(text: str) -> ast.Module:
    """The syntax tree of a program; warnings about its text (an escape such as ``\\d``) are ignored.

    Raises:
      SyntaxError: for text that is not Python, or too deeply nested for the parser.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:  # a null byte, brackets nested too deep
            raise SyntaxError(str(error) or type(error).__name__) from error
