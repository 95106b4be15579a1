"""Extracts the program from a model's answer.

BigCodeBench takes the longest sequence of lines that parses, and keeps its imports and the definitions that the wanted
function needs (bigcode-project/bigcodebench: sanitize.py). Here fenced blocks come first: the last block that defines
the function, with the definitions of the blocks before it. Next come lines without a fence, and last a bare body below
the signature at the end of the question. Statements that only try the function are always left out.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence

from optimas_jax.sandbox.source import parse

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)")
_STARTS = re.compile(r"^(?:import |from |def |async def |class |@)")
_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_MOST_STARTS = 50  # most lines at which the search for a program starts
_PARSED, _FREE = 2, 20_000  # characters that may be parsed: multiple of the text's length, plus a constant
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign)


def extract_program(answer: str, name: str, question: str = "") -> str:
    """The program in an answer that defines function ``name``; empty if there is none.

    Args:
      answer: code with or without prose and fences; may be truncated.
      question: the task; if it ends with the beginning of a program, the answer may be the rest of that program.
    """
    blocks = fenced_blocks(answer)
    parsed = [(block, tree) for block in blocks if (tree := _parse(block)) is not None]
    for last in range(len(parsed) - 1, -1, -1):
        if name in _defined(parsed[last][1]):
            before = [_keep(block, tree, lambda node: isinstance(node, _DEFINITIONS)) for block, tree in parsed[:last]]
            return _joined([*before, _without_trials(*parsed[last], name)])
    for text in (*blocks, answer):
        for lines in _stretches(text):
            tree = _parse(lines)
            if tree is not None and name in _defined(tree):
                return _without_trials(lines, tree, name)
    for stub in fenced_blocks(question)[-1:]:
        for text in (*blocks, answer):
            body = stub.rstrip() + "\n" + textwrap.indent(textwrap.dedent(text.strip("\n")), "    ")
            tree = _parse(body)
            if tree is not None and name in _defined(tree):
                return body
    return ""


def extract_tests(answer: str, name: str) -> str:
    """The tests in an answer: all definitions except a copy of the tested function ``name``."""

    def wanted(node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return False
        return isinstance(node, (*_DEFINITIONS, *_ASSIGNMENTS)) and getattr(node, "name", "") != name

    parsed = [(block, tree) for block in fenced_blocks(answer) if (tree := _parse(block)) is not None]
    if not parsed:
        stretch = max(_stretches(answer), key=len, default="")
        parsed = [(stretch, tree)] if (tree := _parse(stretch)) is not None else []
    return _joined([_keep(block, tree, wanted) for block, tree in parsed])


def fenced_blocks(text: str) -> list[str]:
    """Contents of the fenced blocks, in order and without common indentation; the last may lack its end."""
    blocks: list[str] = []
    lines: list[str] | None = None
    for line in _lines(text):
        if not _FENCE.match(line):
            if lines is not None:
                lines.append(line)
        elif lines is None:
            lines = []
        else:
            blocks.append("\n".join(lines))
            lines = None
    if lines:
        blocks.append("\n".join(lines))
    return [textwrap.dedent(block) for block in blocks if block.strip()]


def _lines(text: str) -> list[str]:
    """Lines, separated as in Python source."""
    return re.split(r"\r\n|\r|\n", text)


def _parse(text: str) -> ast.Module | None:
    try:
        return parse(text)
    except SyntaxError:
        return None


def _defined(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def _stretches(text: str) -> Iterator[str]:
    """Sequences of lines that parse: from each line that looks like the beginning of code, the longest one. Takes time
    in proportion to the text."""
    lines = _lines(text)
    starts = [index for index, line in enumerate(lines) if _STARTS.match(line)]
    left = _PARSED * len(text) + _FREE
    for start in starts[:_MOST_STARTS]:
        end = len(lines)
        while end > start and left > 0:
            piece = "\n".join(lines[start:end])
            left -= len(piece)
            try:
                parse(piece)
            except SyntaxError as error:  # lines after the error cannot resolve it, nor can comments before it
                end = min(end - 1, start + (error.lineno or 1) - 1)
                while end > start and lines[end - 1].lstrip()[:1] in ("", "#"):
                    end -= 1
                continue
            yield piece
            break


def _keep(text: str, tree: ast.Module, wanted: Callable[[ast.stmt], bool]) -> str:
    """The source lines of the statements that are wanted."""
    lines = _lines(text)
    chosen: list[str] = []
    for node in tree.body:
        if wanted(node):
            decorators: Sequence[ast.expr] = getattr(node, "decorator_list", ())
            first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
            chosen += lines[first - 1 : node.end_lineno]
    return "\n".join(chosen)


def _without_trials(text: str, tree: ast.Module, name: str) -> str:
    """The program without assignments that call the function, and without statements after the function other than
    definitions and assignments."""
    [position] = [i for i, node in enumerate(tree.body) if getattr(node, "name", "") == name][-1:]
    before = set(tree.body[:position])

    def wanted(node: ast.stmt) -> bool:
        if isinstance(node, _DEFINITIONS):
            return True
        calls = any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))
        return not calls and (node in before or isinstance(node, _ASSIGNMENTS))

    return _keep(text, tree, wanted)


def _joined(parts: Sequence[str]) -> str:
    return "\n".join(part for part in parts if part.strip())
