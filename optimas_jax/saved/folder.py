"""A saved configuration, and the settings of its run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import FolderError, read_file
from optimas_jax.core.types import digest
from optimas_jax.core.values import Configuration
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.specs import provider
from optimas_jax.loop.journal import BEST, CONFIGURATION, JOURNAL, RESULTS, UNFINISHED, config_json, load_best
from optimas_jax.saved.models import language_model

_OF_RUNS = {"benchmark", "system"}  # fields that the config.json of every run has


@dataclasses.dataclass(frozen=True)
class Saved:
    """A ``best/`` folder.

    Attributes:
      folder: holds the configuration, adapters and local rewards.
      configuration: value of each tuned component.
      settings: ``config.json`` of its run as plain data; where there is none beside the folder, the settings that the
        folder itself carries (``RunFolder.save_best``).
    """

    folder: Path
    configuration: Configuration
    settings: Mapping[str, Any]

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder.parent

    @property
    def stopped(self) -> str | None:
        """Why the run ended without results; None for a run with results, and for a folder without a run."""
        if self.folder.name != BEST or (self.run / RESULTS).exists():
            return None
        with contextlib.suppress(FolderError):  # the values are readable without it
            return (read_file(self.run / UNFINISHED) or {}).get("reason")
        return None

    @property
    def seed(self) -> int:
        return self.settings.get("seed", 0)

    @property
    def name(self) -> str:
        """The folder as a user names it: ``runs/X`` for ``runs/X/best``."""
        folder = self.run if self.folder.name == BEST else self.folder
        here = Path.cwd()
        return str(folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder)

    @property
    def digest(self) -> str:
        """Digest of configuration and settings."""
        return digest(self.configuration.to_json(), self.settings)

    def language_model(self, model: str | LanguageModel | None = None) -> LanguageModel:
        """The language model that answers: the run's, or ``model``. A spec keeps the run's settings of sampling, and
        its style if the provider is the same.

        Raises:
          FolderError: the language model of the run is not known.
        """
        if model is None and not self.settings:
            raise FolderError(
                f"{self.folder} does not say which language model it was found with, and no run is around it: name one "
                "with model="
            )
        model_settings = self.settings.get("system", {}).get("language_model")
        if not model_settings or isinstance(model, LanguageModel):
            return language_model(model)
        of_run = LanguageModel(**model_settings)
        if model is None:
            return of_run
        return dataclasses.replace(
            of_run, model=model, style=of_run.style if provider(model) == provider(of_run.model) else "chat"
        )


def read_folder(folder: str | Path) -> Saved:
    """Reads a ``best/`` folder, or the ``best/`` of a run folder.

    Raises:
      FolderError: the folder holds no configuration, or a file is damaged.
    """
    path = Path(folder).resolve()
    best = path if (path / CONFIGURATION).is_file() or not (path / BEST).is_dir() else path / BEST
    configuration = load_best(best)
    carried = (read_file(best / CONFIGURATION) or {}).get("settings", {})
    return Saved(best, configuration, _settings_around(best, carried))


def _settings_around(best: Path, carried: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the run around a ``best/`` folder, or the settings that it carries: a ``config.json`` beside it
    may belong to something else."""
    try:
        around = config_json(best.parent)
    except FolderError:
        if not carried and (best.parent / JOURNAL).is_file():  # it is a run
            raise
        return carried
    return around if around is not None and around.keys() >= _OF_RUNS else carried


def read_saved(
    best: str | Path | Configuration | None, model: str | LanguageModel | None
) -> tuple[Configuration | None, LanguageModel, Saved | None]:
    """A saved configuration, the language model that answers, and the folder of the configuration, if it has one."""
    if best is None or isinstance(best, Configuration):
        return best, language_model(model), None
    saved = read_folder(best)
    return saved.configuration, saved.language_model(model), saved
