"""What a kit holds, for who packs it and who uses it: FOLDER/wheels/*.whl and FOLDER/data/*.tar."""

from __future__ import annotations

from pathlib import Path

SHARDS, SAMPLES_A_SHARD = 8, 64


def write_data(folder: Path) -> None:
    """The shards of pictures."""
    from benchmarks.pictures import write_shards

    write_shards(folder, shards=SHARDS, samples=SHARDS * SAMPLES_A_SHARD)
