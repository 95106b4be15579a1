"""A saved configuration, and what the folder of its run says about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import FolderError, read_file
from optimas_jax.core.types import digest
from optimas_jax.core.values import Configuration
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.specs import provider
from optimas_jax.loop.journal import BEST, CONFIGURATION, JOURNAL, config_json, load_best
from optimas_jax.saved.models import language_model

_OF_RUNS = {"benchmark", "system"}  # of the fields of a run's config.json


@dataclasses.dataclass(frozen=True)
class Saved:
    """A ``best/`` folder.

    Attributes:
      folder: that holds the configuration, adapters and local rewards.
      configuration: value of each tuned component.
      settings: ``config.json`` of its run as plain data; where there is none beside the folder, what the folder itself
        has of them (``RunFolder.save_best``).
    """

    folder: Path
    configuration: Configuration
    settings: Mapping[str, Any]

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder.parent

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
        """Names configuration and settings."""
        return digest(self.configuration.to_json(), self.settings)

    def language_model(self, model: str | LanguageModel | None = None) -> LanguageModel:
        """The language model that answers: the run's, or another one. A spec takes over what the run has set of
        sampling, and its style if it answers in the same way.

        Raises:
          FolderError: nothing says which one the run had.
        """
        if model is None and not self.settings:
            raise FolderError(
                f"{self.folder} does not say which language model it was found with, and no run is around it: name one "
                "with model="
            )
        known = self.settings.get("system", {}).get("language_model")
        if not known or isinstance(model, LanguageModel):
            return language_model(model)
        own = LanguageModel(**known)
        if model is None:
            return own
        return dataclasses.replace(
            own, model=model, style=own.style if provider(model) == provider(own.model) else "chat"
        )


def read_folder(folder: str | Path) -> Saved:
    """A ``best/`` folder, or the one of a run folder.

    Raises:
      FolderError: the folder holds no configuration, or a file is damaged.
    """
    path = Path(folder).resolve()
    best = path if (path / CONFIGURATION).is_file() or not (path / BEST).is_dir() else path / BEST
    configuration = load_best(best)
    carried = (read_file(best / CONFIGURATION) or {}).get("settings", {})
    return Saved(best, configuration, _settings_around(best, carried))


def _settings_around(best: Path, carried: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the run around a ``best/`` folder, or those that it carries: it may lie beside a ``config.json``
    of something else."""
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
    """A saved configuration, the language model that answers, and the folder that it is from, if it is from one."""
    if best is None or isinstance(best, Configuration):
        return best, language_model(model), None
    saved = read_folder(best)
    return saved.configuration, saved.language_model(model), saved
