"""What all commands share: errors for the user, in flags or later, are one line with a way out, without a traceback."""

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

from optimas_jax.core.text.frames import error_text, frames_text, is_users
from optimas_jax.core.text.secrets import Redacted
from optimas_jax.core.types import StopRun
from optimas_jax.report.flag_errors import flag_message
from optimas_jax.report.process import LEAVE_SECONDS, code_of, end_on_signals, end_with_parent, interrupt_on_terminate

RESUMES = "the same command resumes"  # what an interrupt says of the work that was done
DEFAULT_CONFIG = "configs/hotpotqa.py"


def parse_flags(flags: Any, argv: list[str], *, config: str = "") -> list[str]:
    """Parses flags for ``absl.app.run(main, flags_parser=...)``; ends the process with exit code 1 after an error.

    Args:
      flags: the module ``absl.flags``, which this package does not import.
      argv: of the command.
      config: configuration file of a command line without ``--config``. A default of the flag itself would already be
        loaded, with errors of the flags that change it, while the flag is defined.

    Returns:
      The arguments that are not flags.
    """
    if config and not any(re.match("--?config(=|$)", argument) for argument in argv):
        argv[1:1] = [f"--config={config}"]  # of sys.argv, which ml_collections reads
    for argument in argv:  # a configuration may import modules beside it
        name, _, file = argument.partition("=")
        if name.lstrip("-") == "config" and (beside := str(Path(file).resolve().parent)) not in sys.path:
            sys.path.append(beside)
    try:
        rest = flags.FLAGS(argv)
        loaded = flags.FLAGS.config if "config" in flags.FLAGS else ""
        if not isinstance(loaded, str):
            _ = loaded.to_dict  # raises if the file could not be loaded
        return rest
    except Exception as error:
        message = flag_message(flags, argv, error)
    print(f"\nerror: {message}", file=sys.stderr)
    sys.exit(1)


def exit_code(action: Callable[[], int | None], leave_seconds: float = LEAVE_SECONDS, kept: str = RESUMES) -> int:
    """Runs a command: its own exit code or 0; 1 after an error, printed in one line with its notes, 130 after an
    interrupt and 143 after SIGTERM. Warnings for the user are one line, too, and no secret is in any line.

    Args:
      leave_seconds: after an interrupt or SIGTERM, seconds until the process ends, whatever still waits.
      kept: what an interrupt says of the work that was done.
    """
    interrupt_on_terminate()
    with contextlib.redirect_stdout(Redacted(sys.stdout)), contextlib.redirect_stderr(Redacted(sys.stderr)):
        code = _exit_code(action, leave_seconds, kept)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader of the stream may be gone
            stream.flush()
    end_on_signals(code)
    return code


def run_alone(action: Callable[[], None]) -> int:
    """``exit_code`` of the work of a process that ``run_module`` started. An error for the user is the last thing that
    it prints."""
    end_with_parent()
    logging.disable(logging.INFO)  # of libraries; progress has its own lines
    return exit_code(action)


def _exit_code(action: Callable[[], int | None], leave_seconds: float, kept: str) -> int:
    try:
        with warnings.catch_warnings(record=False):
            warnings.showwarning = _show_warning
            return action() or 0
    except KeyboardInterrupt as stopped:
        print(f"\nstopped; {kept}", file=sys.stderr)
        return code_of(stopped, leave_seconds)
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
