"""Fashion-MNIST's files become shards, compressed or not, and damaged ones are named."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "prepare_fashion_mnist.py"
COUNTS = {"train": 60, "t10k": 20}


def write_idx(folder: Path, *, compressed: bool) -> dict[str, np.ndarray]:
    """Files as Fashion-MNIST's, with few samples."""
    folder.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    for part, count in COUNTS.items():
        generator = np.random.default_rng(count)
        arrays[f"{part}-images-idx3-ubyte"] = generator.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        (folder / (name + ".gz" * compressed)).write_bytes(gzip.compress(data) if compressed else data)
    return arrays


def prepare(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--input", str(source), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("compressed", [True, False])
def test_pictures_labels_and_captions_are_those_of_the_files(tmp_path: Path, compressed: bool) -> None:
    arrays = write_idx(tmp_path / "raw", compressed=compressed)
    done = prepare(tmp_path / "raw", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    for name, part in (("train", "train"), ("val", "t10k")):
        with tarfile.open(tmp_path / "shards" / f"{name}-0000.tar") as archive:
            members = {member.name: archive.extractfile(member) for member in archive}
            files = {key: content.read() for key, content in members.items() if content is not None}
        assert len(files) == 4 * COUNTS[part]
        for number, pixels in enumerate(arrays[f"{part}-images-idx3-ubyte"]):
            with Image.open(io.BytesIO(files[f"{name}-{number:06d}.png"])) as image:
                assert np.array_equal(np.asarray(image), pixels)
            assert int(files[f"{name}-{number:06d}.cls"]) == number % 10
            if number % 10 == 8:
                assert any(word in files[f"{name}-{number:06d}.txt"].decode() for word in ("bag", "purse"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(),
            "has neither t10k-labels-idx1-ubyte nor",
        ),
        (
            lambda folder: truncate(folder / "train-images-idx3-ubyte"),
            "train-images-idx3-ubyte: was cut short",
        ),
        (lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(b"<html>"), "is no IDX file"),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte").replace(folder / "t10k-labels-idx1-ubyte"),
            "has neither train-labels-idx1-ubyte",
        ),
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(
                (folder / "train-labels-idx1-ubyte").read_bytes()
            ),
            "20 images but 60 labels",
        ),
    ],
    ids=["missing", "cut", "html", "moved", "other part"],
)
def test_bad_files_are_named_without_a_traceback(tmp_path: Path, damage: object, message: str) -> None:
    write_idx(tmp_path / "raw", compressed=False)
    assert callable(damage)
    damage(tmp_path / "raw")
    done = prepare(tmp_path / "raw", tmp_path / "shards")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_damaged_compressed_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "raw", compressed=True)
    truncate(tmp_path / "raw" / "train-images-idx3-ubyte.gz")
    done = prepare(tmp_path / "raw", tmp_path / "shards")
    assert done.returncode == 1
    assert "train-images-idx3-ubyte.gz: can't be read" in done.stderr
    assert "Traceback" not in done.stderr
