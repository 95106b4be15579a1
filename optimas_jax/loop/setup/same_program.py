"""The program of a run folder: the results of one program are not replaced by those from another one.

Everything in a folder is named by its content, so that an edited program can continue in it: new requests are paid for,
all others come from the tape. A program with a corrected function continues in its folder, until that has results.
Other prompts, settings, components or data are another run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from optimas_jax.core.folder.files import FolderError, read_file
from optimas_jax.core.progress import Progress
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, digest
from optimas_jax.loop.journal import RESULTS, RunFolder, is_unused
from optimas_jax.programs.identity import identity_of

PROGRAM = "identity.json"
_DATA = "the data"
_NO_HOOKS: Mapping[str, Callable[..., Any]] = MappingProxyType({})


def check_components(workdir: Path, system: System) -> None:
    """Compares the components of a program with the components in earlier commands in its folder. This comes before the
    comparison of settings, as the number of iterations may follow from the number of components.

    Raises:
      FolderError: the folder belongs to a program with other components.
    """
    saved = read_file(workdir / PROGRAM)
    if system.program is None or saved is None:
        return
    old, new = saved["declared"], system.declared
    missing = [f"{name} is not found in it" for name in old if name not in new and name != _DATA]
    added = [f"{name} is new" for name in new if name not in old]
    if (missing or added) and not is_unused(workdir):
        raise _another(workdir.resolve(), ", ".join(missing + added), (workdir / RESULTS).is_file())


def check_program(
    folder: RunFolder,
    system: System,
    splits: Mapping[str, Sequence[Example]],
    progress: Progress,
    hooks: Mapping[str, Callable[..., Any]] = _NO_HOOKS,
) -> None:
    """Compares a program and its hooks with earlier commands in the run folder, and writes their digests there.

    Args:
      hooks: own steps of the search, by their names in messages.

    Raises:
      FolderError: the folder belongs to another program or to other hooks, or has results of another version of them.
    """
    _check_hooks(folder, hooks)
    if system.program is None and not hooks:
        return
    rows = [[e.id, e.inputs, e.gold, e.kind] for split in sorted(splits) for e in splits[split]]
    declared = {} if system.program is None else {**system.declared, _DATA: digest(rows)}
    code = {**system.code, **{what: digest(identity_of(hook)) for what, hook in hooks.items()}}
    new = {"declared": declared, "code": code, **({"hooks": sorted(hooks)} if hooks else {})}
    old = folder.read(PROGRAM)
    if old is not None and not folder.is_unused():
        declared, code = (_differences(old[part], new[part]) for part in ("declared", "code"))
        finished = folder.read(RESULTS) is not None
        if declared or (code and finished):
            raise _another(folder.path, f"{', '.join(dict.fromkeys((*declared, *code)))} changed", finished)
        if code:
            progress.line(
                f"{', '.join(code)} changed since this run was begun: it goes on; equal requests come from the tape"
            )
    if old != new:
        folder.write(PROGRAM, new)


def _check_hooks(folder: RunFolder, hooks: Mapping[str, Any]) -> None:
    """Compares the names of hooks with earlier commands; ``check_program`` compares their code."""
    if folder.is_unused():
        return
    earlier = (folder.read(PROGRAM) or {}).get("hooks", [])
    changes = [f"{name} is gone" for name in earlier if name not in hooks]
    changes += [f"{name} is new" for name in hooks if name not in earlier]
    if changes:
        raise FolderError(
            f"{folder.path} belongs to a run with other hooks: {', '.join(changes)}. Use another workdir= (--workdir), "
            "or the same hooks to resume; with a copy of tape.sqlite there, equal requests are free"
        )


def _another(folder: Path, what: str, finished: bool) -> FolderError:
    results = "its results stay" if finished else "what it holds stays"
    return FolderError(
        f"another program is in {folder}: {what}. Choose another workdir= (--workdir), so that {results}; with a copy "
        "of tape.sqlite there, equal requests are free"
    )


def edited_since(run: Path, system: System) -> tuple[str, ...]:
    """Names of the parts of a program that changed since the run of a folder: its function, components, their defaults;
    () where that is not known. Metric and hooks are left out: a program runs without them."""
    saved = read_file(run / PROGRAM)
    if system.program is None or saved is None:
        return ()
    now = {**system.declared, **system.code}
    changed = _differences({name: was for part in ("declared", "code") for name, was in saved[part].items()}, now)
    left_out = ("the metric ", "the own ")
    return tuple(name for name in dict.fromkeys(changed) if name != _DATA and not name.startswith(left_out))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]
