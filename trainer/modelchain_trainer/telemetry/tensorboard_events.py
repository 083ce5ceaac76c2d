"""TensorBoard event files as bytes: a pure function of the scalars, so a file can be made again.

The format is TFRecord around `Event` messages (tensorflow/core/lib/io/record_writer.h,
tensorflow/core/util/event.proto). Of tensorboard only the generated messages are imported: its writers import
a stand-in for TensorFlow, which takes a second, and write to open files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_CRC32C_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class Scalars:
    """Values by tag at one step."""

    step: int
    wall_time: float  # seconds since 1970
    values: Mapping[str, float]


def encode_events(entries: Iterable[Scalars]) -> bytes:
    """An event file that holds `entries`."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    entries = list(entries)
    first_time = entries[0].wall_time if entries else 0.0
    records = [_record(Event(wall_time=first_time, file_version="brain.Event:2").SerializeToString())]
    for entry in entries:
        summary = Summary(
            value=[Summary.Value(tag=tag, simple_value=value) for tag, value in entry.values.items()]
        )
        event = Event(wall_time=entry.wall_time, step=entry.step, summary=summary)
        records.append(_record(event.SerializeToString()))
    return b"".join(records)


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4) of `data`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return (
        length + struct.pack("<I", _masked(crc32c(length))) + data + struct.pack("<I", _masked(crc32c(data)))
    )


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CRC32C_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()
