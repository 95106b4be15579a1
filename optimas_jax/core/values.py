"""Values (settings of a component), spaces (sets of allowed values), configurations (one value per component).

All are immutable, round-trip through JSON, and are named by a digest of their content.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import digest, freeze, thaw, valid_text


@dataclasses.dataclass(frozen=True)
class Demo:
    """One demonstration: inputs of a component and the outputs it should give.

    Attributes:
      inputs, outputs: fields shown in a prompt.
      example_id: the example that it was taken from, or "". It is saved with the prompt, but is not shown, compared or
        part of ``value_digest``.
      recorded: file and line of the recorded call that it was taken from, or "". Saved, but not shown or compared, like
        ``example_id``.

    It raises nothing by itself.

    Example:
      ```python
      shown = oj.Demo({"question": "What is the capital of Chile?"}, {"answer": "Santiago"})
      answer = oj.prompt("Answer with a name.", name="answer", demos=[shown])
      ```
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    example_id: str = dataclasses.field(default="", compare=False)
    recorded: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", freeze(self.inputs))
        object.__setattr__(self, "outputs", freeze(self.outputs))


@dataclasses.dataclass(frozen=True)
class Prompt:
    """An instruction and demonstrations, shown before the component's own input."""

    instruction: str
    demos: tuple[Demo, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "instruction", valid_text(self.instruction))


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
    """LoRA weights, named by their digest; "" for the base model."""

    digest: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9A-Za-z_-]*", self.digest):  # it names a folder
            raise ValueError(f"an adapter is named by letters, digits, _ and -, got {self.digest!r}")


BASE = Adapter("")


@dataclasses.dataclass(frozen=True)
class PerInstance:
    """Several candidate outputs for every input, of which a local reward keeps one.

    With several values it is the paper's choice of a model for the input at hand; with one value and several samples
    it is best-of-N.

    Attributes:
      values: the values that produce candidates; none of them is a ``PerInstance``.
      reward: name of the local reward that scores them.
      samples: candidates of each value: its own output, and ``samples - 1`` sampled at ``temperature``.
      mode: ``argmax`` keeps the candidate with the highest local reward r; ``sample`` draws one in proportion to
        exp(r).
      temperature: sampling temperature of the samples after the first.
    """

    values: tuple[Prompt | Hyperparameters | Choice | Adapter, ...]
    reward: str
    samples: int = 1
    mode: Literal["argmax", "sample"] = "argmax"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values or any(isinstance(value, PerInstance) for value in self.values):
            raise ValueError(f"a choice per instance needs at least one plain value, got {self.values!r}")
        if type(self.samples) is not int or self.samples < 1:
            raise ValueError(f"samples is {self.samples!r}: a choice per instance needs 1 or more of each value")
        if self.mode not in PER_INSTANCE_MODES:
            raise ValueError(f"mode is {self.mode!r}; allowed: {', '.join(PER_INSTANCE_MODES)}")
        if not re.fullmatch(r"[0-9A-Za-z_-]+", self.reward):  # it names a folder
            raise ValueError(f"a local reward is named by letters, digits, _ and -, got {self.reward!r}")


PER_INSTANCE_MODES = ("argmax", "sample")

Value = Prompt | Hyperparameters | Choice | Adapter | PerInstance


def plain_values(value: Value) -> tuple[Value, ...]:
    """The value itself, or the values of a ``PerInstance``."""
    return value.values if isinstance(value, PerInstance) else (value,)


def shows(value: Value, example_id: str, inputs: Mapping[str, Any]) -> bool:
    """Whether a demonstration of a value comes from this example, or has the same component ``inputs``. Such a value is
    not tried on this example, because the model could repeat the demonstration."""
    demos = [demo for plain in plain_values(value) if isinstance(plain, Prompt) for demo in plain.demos]
    return any((demo.example_id and demo.example_id == example_id) or demo.inputs == freeze(inputs) for demo in demos)


_ORIGIN = ("example_id", "recorded")


def _demo_to_json(demo: Demo) -> dict[str, Any]:
    origin = {name: text for name in _ORIGIN if (text := getattr(demo, name))}
    return {"inputs": thaw(demo.inputs), "outputs": thaw(demo.outputs), **origin}


def value_to_json(value: Value) -> dict[str, Any]:
    """Plain data with a ``type`` field; demonstrations keep the example that they were taken from."""
    match value:
        case Prompt(instruction, demos):
            return {"type": "prompt", "instruction": instruction, "demos": [_demo_to_json(demo) for demo in demos]}
        case Hyperparameters(settings):
            return {"type": "hyperparameters", "settings": thaw(settings)}
        case Choice(name):
            return {"type": "choice", "name": name}
        case Adapter(name):
            return {"type": "adapter", "digest": name}
        case PerInstance(values, reward, samples, mode, temperature):
            return {
                "type": "per_instance",
                "values": [value_to_json(candidate) for candidate in values],
                "reward": reward,
                "samples": samples,
                "mode": mode,
                "temperature": temperature,
            }


def value_from_json(data: Mapping[str, Any]) -> Value:
    """Reads what ``value_to_json`` wrote.

    Raises:
      ValueError: for an unknown type or a missing field.
    """
    try:
        match data["type"]:
            case "prompt":
                return Prompt(
                    _field(data, "instruction", str), tuple(map(_demo_from_json, _field(data, "demos", list)))
                )
            case "hyperparameters":
                settings = _field(data, "settings", dict)
                return Hyperparameters({name: _field(settings, name, str | int | float | bool) for name in settings})
            case "choice":
                return Choice(_field(data, "name", str))
            case "adapter":
                return Adapter(_field(data, "digest", str))
            case "per_instance":
                values = tuple(value_from_json(candidate) for candidate in _field(data, "values", list))
                kinds = {"reward": str, "samples": int, "mode": str, "temperature": int | float}
                rest = [_field(data, name, kind) for name, kind in kinds.items()]
                return PerInstance(values, *rest)  # type: ignore[arg-type]
            case other:
                raise ValueError(
                    f"unknown value type {shown(other)}; known: prompt, hyperparameters, choice, adapter, per_instance"
                )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a value ({type(error).__name__}: {error}): {shown(data)}") from error


def _demo_from_json(data: Any) -> Demo:
    origin = [_field(data, name, str) if name in data else "" for name in _ORIGIN]
    return Demo(_field(data, "inputs", dict), _field(data, "outputs", dict), *origin)


def _field(data: Any, name: str, kind: Any) -> Any:
    """A field of an object; raises ``KeyError`` or ``TypeError`` if it is absent or of another type."""
    value = data[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, int | float)):
        raise TypeError(f"{name} is {shown(value)}")
    return value


def value_digest(value: Value) -> str:
    """Digest of a value's content: equal values have one digest, whatever examples their demonstrations come from."""
    return digest(value_to_json(_without_origins(value)))


def _without_origins(value: Value) -> Value:
    match value:
        case Prompt(instruction, demos):
            return Prompt(instruction, tuple(Demo(demo.inputs, demo.outputs) for demo in demos))
        case PerInstance(values):
            return dataclasses.replace(value, values=tuple(_without_origins(plain) for plain in values))
        case _:
            return value


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
        listed = [isinstance(allowed, tuple) and len(allowed) > 0 for allowed in self.settings.values()]
        if not listed or not all(listed):
            raise ValueError(
                f"a grid needs at least one setting, each with a list of at least one value; got {thaw(self.settings)}"
            )
        for name, allowed in self.settings.items():
            for index, setting in enumerate(allowed):
                if not (isinstance(setting, str | int) or (isinstance(setting, float) and math.isfinite(setting))):
                    raise ValueError(
                        f"grid value {name} = {thaw(setting)!r}: allowed are numbers, words, true and false"
                    )
                if any(type(setting) is type(other) and setting == other for other in allowed[:index]):
                    raise ValueError(f"grid value {name} = {setting!r} is listed twice")

    def __len__(self) -> int:
        """Number of points."""
        return math.prod(map(len, self.settings.values()))

    def check(self, value: Value | None) -> None:
        settings = value.settings if isinstance(value, Hyperparameters) else {}
        if set(settings) != set(self.settings) or any(settings[name] not in self.settings[name] for name in settings):
            raise ValueError(f"{value!r} is not on the grid {thaw(self.settings)}")

    def values(self) -> Iterator[Hyperparameters]:
        """All points, the last setting varying fastest."""
        for point in itertools.product(*self.settings.values()):
            yield Hyperparameters(dict(zip(self.settings, point, strict=True)))


@dataclasses.dataclass(frozen=True)
class Models:
    """One of several named models, tools or routes."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        wrong = [name for name in self.names if not isinstance(name, str) or not name or self.names.count(name) > 1]
        if not self.names or wrong:
            raise ValueError(f"names to choose from are different and not empty, at least one; got {list(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

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


def check_value(space: Space, value: Value | None) -> None:
    """Raises ``ValueError`` for a value that the space does not allow; for a ``PerInstance`` checks all its values."""
    for plain in (value,) if value is None else plain_values(value):
        space.check(plain)


def nothing_to_tune(space: Space | None) -> bool:
    """Whether a space allows a single value."""
    return isinstance(space, Grid | Models) and len(space) == 1


def other_values(space: Grid | Models, current: Value) -> list[Value]:
    """All values of the space except the current one, in the order of the space."""
    return [value for value in space.values() if value != current]


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
        """Digest of the configuration's content, see ``value_digest``."""
        return digest({name: value_to_json(_without_origins(value)) for name, value in self.values_by_name.items()})
