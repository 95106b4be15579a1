"""What every command does: errors for the user, in flags or later, are one line with a way out, and no traceback."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimas_jax.core.shipped import folder
from optimas_jax.core.types import StopRun
from optimas_jax.report.process import INTERRUPTED

_ERROR = re.compile(r"^\w*(?:Error|Exception): (.*)$", re.MULTILINE)


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
    except flags.Error as error:
        inner = _ERROR.findall(str(error))  # the traceback of a configuration's own error is part of its text
        message = inner[-1] if inner else f"{error}. --help lists the flags"
    except OSError as error:
        known = ", ".join(sorted(f"configs/{path.name}" for path in folder("configs").glob("*.py")))
        message = f"{_last_line(error)}. Give a configuration of your own, or one of {known}"
    except ValueError as error:
        message = str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, AttributeError) and "ml_collections" in where.filename:
            words = str(error).strip("'\"").replace("\\n", ". ").replace("\\'", "'")
            message = f"the configuration has no field {words}"
        else:  # of the configuration's own file
            message = f"{where.filename}, line {where.lineno}: {type(error).__name__}: {error}"
    print(f"\nerror: {message}", file=sys.stderr)
    sys.exit(1)


def exit_code(action: Callable[[], int | None]) -> int:
    """Runs a command: its own exit code or 0; 1 after an error, printed in one line with its notes, and 130 after
    an interrupt."""
    try:
        return action() or 0
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except (StopRun, ValueError) as error:
        notes = "".join(f"\n  ({note})" for note in getattr(error, "__notes__", ()))
        print(f"\nerror: {error}{notes}", file=sys.stderr)
        return 1


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
