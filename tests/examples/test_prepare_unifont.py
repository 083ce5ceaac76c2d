"""Glyphs become pictures with the names of their characters; damaged files are named."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "prepare_unifont.py"

# An A whose rows are 8 pixels wide, 38 more letters, an ideograph named after its code, and one without a name.
LETTER = "0000000018242442427E424242420000"
LINES = [
    f"0041:{LETTER}",
    *(f"{code:04X}:{code:032X}" for code in range(0x0391, 0x0391 + 17)),
    *(f"{code:04X}:{code:064X}" for code in range(0x0410, 0x0410 + 21)),
    f"4E00:{'00' * 32}",
    f"E000:{'FF' * 32}",
]


def prepare(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--input", str(source), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_parts(folder: Path) -> dict[str, dict[str, bytes]]:
    """Of each part, the picture of each name."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member) for member in archive}
            content = {name: file.read() for name, file in files.items() if file is not None}
        part = found.setdefault(path.name.rpartition("-")[0], {})
        for name in {name.partition(".")[0] for name in content}:
            part[content[f"{name}.txt"].decode()] = content[f"{name}.png"]
    return found


def test_named_glyphs_are_dealt_into_parts_that_share_none(tmp_path: Path) -> None:
    (tmp_path / "unifont.hex").write_text("\n".join(LINES) + "\n")
    done = prepare(tmp_path / "unifont.hex", tmp_path / "shards")
    assert done.returncode == 0, done.stderr
    parts = read_parts(tmp_path / "shards")
    assert {name: len(part) for name, part in parts.items()} == {"train": 21, "select": 9, "test": 9}
    glyphs = {name: picture for part in parts.values() for name, picture in part.items()}
    assert len(glyphs) == 39
    assert "greek capital letter alpha" in glyphs
    assert not any("ideograph" in name for name in glyphs)
    with Image.open(io.BytesIO(glyphs["latin capital letter a"])) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (32, 32)
    small = pixels[::2, ::2]
    assert np.array_equal(np.kron(small, np.ones((2, 2), np.uint8)), pixels)
    rows = [f"{int(''.join('01'[int(pixel > 0)] for pixel in row), 2):04X}" for row in small]
    assert rows == [f"0{LETTER[2 * row : 2 * row + 2]}0" for row in range(16)]  # in the middle of 16 pixels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0041:" + LETTER + "\n0042:0102\n", "unifont.hex:2: has 4 digits"),
        ("<html>\n", "unifont.hex:1: is no CODE:BITMAP"),
        (None, "install the package unifont"),
    ],
)
def test_bad_files_are_named_without_a_traceback(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "unifont.hex").write_text(content)
    done = prepare(tmp_path / "unifont.hex", tmp_path / "shards")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
