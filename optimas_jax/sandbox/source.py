"""Reads source text of programs that a model wrote, without running it."""

from __future__ import annotations

import ast
import threading
import warnings

_LOCK = threading.Lock()  # filters of warnings are one for all threads


def parse(text: str) -> ast.Module:
    """Its syntax tree; warnings about the text (an escape such as ``\\d``) are the program's own business.

    Raises:
      SyntaxError: for text that is no Python, or that the parser cannot take.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:  # a null byte, brackets nested too deep
            raise SyntaxError(str(error) or type(error).__name__) from error
