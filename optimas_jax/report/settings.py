"""Settings shown: a table on a terminal, plain lines in a pipe, a page of documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimas_jax.core.settings import REQUIRED, Section, Setting, value_text
from optimas_jax.core.text.secrets import redact

_MARK = "*"  # of a value that is not the default
_WIDEST = 20  # letters of a value in a table
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def show_settings(found: Sequence[Section], console: Console) -> None:
    """Prints settings with their values: on a terminal a table, with a row for each setting that is cut to the width;
    elsewhere a whole line for each. ``*`` marks settings that differ from the default."""
    changed = sum(differs(setting) for section in found for setting in section.settings)
    if not console.is_terminal:
        console.print("\n".join(plain_lines(found)), markup=False, soft_wrap=True)
        return
    console.print(_table(found))
    console.print(
        Text(f"{_MARK} {changed} differ from the default. Whole texts: the same command | less, docs/configuration.md"),
        no_wrap=True,
        overflow="ellipsis",
    )


def plain_lines(found: Sequence[Section]) -> list[str]:
    """Every setting as one line: mark, name, value, meaning; where the value is not the default, also the default."""
    settings = [setting for section in found for setting in section.settings]
    name_width, value_width = (max((len(text(setting)) for setting in settings), default=0) for text in (_name, _value))
    return [
        f"{_mark(setting):<1} {_name(setting):<{name_width}}  {_value(setting):<{value_width}}  {_meaning(setting)}"
        for setting in settings
    ]


def differs(setting: Setting) -> bool:
    """Whether a value is not the default; a setting without a default never differs."""
    return setting.default is not REQUIRED and setting.value != setting.default


def _table(found: Sequence[Section]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="bold")
    table.add_column("", width=1)
    table.add_column("setting", no_wrap=True, overflow="fold")
    table.add_column("value", no_wrap=True, overflow="ellipsis", max_width=_WIDEST)
    table.add_column("meaning", no_wrap=True, overflow="ellipsis", ratio=1)
    for section in found:
        if section.path:
            table.add_row("", Text(section.path, style="bold"), "", Text(_plain(_first(section.meaning)), style="dim"))
        for setting in section.settings:
            style = "bold" if differs(setting) else ""
            name = f"{'  ' * bool(section.path)}{setting.path.rpartition('.')[2]}"
            table.add_row(_mark(setting), Text(name, style), Text(_value(setting), style), Text(_meaning(setting)))
    return table


def _mark(setting: Setting) -> str:
    return _MARK * differs(setting)


def _name(setting: Setting) -> str:
    return setting.path


def _value(setting: Setting) -> str:
    return _CONTROL.sub("?", redact(value_text(setting.value)))


def _meaning(setting: Setting) -> str:
    return (f"(default {value_text(setting.default, 40)}) " if differs(setting) else "") + _plain(setting.meaning)


def _plain(text: str) -> str:
    """A text of a docstring without its markup, in one line."""
    return _CONTROL.sub("?", " ".join(text.replace("``", "'").split()))


def _first(text: str) -> str:
    return text.partition("\n\n")[0]


# The page


def page(
    found: Sequence[Section], systems: Mapping[str, Sequence[Section]], modes: Mapping[str, Mapping[str, Any]]
) -> str:
    """The text of ``docs/configuration.md``.

    Args:
      found: all sections but ``system``.
      systems: sections of ``system`` by benchmark.
      modes: values of switches by mode.
    """
    parts = [_HEAD]
    for section in found:
        parts.append(_section(section, f"config.{section.path}" if section.path else "config"))
        if section.path == "optimize":
            parts.append(_modes(modes))
    parts.append("## config.system\n\nThe system before optimisation. Its settings depend on the benchmark.")
    for benchmark, inner in systems.items():
        parts += [_section(part, f"config.{part.path} of {benchmark}", level=3) for part in inner]
    return "\n\n".join(parts) + "\n"


_HEAD = """\
# Configuration

<!-- Made from the dataclasses by `python launch/settings.py > docs/configuration.md`; a test holds it to them. -->

Every setting of a run. On the command line a setting is a flag: `--config.optimize.iterations=4`. In Python it is an
entry of `config`: `oj.optimize(..., config={"optimize.iterations": 4})`. `optimas run hotpotqa:smoke --settings` prints
all settings with their values in that configuration, and marks values that are not the default. Names such as
`loop.setup.recordings` in a meaning are modules of `optimas_jax`."""


def _section(section: Section, title: str, level: int = 2) -> str:
    role = "" if section.role.startswith("see ") else section.role
    head = [f"{'#' * level} {title}", _markdown(section.meaning), _markdown(role[:1].upper() + role[1:])]
    if section.settings:
        rows = [
            _row(f"`{setting.path}`", *_type(setting), _code(setting.default), _cell(setting.meaning))
            for setting in section.settings
        ]
        head.append("\n".join([_row("setting", "type", "allowed", "default", "meaning"), _row(*["---"] * 5), *rows]))
    return "\n\n".join(filter(None, head))


def _modes(modes: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for switches in modes.values() for name in _leaves(switches)))
    leaves = {mode: _leaves(switches) for mode, switches in modes.items()}
    rows = [_row(f"`optimize.{name}`", *(_code(leaves[mode][name]) for mode in modes)) for name in names]
    return "\n\n".join(
        [
            "Switches that follow `optimize.mode` unless they are set themselves:",
            "\n".join([_row("switch", *modes), _row(*["---"] * (1 + len(modes))), *rows]),
        ]
    )


def _leaves(switches: Mapping[str, Any]) -> dict[str, Any]:
    leaves = {}
    for name, value in switches.items():
        leaves |= (
            {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return leaves


def _type(setting: Setting) -> tuple[str, str]:
    return setting.type, setting.allowed.replace("'", "`")


def _code(value: Any) -> str:
    return value_text(value) if value is REQUIRED else f"`{value_text(value)}`"


def _cell(text: str) -> str:
    return _markdown(" ".join(text.split())).replace("|", "\\|")


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
