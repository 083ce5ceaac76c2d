"""The columns of an index in files, which all processes of a node map into memory: there is one copy of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Columns:
    """N samples with one image and C texts each; offsets are bytes from the sample's start, -1 where there is none.

    20 bytes a sample, and 8 more a text.
    """

    starts: Int64  # [N] first byte in the shard
    lengths: Int32  # [N]
    image_offsets: Int32  # [N]
    image_sizes: Int32  # [N]
    text_offsets: Int32  # [N, C]
    text_sizes: Int32  # [N, C]

    def __len__(self) -> int:
        return len(self.starts)


_NAMES = tuple(field.name for field in fields(Columns))


class ColumnWriter:
    """Appends samples to the files of a folder; little more than what is appended is in memory."""

    def __init__(self, folder: Path) -> None:
        """`folder` must exist. Raises OSError, also where the disk is full."""
        self._files: dict[str, BinaryIO] = {}
        self._stack = contextlib.ExitStack()
        for name in _NAMES:
            self._files[name] = self._stack.enter_context((folder / name).open("wb"))

    def append(self, columns: Columns) -> None:
        """Append the samples of one more shard."""
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(getattr(columns, name)).tobytes())

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def map_columns(folder: Path, texts: int) -> Columns:
    """What a `ColumnWriter` wrote, mapped read-only. The files may be deleted afterwards."""

    def narrow(name: str) -> Int32:
        return np.asarray(np.memmap(folder / name, np.int32, mode="r"))

    def texts_of(name: str) -> Int32:
        return narrow(name).reshape(-1, texts) if texts else np.empty((len(starts), 0), np.int32)

    starts = np.asarray(np.memmap(folder / "starts", np.int64, mode="r"))
    return Columns(
        starts=starts,
        lengths=narrow("lengths"),
        image_offsets=narrow("image_offsets"),
        image_sizes=narrow("image_sizes"),
        text_offsets=texts_of("text_offsets"),
        text_sizes=texts_of("text_sizes"),
    )
