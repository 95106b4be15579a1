"""Plain data as bytes, for the commands of process 0 to the others. A message cannot name code to run.

A message is JSON, followed by arrays as they are in memory. Types that JSON does not have are written with tags:
tuples, dicts with any keys, arrays, and dataclasses and named tuples under names that both sides know.

    size of head, size of text | head: type and shape of each array, and whether it is large | text | small arrays
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Types = Mapping[str, type]  # dataclasses and named tuples by name


def encode(value: Any, types: Types, most: int) -> tuple[bytes, list[np.ndarray]]:
    """The message of a value, and the arrays of more than ``most`` bytes, which are not in the message.

    Raises:
      TypeError: for a value that is neither plain data nor of a known type.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_plain(value, types, arrays), separators=(",", ":")).encode()
    head = json.dumps([[array.dtype.name, array.shape, array.nbytes > most] for array in arrays]).encode()
    small = [np.ascontiguousarray(array).tobytes() for array in arrays if array.nbytes <= most]
    message = b"".join([np.array([len(head), len(text)], "<u8").tobytes(), head, text, *small])
    return message, [array for array in arrays if array.nbytes > most]


def decode(message: bytes, types: Types, receive: Callable[[list[Any]], Sequence[np.ndarray]]) -> Any:
    """The value of a message; ``receive`` returns the large arrays for their ``jax.ShapeDtypeStruct``."""
    in_head, in_text = (int(size) for size in np.frombuffer(message, "<u8", 2))
    start, end = 16 + in_head, 16 + in_head + in_text
    arrays: list[Any] = []
    for name, shape, is_large in json.loads(message[16:start]):
        array = jax.ShapeDtypeStruct(shape, np.dtype(name))
        if not is_large:
            array = np.frombuffer(message, array.dtype, array.size, end).reshape(shape)
            end += array.nbytes
        arrays.append(array)
    large = [number for number, array in enumerate(arrays) if isinstance(array, jax.ShapeDtypeStruct)]
    if large:
        for number, array in zip(large, receive([arrays[number] for number in large]), strict=True):
            arrays[number] = array
    return _value(json.loads(message[start : start + in_text]), types, arrays)


def _plain(value: Any, types: Types, arrays: list[np.ndarray]) -> Any:
    kind = type(value).__name__
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if types.get(kind) is type(value):
        fields = value._asdict() if hasattr(value, "_asdict") else vars(value)
        return {"type": kind, "fields": {name: _plain(part, types, arrays) for name, part in fields.items()}}
    if isinstance(value, list):
        return [_plain(part, types, arrays) for part in value]
    if type(value) is tuple:
        all_ints = all(type(part) is int for part in value)  # token ids: most of what is sent
        return {"tuple": value if all_ints else [_plain(part, types, arrays) for part in value]}
    if isinstance(value, Mapping):
        return {"dict": [[key, _plain(part, types, arrays)] for key, part in value.items()]}
    raise TypeError(f"a {kind} cannot be told to other processes: give plain data, or one of {', '.join(types)}")


def _value(plain: Any, types: Types, arrays: Sequence[Any]) -> Any:
    if isinstance(plain, list):
        return [_value(part, types, arrays) for part in plain]
    if not isinstance(plain, dict):
        return plain
    if "array" in plain:
        return arrays[plain["array"]]
    if "tuple" in plain:
        return tuple(_value(part, types, arrays) for part in plain["tuple"])
    if "dict" in plain:
        return {key: _value(part, types, arrays) for key, part in plain["dict"]}
    return types[plain["type"]](**{name: _value(part, types, arrays) for name, part in plain["fields"].items()})
