"""Uploads the groups of a run, or downloads groups for a run.

python launch/groups.py --workdir=runs/X --push=ORG/NAME [--public]    uploads them to the Hugging Face hub; private
python launch/groups.py --workdir=runs/X --pull=ORG/NAME               then --stage=train on the same workdir uses them

A data set that the original project published can be pulled too, for a system with the same components and fields.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags

from optimas_jax.core.types import StopRun
from optimas_jax.rewards.data import load_groups, save_groups
from optimas_jax.rewards.hub import pull_groups, push_groups

_WORKDIR = flags.DEFINE_string("workdir", "", "Run folder.")
_PUSH = flags.DEFINE_string("push", "", "Data set on the hub to write to, ORG/NAME.")
_PULL = flags.DEFINE_string("pull", "", "Data set on the hub, or a folder with a copy of one, to read from.")
_PUBLIC = flags.DEFINE_bool("public", False, "Whether everyone may read a new data set.")


def main(argv: list[str]) -> int:
    """Uploads or downloads the groups; returns the exit code."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not _WORKDIR.value or bool(_PUSH.value) == bool(_PULL.value):
        raise app.UsageError("--workdir and either --push or --pull are needed")
    folder = Path(_WORKDIR.value) / "groups" / "offline"
    try:
        if _PULL.value:
            groups = pull_groups(_PULL.value)
            folder.parent.mkdir(parents=True, exist_ok=True)
            save_groups(folder, groups)
            print(f"{len(groups)} groups in {folder}")
        else:
            groups = load_groups(folder)
            if groups is None:
                print(f"error: no groups in {folder}: --stage=collect makes them", file=sys.stderr)
                return 1
            print(push_groups(groups, _PUSH.value, public=_PUBLIC.value))
    except StopRun as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
