"""Small shards for the tests of the data room."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from modelchain.resolved import ResolvedData, ResolvedStage, ResolvedStore
from modelchain.store import ObjectInfo
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.index import DatasetIndex, build_index
from tests.tar_files import write_tar
from tests.trainer.stages import smallest_stage

Files = Mapping[str, bytes]


def png(number: int) -> bytes:
    """A picture that tells its number: every pixel has the colour (number % 256, number // 256, 7)."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(file, "PNG")
    return file.getvalue()


def number_of(pixels_3HW: np.ndarray) -> int:
    """The number of a picture made by `png`."""
    return int(pixels_3HW[0, 0, 0]) + 256 * int(pixels_3HW[1, 0, 0])


def noise(side: int, seed: int = 0, *, quality: str = "PNG") -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, quality)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A small PNG that says of itself that it is a large square."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return png(1)[:8] + chunk + png(1)[33:]


def thin(number: int, format_: str = "PNG") -> bytes:
    """As `png`, 1 pixel wide and 40,000 high."""
    file = io.BytesIO()
    Image.new("RGB", (1, 40_000), (number % 256, number // 256, 7)).save(file, format_)
    return file.getvalue()


def sample(number: int) -> dict[str, bytes]:
    """The files of a sample that can be told from all others."""
    return {"png": png(number), "txt": f"number {number}".encode()}


def write_shards(
    folder: Path, samples: int, per_shard: int, make: Callable[[int], Files] = sample
) -> tuple[str, ...]:
    """Shards with samples 0 .. samples-1, and their paths."""
    paths: list[str] = []
    for first in range(0, samples, per_shard):
        members = [
            (f"{number:06d}.{extension}", content)
            for number in range(first, min(first + per_shard, samples))
            for extension, content in make(number).items()
        ]
        paths.append(str(write_tar(folder / f"{len(paths):04d}.tar", members)))
    return tuple(paths)


def index_of(
    shards: Sequence[str],
    samples: int,
    folder: Path,
    *,
    caption_keys: tuple[str, ...] = ("txt",),
    max_corrupt_fraction: float = 0.01,
) -> DatasetIndex:
    """The index of shards, kept in a store in `folder`."""
    data = ResolvedData(
        shards=tuple(shards),
        samples=samples,
        caption_keys=caption_keys,
        max_corrupt_fraction=max_corrupt_fraction,
    )
    return build_index(data, access(folder), FolderStore(folder))


def access(folder: Path) -> ResolvedStore:
    """A chain's store in a folder."""
    return ResolvedStore(uri=str(folder))


def stage_of(
    shards: Sequence[str],
    samples: int,
    *,
    batch: int,
    steps: int,
    data: Mapping[str, object] | None = None,
    training: Mapping[str, object] | None = None,
) -> ResolvedStage:
    """A stage that reads these shards."""
    return ResolvedStage.model_validate(
        smallest_stage(
            store={"uri": "unused"},
            data={
                "shards": list(shards),
                "samples": samples,
                "randomCropScale": [1.0, 1.0],
                **(data or {}),
            },
            training={
                "epochs": -(-steps * batch // samples),
                "globalBatchSize": batch,
                "checkpointEverySteps": 1000,
                "dataWorkers": 2,
                "stepsPerEpoch": samples // batch,
                "steps": steps,
                **(training or {}),
            },
        )
    )


class CountingStore(FolderStore):
    """A folder that keeps a list of the ranges read from it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[tuple[str, int, int]] = []

    def get_range(self, key: str, start: int, length: int) -> bytes:
        self.reads.append((key, start, length))
        return super().get_range(key, start, length)


def info(path: Path) -> ObjectInfo:
    """What a listing would say of a file."""
    found = FolderStore(path.parent).head(path.name)
    assert found is not None
    return found
