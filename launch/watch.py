"""Shows a run in a browser while it goes on: progress, curve, bill and report; can pause and stop it.

python launch/watch.py runs/X [--port=8010] [--host=0.0.0.0 --api-key-env=NAME]

The run may not exist yet, may be finished, and may be started again meanwhile. A pause lets calls in flight end, and
holds the process before its next run of the system or step of training. A stop is like Ctrl-C: everything paid for is
kept, and the same command resumes.

The page is reached from this machine alone unless --host names another address. Then --api-key-env names the
environment variable with the password for which browsers ask (any user name). Ctrl-C ends the page; the run goes on.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags

from optimas_jax.core.types import StopRun
from optimas_jax.report.commands import exit_code, parse_flags

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8010, "Port to listen on; 0 for any that is free.")
_KEY = flags.DEFINE_string("api_key_env", "", "Environment variable with the password that browsers must send.")
flags.DEFINE_alias("api-key-env", "api_key_env")
_GRACE = 3.0  # seconds that open pages have when the server ends


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        raise app.UsageError("give the folder of one run: optimas watch runs/X")
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        print(f"error: {error}; install the server with: pip install 'optimas_jax[serve]'", file=sys.stderr)
        return 1
    logging.disable(logging.INFO)  # libraries log too much
    return exit_code(partial(watch, Path(argv[1])))


def watch(folder: Path) -> int:
    """Serves the page of a run until it is stopped."""
    from optimas_jax.report.watch.app import make_app
    from optimas_jax.server.running import serve

    check(folder)

    def make() -> tuple[Any, str]:
        return make_app(folder, has_key=bool(_KEY.value)), f"watching {folder} at {{}}"

    return serve(make, _HOST.value, _PORT.value, _KEY.value, _GRACE, challenge='Basic realm="optimas watch"')


def check(folder: Path) -> None:
    """Raises ``StopRun`` for a path that cannot become a run folder. A folder that does not exist yet is allowed."""
    try:
        inside = sorted(folder.iterdir()) if folder.exists() else []
    except (OSError, ValueError) as error:
        raise StopRun(f"cannot look into {folder} ({error}): give the folder of a run, such as runs/X") from error
    if inside and not (folder / "config.json").exists():
        runs = [str(path) for path in inside if (path / "config.json").is_file()][:10]
        hint = f"; in it are {', '.join(runs)}" if runs else ""
        raise StopRun(f"{folder} is no run folder, as it has no config.json: give the folder of one run{hint}")


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags))
