"""Reads GGUF files, versions 2 and 3, whole or split: all metadata at once, tensors one at a time.

``gguf.GGUFReader`` makes several numpy arrays of every vocabulary entry (seconds for a small model), and slices past
the end of a truncated file just come back shorter. Here every length is checked against the size of the file before
any tensor is read. Types, block sizes and dequantisation are the ``gguf`` package's.
"""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# All types that ``gguf.dequantize`` knows.
GGUF_TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("IQ4_NL", "IQ4_XS"),
)

_VERSIONS = (2, 3)
_KINDS = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4


class UnreadGguf(ValueError):
    """A file of an unsupported version or with unsupported types; it need not be damaged."""


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One stored tensor.

    Attributes:
      name: name in the file, ``blk.0.attn_q.weight``.
      kind: type of storage, ``F32``, ``Q4_1`` and so on.
      shape: outermost dimension first, as in numpy (the file has the reverse order).
      data: [rows, bytes of a row] uint8, mapped from the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray

    def read(self) -> np.ndarray:
        """The dequantised tensor, float32 of ``shape``, as a new array."""
        values = gguf.dequantize(self.data, gguf.GGMLQuantizationType[self.kind])
        return values.reshape(self.shape).astype(np.float32, copy=self.kind == "F32")


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """Metadata by key (scalars, strings, lists), and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Parses the header of a GGUF file, or of the files of a split one, and maps the tensors.

    Args:
      path: the file; for a split file the first part, ``NAME-00001-of-0000N.gguf``, with the others beside it, as
        llama.cpp's ``gguf-split`` writes them: the first has the metadata, and the numbers of files and tensors.

    Raises:
      ValueError: if a file is not a GGUF file, if its version or a tensor's type is not supported, if any part of it,
        tensor data included, lies beyond the end of the file, or if the parts of a split file do not belong together.
    """
    file = _read_file(path)
    count, number = (file.metadata.get(key, 0) for key in ("split.count", "split.no"))
    if type(count) is not int or type(number) is not int:
        raise ValueError(f"its split.count is {count!r} and its split.no {number!r}: expected whole numbers")
    if count <= 1:
        return file
    if number:
        raise ValueError(f"it is number {number} of {count}, counted from 0: give the first, {_name(path, 0, count)}")
    tensors = dict(file.tensors)
    for number in range(1, count):
        part_path = path.parent / _name(path, number, count)
        if not part_path.is_file():
            raise ValueError(f"it is the first of {count} files, of which {part_path.name} is missing")
        part = _read_file(part_path)
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            raise ValueError(f"{part_path.name} is not number {number} of {count}, counted from 0")
        tensors |= part.tensors
    expected = file.metadata.get("split.tensors.count")
    if len(tensors) != expected:
        raise ValueError(f"its {count} files have {len(tensors)} tensors, but the first says {expected}")
    return GgufFile(file.metadata, tensors)


def _name(path: Path, number: int, count: int) -> str:
    """Name of part ``number`` (from 0) of the split file that ``path`` is a part of."""
    name, cut = re.subn(r"-\d{5}-of-\d{5}$", "", path.stem)
    if not cut:
        raise ValueError(f"it is one of {count} files, which must be called NAME-00001-of-{count:05}.gguf and so on")
    return f"{name}-{number + 1:05}-of-{count:05}.gguf"


def _read_file(path: Path) -> GgufFile:
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    data = np.memmap(path, mode="r", dtype=np.uint8)
    cursor = _Cursor(data.data)
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not start with the four letters GGUF")
    version, num_tensors, num_fields = cursor.unpack("IQQ")
    if version not in _VERSIONS:
        raise UnreadGguf(f"it is of GGUF version {version}; read are {', '.join(map(str, _VERSIONS))} (little-endian)")
    metadata = {}
    for _ in range(num_fields):
        key = cursor.string()
        metadata[key] = cursor.value(*cursor.unpack("I"))
    infos = [_tensor_info(cursor) for _ in range(num_tensors)]
    refused = sorted({kind for _, kind, _, _ in infos} - set(GGUF_TYPES))
    if refused:
        raise UnreadGguf(
            f"it has tensors of type {', '.join(refused)}; read are {', '.join(GGUF_TYPES)}: take the model in one of "
            "these types"
        )
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its general.alignment is {alignment!r}, expected a power of two")
    start = -(-cursor.offset // alignment) * alignment
    tensors = {}
    for name, kind, shape, offset in infos:
        if name in tensors:
            raise ValueError(f"tensor {name} is in it twice")
        rows, row_bytes = _layout(name, kind, shape)
        begin, end = start + offset, start + offset + rows * row_bytes
        if end > data.size:
            raise ValueError(f"tensor {name} ends at byte {end}, but the file at byte {data.size}")
        tensors[name] = GgufTensor(name, kind, shape, data[begin:end].reshape(rows, row_bytes))
    return GgufFile(metadata, tensors)


class _Cursor:
    """A position in the header; reading beyond the end of the file raises ``ValueError``."""

    def __init__(self, data: memoryview):
        self._data = data
        self.offset = 0

    def take(self, size: int) -> bytes:
        end = self.offset + size
        if end > len(self._data):
            raise ValueError(f"its header ends beyond byte {end}, but the file at byte {len(self._data)}")
        content = bytes(self._data[self.offset : end])
        self.offset = end
        return content

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def string(self) -> str:
        return self.take(*self.unpack("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"its metadata has a value of unknown type {kind}")
        item, count = self.unpack("IQ")
        if item in _SCALARS:
            return list(self.unpack(f"{count}{_SCALARS[item]}"))
        return [self.value(item) for _ in range(count)]


def _tensor_info(cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """Name, kind, shape (outermost first) and offset in the data section of the next tensor."""
    name = cursor.string()
    (num_dims,) = cursor.unpack("I")
    if num_dims > _MAX_DIMS:
        raise ValueError(f"tensor {name} has {num_dims} dimensions; the format allows {_MAX_DIMS}")
    shape = tuple(reversed(cursor.unpack(f"{num_dims}Q")))
    kind, offset = cursor.unpack("IQ")
    return name, _KINDS.get(kind, f"number {kind}"), shape, offset


def _layout(name: str, kind: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of rows of a tensor, and bytes of a row; rows are whole blocks."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    width = shape[-1] if shape else 1
    if width % block:
        raise ValueError(f"tensor {name} has rows of {width} values, not a multiple of {kind}'s block of {block}")
    return math.prod(shape[:-1]), width // block * block_bytes
