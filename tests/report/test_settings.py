"""Settings as they are shown: every one with its meaning, and documented as it is."""

import dataclasses
import runpy
import typing
from collections.abc import Mapping

import pytest
from rich.console import Console
from runs import ROOT, run_config

from optimas_jax.benchmarks.modules import BENCHMARKS, SystemConfig, settings_class
from optimas_jax.core.schema import PositiveInt
from optimas_jax.core.settings import REQUIRED, meanings, sections
from optimas_jax.loop.config import RunConfig
from optimas_jax.report.settings import plain_lines, show_settings


def classes(cls):
    """A dataclass and those of its fields."""
    yield cls
    for hint in typing.get_type_hints(cls).values():
        if dataclasses.is_dataclass(hint):
            yield from classes(hint)


SYSTEMS = [settings_class(module) for module in BENCHMARKS.values()] + [SystemConfig]


@pytest.mark.parametrize(
    "cls", sorted({*classes(RunConfig), *(one for cls in SYSTEMS for one in classes(cls))}, key=str)
)
def test_every_setting_has_a_meaning(cls):
    explained = meanings(cls)
    assert [*explained] == [field.name for field in dataclasses.fields(cls)]
    assert all(explained.values())


def test_the_documentation_equals_the_dataclasses():
    page = runpy.run_path(str(ROOT / "launch" / "settings.py"))["configuration_page"]()
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == page, "python launch/settings.py > docs/configuration.md"


@dataclasses.dataclass(frozen=True)
class Inner:
    """How deep.

    Attributes:
      depth: of ``it``, or
        more.
    """

    depth: PositiveInt = 2


@dataclasses.dataclass(frozen=True)
class Outer:
    """All.

    Attributes:
      name: what it is called; note: not a field.
      kind, mix: shared
        meaning.

    Example:
      kind: no meaning of a field.
    """

    name: str
    kind: typing.Literal["a", "b"] = "a"
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict)
    inner: Inner = Inner(3)
    steps: tuple[PositiveInt, ...] = (1,)
    system: typing.Any = None


def test_settings_of_dataclasses_in_each_other():
    outer, inner = sections(Outer)
    by_path = {one.path: one for section in (outer, inner) for one in section.settings}
    assert [*by_path] == ["name", "kind", "mix", "steps", "inner.depth"]
    assert by_path["name"].default is REQUIRED
    assert by_path["name"].meaning == "what it is called; note: not a field."
    assert by_path["kind"].meaning == by_path["mix"].meaning == "shared meaning."
    assert (by_path["kind"].type, by_path["kind"].allowed) == ("text", "'a', 'b'")
    assert by_path["mix"].type == "float by name"
    assert (by_path["steps"].type, by_path["steps"].allowed) == ("list of int", "each at least 1")
    depth = by_path["inner.depth"]
    assert (depth.default, depth.allowed, depth.meaning) == (3, "at least 1", "of ``it``, or more.")
    assert [section.path for section in sections(Outer, Outer("x", system=Inner()))] == ["", "inner", "system"]


def test_changed_values_are_marked():
    hostile = Outer("[red]\n\x1b[31m\u202e", kind="b", inner=Inner(3))
    lines = plain_lines(sections(Outer, hostile))
    assert [line[0] for line in lines] == [" ", "*", " ", " ", " "]
    assert "(default 'a') shared meaning." in lines[1]
    assert "'[red]\\n\\x1b[31m\\u202e'" in lines[0]
    assert not [line for line in lines if "\n" in line or "\x1b" in line]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_on_a_terminal_does_not_wrap(width):
    found = sections(RunConfig, run_config())
    console = Console(width=width, height=25, force_terminal=True, color_system=None)
    with console.capture() as captured:
        show_settings(found, console)
    lines = captured.get().splitlines()
    rows = sum(len(section.settings) + bool(section.path) for section in found)
    assert len(lines) == rows + 2  # a heading, and what the marks mean
    assert max(map(len, lines)) <= width


def test_in_a_pipe_every_setting_is_one_whole_line():
    found = sections(RunConfig, run_config())
    console = Console(width=40, force_terminal=False)
    with console.capture() as captured:
        show_settings(found, console)
    lines = captured.get().splitlines()
    assert len(lines) == sum(len(section.settings) for section in found)
    grace = next(line for line in lines if line.split()[0] == "stop_grace")
    assert grace.endswith("later answers are abandoned.")
