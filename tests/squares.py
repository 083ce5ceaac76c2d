"""Shards of noisy coloured squares with captions and classes: what the smallest of models learn."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from tests.tar_files import write_tar

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "yellow": (200, 200, 30)}
SAMPLES = 64
CAPTIONS = {"txt": "a {colour} square", "long.txt": "a picture of something {colour}, number {number}"}


def write_squares(folder: Path, *, captions: Mapping[str, str] = CAPTIONS) -> str:
    """Write the shards and return their pattern; `captions` has the text for each extension."""
    noise = random.Random(0)
    members: list[tuple[str, bytes]] = []
    for number in range(SAMPLES):
        label = noise.randrange(len(COLOURS))
        colour = list(COLOURS)[label]
        members.append((f"{number:05}.png", _square(COLOURS[colour], noise)))
        for extension, text in captions.items():
            members.append((f"{number:05}.{extension}", text.format(colour=colour, number=number).encode()))
        members.append((f"{number:05}.cls", str(label).encode()))
    half = len(members) // 2
    write_tar(folder / "000.tar", members[:half])
    write_tar(folder / "001.tar", members[half:])
    return f"{folder}/{{000..001}}.tar"


def _square(colour: tuple[int, int, int], noise: random.Random) -> bytes:
    image = Image.new("RGB", (12, 12), colour)
    for _ in range(20):
        place = (noise.randrange(12), noise.randrange(12))
        image.putpixel(place, tuple(noise.randrange(256) for _ in range(3)))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
