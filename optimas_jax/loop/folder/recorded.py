"""``traces.json`` in a run folder: files of recorded calls, and their demonstrations without a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optimas_jax.core.folder.files import FolderError
from optimas_jax.core.values import Demo, Prompt, value_from_json, value_to_json
from optimas_jax.loop.journal import RunFolder
from optimas_jax.traces.read import TraceFiles

TRACES = "traces.json"


def check_traces(folder: RunFolder, files: TraceFiles) -> None:
    """Raises ``FolderError`` where a run folder was made with other recorded calls."""
    saved = folder.read(TRACES)
    if saved is not None and saved["files"] != dict(files.digests):
        raise FolderError(
            f"{folder.path} was made with other recorded calls than {', '.join(files.digests) or 'none'} holds now: "
            "put them back as they were, or use another workdir= (--workdir)"
        )


def write_traces(
    folder: RunFolder, files: TraceFiles, left_out: Mapping[str, int], demos: Mapping[str, Sequence[Demo]]
) -> None:
    """Writes files, numbers of unused calls by reason, and demonstrations without a score by component."""
    prompts = {name: value_to_json(Prompt("", tuple(unscored))) for name, unscored in demos.items()}
    numbers = {"calls": len(files.calls), "left_out": dict(sorted(left_out.items()))}
    folder.write(TRACES, {"files": dict(files.digests), **numbers, "demos": prompts})


def recorded_demos(folder: RunFolder, name: str) -> tuple[Demo, ...]:
    """Demonstrations of a component that have no score."""
    saved = (folder.read(TRACES) or {}).get("demos", {}).get(name)
    prompt = None if saved is None else value_from_json(saved)
    return prompt.demos if isinstance(prompt, Prompt) else ()
