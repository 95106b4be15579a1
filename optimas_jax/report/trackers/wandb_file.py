"""Reads from W&B's file of an offline run the numbers of the events that were written before a process was killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from optimas_jax.report.trackers.extras import library

_BLOCK, _HEAD = 32_768, 7  # of the file: blocks, and letters in front of the file and of each part


def last_number(folder: Path, run: str, key: str) -> int:
    """The highest number under ``key`` in the rows of a run; -1 without any.

    Args:
      folder: the folder that W&B was given.
      run: id of the run.
    """
    pb, last = library("wandb.proto.wandb_internal_pb2"), -1
    for file in folder.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb"):
        for data in _records(file.read_bytes()):
            record = pb.Record()
            record.ParseFromString(data)
            items = [item for item in record.history.item if key in (item.key, *item.nested_key)]
            last = max([last, *(int(json.loads(item.value_json)) for item in items)])
    return last


def _records(data: bytes) -> Iterator[bytes]:
    offset, record = _HEAD, b""
    while offset + _HEAD <= len(data):
        if (rest := _BLOCK - offset % _BLOCK) < _HEAD:
            offset += rest
            continue
        length, kind = int.from_bytes(data[offset + 4 : offset + 6], "little"), data[offset + 6]
        record += data[offset + _HEAD : offset + _HEAD + length]
        offset += _HEAD + length
        if kind in (1, 4) and offset <= len(data):  # a whole record, or its last part
            yield record
            record = b""
