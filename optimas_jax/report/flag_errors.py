"""Messages of errors in flags: the value seen, the values allowed, the nearest name, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.shipped import folder
from optimas_jax.core.text.frames import describe_error, files_of, frames_text, is_library, is_users, own_frames, where
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.text.nearest import did_you_mean
from optimas_jax.core.types import StopRun

_ERROR = re.compile(r"^\w*(?:Error|Exception): (.*)$", re.MULTILINE)
_PARSERS = re.compile(r"[/\\](absl|ml_collections)[/\\]")
_CONFIG_FILE = re.compile(r"Attempted \[.*\]:\s+(.*)")  # of ml_collections
_OVERRIDE = re.compile(r"(no)?config\.(.*)", re.DOTALL)
_NO_CONFIG = re.compile("'(.*)' object has no attribute 'to_dict'")
# Errors of ml_collections about an unknown field in a configuration file. Their messages also list all known fields
# with their values.
_NEAR = re.compile(r'Did you mean "(?P<near>[^"]+)" instead of "(?P<name>[^"]+)"')
_NO_KEY = re.compile(r'Key "(?P<name>[^"]+)" does not exist')
_WORDS = {bool: "true or false", int: "int", float: "float"}


def flag_message(flags: Any, argv: Sequence[str], error: Exception) -> str:
    """The message of an error that parsing of flags raised.

    Args:
      flags: the module ``absl.flags``.
      argv: of the command.
    """
    return _own_error(error) or _override_error(flags, argv) or _flag_error(flags, error)


def _own_error(error: BaseException) -> str:
    """The message of an error that a configuration's own code raised, with its frames; "" for any other."""
    raised: BaseException | None = error
    while raised is not None and _PARSERS.search((files_of(raised) or [""])[-1]):
        raised = raised.__cause__ or raised.__context__  # the parsers of flags raise errors of their own instead
    if isinstance(raised, SyntaxError) and raised.filename and _is_users_file(raised.filename):
        return f"{raised.filename}, line {raised.lineno}: {type(raised).__name__}: {raised.msg}"
    if raised is None or not own_frames(raised):
        return ""
    if is_users(raised):
        return f"{type(raised).__name__}: {raised}\n{frames_text(raised)}"
    shipped = Path(own_frames(raised)[-1].tb_frame.f_code.co_filename).resolve().parent == folder("configs").resolve()
    return f"{raised}{'' if shipped else where(raised)}" if isinstance(raised, StopRun | ValueError) else ""


def _is_users_file(file: str) -> bool:
    return Path(file).is_file() and not is_library(file)


def _override_error(flags: Any, argv: Sequence[str]) -> str:
    """Message about the first flag that changes the configuration and names an unknown field or has a value of another
    type; "" without such a flag."""
    changes = list(_changes(argv[1:]))
    if not changes:
        return ""
    try:
        flag = flags.FLAGS["config"]
        file = next(value for name, value in _flags(argv[1:]) if name == "config")
        config = flag.parser.parse(file)
        plain = config.to_dict()
    except Exception:  # the configuration cannot be loaded even without changes: another error
        return ""
    return next(filter(None, (_change_error(config, plain, path, value) for path, value in changes)), "")


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Name and value of every flag; the value may be the next argument."""
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        if argument == "--":
            return
        if argument.startswith("-"):
            name, is_given, value = argument.lstrip("-").partition("=")
            yield name, value if is_given else None if following.startswith("-") else following


def _changes(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Path and value of every flag that changes a field of the configuration."""
    for name, value in _flags(arguments):
        if (match := _OVERRIDE.fullmatch(name)) is not None:
            yield match[2], "false" if match[1] else value


def _change_error(config: Any, plain: Mapping[str, Any], path: str, value: str | None) -> str:
    """Message about one change of the configuration; "" if it is valid. ``plain``: ``config`` as plain data."""
    node, names = plain, path.split(".")
    for index, name in enumerate(names):
        before = ".".join(["config", *names[:index]])
        if not isinstance(node, Mapping):
            return f"--config.{path:.200}: {before} is a value, {shown(node)}, and has no fields"
        if name not in node:
            near = did_you_mean(name, node) or f"; it has {', '.join(node)}."
            return f"{before} has no field {shown(name)}{near} --settings lists all"
        node = node[name]
    if isinstance(node, Mapping):
        first = next(iter(node), "NAME")
        return f"--config.{path}: config.{path} has fields of its own, set one of them: --config.{path}.{first}=..."
    if value is None and not isinstance(node, bool):
        return f"--config.{path} has no value: --config.{path}=VALUE"
    kind = _kind(config, names)  # also of a field whose value is left open
    if value is None or kind not in _WORDS or _is(kind, value) or (kind is bool and not value):
        return ""
    return f"--config.{path} is {shown(value)}, expected {_WORDS[kind]}"


def _kind(config: Any, names: Sequence[str]) -> Any:
    """The type of a field."""
    for name in names[:-1]:
        config = config[name]
    return config.get_type(names[-1])


def _is(kind: Any, text: str) -> bool:
    if kind is bool:
        return text.lower() in ("true", "t", "1", "false", "f", "0")
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _flag_error(flags: Any, error: Exception) -> str:
    """The message of any other error."""
    if isinstance(error, flags.UnrecognizedFlagError):
        flag = f"--{getattr(error, 'flagname', '')}"
        near = did_you_mean(flag, [f"--{name}" for name in flags.FLAGS]) or "."
        return f"unknown flag {flag:.200}{near} --help lists the flags"
    if isinstance(error, flags.Error):
        inner = _ERROR.findall(str(error))  # the traceback of a configuration's own error is part of its text
        return inner[-1] if inner else f"{str(error).rstrip('.')}. --help lists the flags"
    if isinstance(error, OSError):
        return _file_error(error)
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, AttributeError) and "get_config" in str(error):
        return "the configuration has no function get_config(variant), which configs/own_system.py shows"
    if isinstance(error, AttributeError) and (kind := _NO_CONFIG.search(str(error))):
        return f"get_config of the configuration returned a value of type {kind[1]}, expected a ConfigDict of settings"
    if (field := _NEAR.search(str(error)) or _NO_KEY.search(str(error))) is not None:
        near = did_you_mean(field["name"], [field["near"]]) if "near" in field.groupdict() else ";"
        return f"the configuration has no field {shown(field['name'])}{near} --settings lists all{where(error)}"
    return describe_error(error)


def _file_error(error: OSError) -> str:
    file = _CONFIG_FILE.search(str(error))
    if file and Path(file[1]).is_file():
        return f"{file[1]} opens a file that is not there: {_last_line(error)}"
    known = [f"configs/{path.name}" for path in sorted(folder("configs").glob("*.py"))]
    near = did_you_mean(file[1] if file else "", known) or "."
    return f"{_last_line(error)}{near} Give a configuration of your own, or one of {', '.join(known)}"


def _last_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[-1].strip().rstrip(".")
    return line.partition("an earlier failure to load: ")[2] or line
