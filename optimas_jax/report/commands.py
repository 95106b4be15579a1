"""What every command does: errors for the user, in flags or later, are one line with a way out, and no traceback."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimas_jax.core.frames import (
    describe_error,
    error_text,
    files_of,
    frames_text,
    is_library,
    is_users,
    own_frames,
    where,
)
from optimas_jax.core.secrets import Redacted
from optimas_jax.core.shipped import folder
from optimas_jax.core.types import StopRun
from optimas_jax.report.process import code_of, end_with_parent, interrupt_on_terminate

_ERROR = re.compile(r"^\w*(?:Error|Exception): (.*)$", re.MULTILINE)
_PARSERS = re.compile(r"[/\\](absl|ml_collections)[/\\]")
_CONFIG_FILE = re.compile(r"Attempted \[.*\]:\s+(.*)")  # of ml_collections


def parse_flags(flags: Any, argv: list[str]) -> list[str]:
    """Parses flags for ``absl.app.run(main, flags_parser=...)``; ends the process with exit code 1 after an error.

    Args:
      flags: the module ``absl.flags``, which this package does not import.
      argv: of the command.

    Returns:
      What is not a flag.
    """
    for argument in argv:  # a configuration may import modules beside it
        name, _, file = argument.partition("=")
        if name.lstrip("-") == "config" and (beside := str(Path(file).resolve().parent)) not in sys.path:
            sys.path.append(beside)
    try:
        left = flags.FLAGS(argv)
        config = flags.FLAGS.config if "config" in flags.FLAGS else ""
        if not isinstance(config, str):
            _ = config.to_dict  # where a file that cannot be loaded is told of
        return left
    except Exception as error:
        message = _own_error(error) or _flag_error(flags, error)
    print(f"\nerror: {message}", file=sys.stderr)
    sys.exit(1)


def _own_error(error: BaseException) -> str:
    """The message of an error that a configuration's own code raised, with its frames; "" for any other."""
    raised: BaseException | None = error
    while raised is not None and _PARSERS.search((files_of(raised) or [""])[-1]):
        raised = raised.__cause__ or raised.__context__  # the parsers of flags raise errors of their own instead
    if isinstance(raised, SyntaxError) and raised.filename and not is_library(raised.filename):
        return f"{raised.filename}, line {raised.lineno}: {type(raised).__name__}: {raised.msg}"
    if raised is None or not own_frames(raised):
        return ""
    if is_users(raised):
        return f"{type(raised).__name__}: {raised}\n{frames_text(raised)}"
    shipped = Path(own_frames(raised)[-1].tb_frame.f_code.co_filename).resolve().parent == folder("configs").resolve()
    return f"{raised}{'' if shipped else where(raised)}" if isinstance(raised, StopRun | ValueError) else ""


def _flag_error(flags: Any, error: Exception) -> str:
    """The message of an error in the flags."""
    if isinstance(error, flags.Error):
        inner = _ERROR.findall(str(error))  # the traceback of a configuration's own error is part of its text
        return inner[-1] if inner else f"{error}. --help lists the flags"
    if isinstance(error, OSError):
        file = _CONFIG_FILE.search(str(error))
        if file and Path(file[1]).is_file():
            return f"{file[1]} opens a file that is not there: {_last_line(error)}"
        known = ", ".join(sorted(f"configs/{path.name}" for path in folder("configs").glob("*.py")))
        return f"{_last_line(error)}. Give a configuration of your own, or one of {known}"
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, AttributeError) and "get_config" in str(error):
        return "the configuration has no function get_config(variant), which configs/own_system.py shows"
    if isinstance(error, AttributeError) and "ml_collections" in files_of(error)[-1]:
        words = str(error).strip("'\"").replace("\\n", ". ").replace("\\'", "'")
        return f"the configuration has no field {words}"
    return describe_error(error)


def exit_code(action: Callable[[], int | None]) -> int:
    """Runs a command: its own exit code or 0; 1 after an error, printed in one line with its notes, 130 after an
    interrupt and 143 after SIGTERM. Warnings for the user are one line, too, and no secret is in any line."""
    interrupt_on_terminate()
    with contextlib.redirect_stdout(Redacted(sys.stdout)), contextlib.redirect_stderr(Redacted(sys.stderr)):
        return _exit_code(action)


def run_alone(action: Callable[[], None]) -> int:
    """``exit_code`` of the work of a process that ``run_module`` started. An error for the user is the last thing that
    it prints."""
    end_with_parent()
    logging.disable(logging.INFO)  # of libraries; progress has its own lines
    return exit_code(action)


def _exit_code(action: Callable[[], int | None]) -> int:
    try:
        with warnings.catch_warnings(record=False):
            warnings.showwarning = _show_warning
            return action() or 0
    except KeyboardInterrupt as stopped:
        print("\nstopped; the same command resumes", file=sys.stderr)
        return code_of(stopped)
    except (StopRun, ValueError) as error:
        print(f"\nerror: {error_text(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        if is_users(error):
            print(f"\nerror: {type(error).__name__}: {error}\n{frames_text(error)}", file=sys.stderr)
        else:  # a fault of this package
            print("".join(traceback.format_exception(error)), file=sys.stderr)
        return 1


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    text = f"warning: {message}" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: {message}"
    print(text, file=sys.stderr)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
