"""Values (what a component is configured with), spaces (what is allowed), configurations (one value per component).

All are immutable, round-trip through JSON, and are named by a digest of their content.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from optimas_jax.core.types import digest, freeze, thaw


@dataclasses.dataclass(frozen=True)
class Demo:
    """One demonstration: inputs of a component and the outputs it should give."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", freeze(self.inputs))
        object.__setattr__(self, "outputs", freeze(self.outputs))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An instruction and demonstrations, shown before the component's own input."""

    instruction: str
    demos: tuple[Demo, ...] = ()


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Named numbers or words, such as a retriever's ``k``."""

    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", freeze(self.settings))

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The name of a model, tool or route."""

    name: str


@dataclasses.dataclass(frozen=True)
class Adapter:
    """LoRA weights, named by the digest of what is in them; "" for the base itself."""

    digest: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9A-Za-z_-]*", self.digest):  # it names a folder
            raise ValueError(f"an adapter is named by letters, digits, _ and -, got {self.digest!r}")


BASE = Adapter("")

Value = Prompt | Hyperparameters | Choice | Adapter


def value_to_json(value: Value) -> dict[str, Any]:
    """Plain data with a ``type`` field."""
    match value:
        case Prompt(instruction, demos):
            shown = [{"inputs": thaw(demo.inputs), "outputs": thaw(demo.outputs)} for demo in demos]
            return {"type": "prompt", "instruction": instruction, "demos": shown}
        case Hyperparameters(settings):
            return {"type": "hyperparameters", "settings": thaw(settings)}
        case Choice(name):
            return {"type": "choice", "name": name}
        case Adapter(name):
            return {"type": "adapter", "digest": name}


def value_from_json(data: Mapping[str, Any]) -> Value:
    """Reads what ``value_to_json`` wrote.

    Raises:
      ValueError: for an unknown type or a missing field.
    """
    try:
        match data["type"]:
            case "prompt":
                demos = tuple(Demo(demo["inputs"], demo["outputs"]) for demo in data["demos"])
                return Prompt(data["instruction"], demos)
            case "hyperparameters":
                return Hyperparameters(data["settings"])
            case "choice":
                return Choice(data["name"])
            case "adapter":
                return Adapter(data["digest"])
            case other:
                raise ValueError(f"unknown value type {other!r}; known: prompt, hyperparameters, choice, adapter")
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a value ({type(error).__name__}: {error}): {data!r}") from error


def value_digest(value: Value) -> str:
    return digest(value_to_json(value))


@dataclasses.dataclass(frozen=True)
class PromptSpace:
    """Free text and up to ``max_demos`` demonstrations."""

    max_demos: int = 4
    max_instruction_chars: int = 2000

    def check(self, value: Value | None) -> None:
        if not isinstance(value, Prompt):
            raise ValueError(f"needs a Prompt, got {value!r}")
        if len(value.demos) > self.max_demos or len(value.instruction) > self.max_instruction_chars:
            raise ValueError(
                f"prompt has {len(value.demos)} demonstrations and {len(value.instruction)} characters of instruction; "
                f"allowed are {self.max_demos} and {self.max_instruction_chars}"
            )


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every combination of the listed settings."""

    settings: Mapping[str, tuple[Any, ...]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", freeze(self.settings))
        empty = [name for name, allowed in self.settings.items() if not allowed]
        if not self.settings or empty:
            raise ValueError(
                f"a grid needs at least one setting, each with at least one value; got {thaw(self.settings)}"
            )

    def check(self, value: Value | None) -> None:
        if not isinstance(value, Hyperparameters) or value not in tuple(self.values()):
            raise ValueError(f"{value!r} is not on the grid {thaw(self.settings)}")

    def values(self) -> Iterator[Hyperparameters]:
        """All points, the last setting varying fastest."""
        for point in itertools.product(*self.settings.values()):
            yield Hyperparameters(dict(zip(self.settings, point, strict=True)))


@dataclasses.dataclass(frozen=True)
class Models:
    """One of several named models, tools or routes."""

    names: tuple[str, ...]

    def check(self, value: Value | None) -> None:
        if not isinstance(value, Choice) or value.name not in self.names:
            raise ValueError(f"{value!r} is not one of {', '.join(self.names)}")

    def values(self) -> Iterator[Choice]:
        for name in self.names:
            yield Choice(name)


@dataclasses.dataclass(frozen=True)
class LoraSpace:
    """LoRA weights of the component's own model."""

    def check(self, value: Value | None) -> None:
        if not isinstance(value, Adapter):
            raise ValueError(f"needs an Adapter, got {value!r}")


Space = PromptSpace | Grid | Models | LoraSpace


@dataclasses.dataclass(frozen=True)
class Configuration(Mapping[str, Value]):
    """Immutable mapping from component name to value: the paper's v."""

    values_by_name: Mapping[str, Value]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values_by_name", MappingProxyType(dict(self.values_by_name)))

    def __getitem__(self, name: str) -> Value:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def replace(self, name: str, value: Value) -> Configuration:
        """A new configuration with one value changed."""
        if name not in self.values_by_name:
            raise KeyError(f"no component {name!r} in this configuration; it has {', '.join(self.values_by_name)}")
        return Configuration({**self.values_by_name, name: value})

    def to_json(self) -> dict[str, Any]:
        return {name: value_to_json(value) for name, value in self.values_by_name.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Configuration:
        return cls({name: value_from_json(value) for name, value in data.items()})

    @property
    def digest(self) -> str:
        return digest(self.to_json())
