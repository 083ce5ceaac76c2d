"""The demo's data: complete, split evenly, and the same each time."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "prepare_digits.py"


def prepare(folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(folder), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def files_of(folder: Path, name: str) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path in sorted(folder.glob(f"{name}-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                files[member.name] = content.read()
    return files


@pytest.mark.slow
def test_digits_become_shards_with_captions_that_fit_their_class(tmp_path: Path) -> None:
    output = prepare(tmp_path)
    assert "train: 1497 samples in 5 shards" in output
    train, val = files_of(tmp_path, "train"), files_of(tmp_path, "val")
    assert len(train) == 4 * 1497
    assert len(val) == 4 * 300
    classes = [content for name, content in val.items() if name.endswith(".cls")]
    assert Counter(classes) == {str(digit).encode(): 30 for digit in range(10)}
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for files in (train, val):
        for name in {name.partition(".")[0] for name in files}:
            digit = int(files[f"{name}.cls"])
            assert words[digit] in files[f"{name}.txt"].decode()
            assert str(digit) in files[f"{name}.txt2"].decode()
            with Image.open(io.BytesIO(files[f"{name}.png"])) as image:
                assert image.size == (32, 32)
    captions = Counter(content for name, content in train.items() if name.endswith((".txt", ".txt2")))
    assert len(captions) == 10 * (7 + 5)  # every digit in every wording

    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.tar")}
    prepare(tmp_path)
    assert {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*.tar")
    } == before


@pytest.mark.slow
def test_folds_are_stratified_and_hold_every_picture_once(tmp_path: Path) -> None:
    prepare(tmp_path, "--folds", "5")
    folds = [files_of(tmp_path, f"fold-{fold}") for fold in range(5)]
    assert sorted(len(files) // 4 for files in folds) == [359, 359, 359, 360, 360]
    counts = [Counter(content for name, content in files.items() if name.endswith(".cls")) for files in folds]
    for digit in range(10):
        of_digit = [count[str(digit).encode()] for count in counts]
        assert max(of_digit) - min(of_digit) <= 1
    whole = tmp_path / "whole"
    prepare(whole)
    everything = {**files_of(whole, "train"), **files_of(whole, "val")}
    assert Counter(content for files in folds for content in files.values()) == Counter(everything.values())
