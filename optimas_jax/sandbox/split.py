"""Decides from the text of tests whether they can run in another process than their program: they only call its
functions and compare plain data."""

from __future__ import annotations

import ast
import builtins
import dataclasses
from collections.abc import Sequence

from optimas_jax.sandbox.source import parse, symbols

# Modules that such tests may use: modules for values and files. Modules by which a test inspects or changes the process
# of the program are left out: mocks, streams, warnings, logs, threads.
_APART = """
    __future__ abc base64 binascii bisect calendar cmath codecs collections configparser copy csv dataclasses datetime
    decimal difflib doctest enum filecmp fnmatch fractions functools glob gzip hashlib heapq hmac html io ipaddress
    itertools json math numbers operator os pathlib platform posixpath pprint queue random re secrets shutil socket
    sqlite3 stat statistics string struct subprocess tarfile tempfile textwrap time typing unicodedata unittest urllib
    uuid xml zipfile zlib
"""
# Names by which a test uses more than the value of a function, or changes the state of the process.
_TOGETHER = """
    assertLogs assertNoLogs assertWarns assertWarnsRegex delattr eval exec getcontext globals localcontext locals mock
    patch register_dialect setattr setcontext setdefaulttimeout tzset umask vars __builtins__ __dict__ __import__
"""
APART, TOGETHER = frozenset(_APART.split()), frozenset(_TOGETHER.split())


@dataclasses.dataclass(frozen=True)
class Split:
    """How tests run apart from their program.

    Attributes:
      remote: names that the tests use and the program defines.
      program_imports: import statements of the program whose names the tests use as well.
      test_imports: import statements of the tests, which the program runs as well, as if both were one module.
    """

    remote: tuple[str, ...]
    program_imports: str
    test_imports: str


def split(program: str, tests: str) -> Split | None:
    """How the tests can run apart from the program; None if they must share its process, or are not Python."""
    try:
        tree, free = parse(tests), _free_names(tests)
    except SyntaxError:
        return None
    if "sys" in free or not _is_plain(tree):
        return None
    shared = _imports(program, free)
    remote = free - {name for statement in shared for name in _bound(statement)}
    if remote & _looked_into(tree) or not all(_modules(statement) <= APART - {"unittest"} for statement in shared):
        return None
    test_imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return Split(tuple(sorted(remote)), _text(shared), _text(test_imports))


def _looked_into(tree: ast.Module) -> set[str]:
    """Names whose attributes a module uses."""
    owners = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {owner.id for owner in owners if isinstance(owner, ast.Name)}


def _text(statements: Sequence[ast.stmt]) -> str:
    return "\n".join(map(ast.unparse, statements))


def _is_plain(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[-1] for alias in node.names}
            if not _modules(node) <= APART or names & (TOGETHER | {"*"}):
                return False
        named = getattr(node, "id", None) or getattr(node, "attr", None)
        if named in TOGETHER or isinstance(node, ast.AsyncFunctionDef) or _replaces(node):
            return False
    return True


def _replaces(node: ast.AST) -> bool:
    """Whether a statement sets an attribute of another object than the test, such as a function of a module."""
    if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
        return False
    return not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))


def _modules(node: ast.AST) -> set[str]:
    """Top-level modules of an import statement."""
    if isinstance(node, ast.ImportFrom):
        return {(node.module or ".").split(".")[0]} if not node.level else {"."}
    return {alias.name.split(".")[0] for alias in getattr(node, "names", ())}


def _free_names(source: str) -> set[str]:
    """Global names that a module uses and does not bind."""
    top = symbols(source)
    used, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table is top)}
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    return used - bound - set(vars(builtins)) - {"__name__", "__file__", "os", "environ"}


def _imports(program: str, wanted: set[str]) -> list[ast.stmt]:
    """Import statements at a program's top that bind wanted names."""
    try:
        body = parse(program).body
    except SyntaxError:
        return []
    return [node for node in body if isinstance(node, ast.Import | ast.ImportFrom) and _bound(node) & wanted]


def _bound(node: ast.stmt) -> set[str]:
    return {alias.asname or alias.name.split(".")[0] for alias in getattr(node, "names", ())}
