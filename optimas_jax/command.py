"""The command ``optimas``: runs the files of ``launch/`` by name, with configurations by name.

    optimas run hotpotqa:smoke --workdir=runs/smoke --config.seed=1

is ``python launch/run.py --config=configs/hotpotqa.py:smoke --workdir=runs/smoke --config.seed=1``.
"""

from __future__ import annotations

import ast
import runpy
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from optimas_jax.core import shipped
from optimas_jax.core.text.nearest import did_you_mean

_FLAG = "--config"
_DEFAULT = "hotpotqa"
_WIDTH = 100
_HELP = {"--help", "-h", "-help", "--helpfull", "-helpfull", "--helpshort", "-helpshort"}


class UnknownName(ValueError):
    """A command or a configuration that does not exist; the message lists the existing ones."""


def main() -> None:
    """Runs the command line; the process ends with the command's exit code."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "-help", "--help", "help"):
        print(usage(commands()))
        return
    try:
        file = _named(name, commands(), "command", "optimas --help says what they do")
        sys.argv = [str(file), *(with_configuration(arguments) if _takes_configuration(file) else arguments)]
    except UnknownName as error:
        sys.exit(f"error: {error}")
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as ended:  # absl ends with 1 after help that was asked for
        sys.exit(0 if ended.code == 1 and _HELP.intersection(arguments) else ended.code)


def commands() -> dict[str, Path]:
    """The files of ``launch/`` by name."""
    return {path.stem: path for path in sorted(shipped.folder("launch").glob("*.py"))}


def configurations() -> dict[str, Path]:
    """The files of ``configs/`` by name."""
    return {path.stem: path for path in sorted(shipped.folder("configs").glob("*.py"))}


def usage(files: Mapping[str, Path]) -> str:
    """Help: a line for each command."""
    width = max(map(len, files))
    lines = [f"  {name:<{width}}  {_purpose(file)}" for name, file in files.items()]
    return "\n".join(
        [
            "optimas COMMAND [CONFIGURATION[:VARIANT]] [--flag=value ...]",
            "",
            *lines,
            "",
            f"Configurations: {', '.join(configurations())}, or a .py file of your own; any field of it is a flag:",
            "optimas run hotpotqa:smoke --config.seed=1. `optimas COMMAND --help` lists a command's other flags; where",
            "it says python launch/NAME.py, optimas NAME is the same.",
        ]
    )


def with_configuration(arguments: Sequence[str]) -> list[str]:
    """Arguments with the path of their configuration, which may be the first argument or ``--config``, a file or a
    name: ``hotpotqa:smoke`` -> ``--config=.../configs/hotpotqa.py:smoke``.

    Raises:
      UnknownName: for a configuration that does not exist.
    """
    files = configurations()
    if arguments and not arguments[0].startswith("-"):
        return [f"{_FLAG}={_path(arguments[0], files)}", *arguments[1:]]
    flag, split = f"{_FLAG}=", [*arguments]
    while _FLAG in split[:-1]:  # --config NAME
        at = split.index(_FLAG)
        split[at : at + 2] = [flag + split[at + 1]]
    if not any(argument.startswith(flag) for argument in split):
        return [flag + _path(_DEFAULT, files), *split]
    return [
        flag + _path(argument.removeprefix(flag), files) if argument.startswith(flag) else argument
        for argument in split
    ]


def _path(text: str, files: Mapping[str, Path]) -> str:
    """``FILE[:VARIANT]`` of a configuration."""
    name, colon, variant = text.partition(":")
    path = shipped.find(name) if name.endswith(".py") else _named(name, files, "configuration", "or give a .py file")
    if not path.is_file():
        raise UnknownName(
            f"there is no file {name!r}; configurations are {', '.join(files)}, or a .py file of your own"
        )
    return f"{path}{colon}{variant}"


def _named(name: str, files: Mapping[str, Path], kind: str, otherwise: str) -> Path:
    if name not in files:
        near = did_you_mean(name, files) or ";"
        raise UnknownName(f"unknown {kind} {name!r}{near} known: {', '.join(files)}; {otherwise}")
    return files[name]


def _takes_configuration(file: Path) -> bool:
    return "DEFINE_config_file" in file.read_text(encoding="utf-8")


def _purpose(file: Path) -> str:
    """The first sentence of a file's docstring, shortened; the file is not run."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".")
    return textwrap.shorten(sentence, _WIDTH, placeholder=" ...")
