"""The docstrings of all public names, which docs/python.md shows: arguments, errors, an example."""

import ast
import dataclasses
import inspect
import re
import textwrap

import pytest
from runs import ROOT

import optimas_jax as oj

NAMES = [name for name in oj.__all__ if not inspect.ismodule(getattr(oj, name))]
MODULES = [name for name in oj.__all__ if inspect.ismodule(getattr(oj, name))]


def document(name):
    return inspect.getdoc(getattr(oj, name)) or ""


def examples(text):
    """The Python blocks of a docstring."""
    return [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)\n[ \t]*```", text, re.DOTALL)]


def used(source):
    """The attributes of ``oj`` in a source, modules' as ``dspy.program``."""
    found = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return {name.removeprefix("oj.") for name in found if re.fullmatch(r"oj(\.\w+)+", name)}


def arguments(value):
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]
    return list(inspect.signature(value).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented(name):
    text, value = document(name), getattr(oj, name)
    assert "Raises:" in text or "raises nothing" in text
    assert examples(text)
    assert all(hasattr(oj, attribute.split(".")[0]) for source in examples(text) for attribute in used(source))
    assert name in " ".join(examples(text)) or name in ("Result", "Optimized", "Evaluation")  # made by functions
    missing = [one for one in arguments(value) if not re.search(rf"\b{one}\b", text)]
    assert not missing
    kinds = inspect.signature(value).parameters.values()
    assert all(kind.annotation is not inspect.Parameter.empty for kind in kinds)


@pytest.mark.parametrize("name", MODULES)
def test_a_public_module_is_documented(name):
    module, [source] = getattr(oj, name), examples(document(name))
    for one in used(source) - {name, "optimize"}:
        value = getattr(module, one.removeprefix(f"{name}."))
        text = inspect.getdoc(value) or ""
        assert "Attributes:" in text or ("Args:" in text and "Raises:" in text), one
    public = [value for key, value in vars(module).items() if not key.startswith("_")]
    here = [value for value in public if getattr(value, "__module__", "") == module.__name__]
    assert here and all(inspect.getdoc(value) for value in here)


def test_the_page_has_every_name():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: optimas_jax\.(\w+)$", page, re.MULTILINE)) == sorted(oj.__all__)
