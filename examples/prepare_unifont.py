"""Turn the glyphs of GNU Unifont into webdataset shards: pictures, each with its character's Unicode name.

    python examples/prepare_unifont.py --input unifont.hex --output examples/data/unifont

unifont.hex holds a line for each character of the basic plane, CODE:BITMAP in hexadecimal, 8 x 16 or 16 x 16 pixels.
By default it is /usr/share/unifont/unifont.hex of Debian's and Ubuntu's package unifont. Left out are characters
without a name, and those whose name is nothing but their code (most ideographs). What is left, some 27,500 of version
15.0.01, is dealt into train, select and test (2,500 each of the last two) by a hash of the code.

Data: GNU Unifont, https://unifoundry.com/unifont/, licence GPL-2.0-or-later with the font embedding exception; the
names are those of the Unicode Character Database as Python has them (unicodedata.unidata_version).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image
from shard_writer import Files, write_shards

DEBIAN_FILE = Path("/usr/share/unifont/unifont.hex")
SIDE_GIVEN, SIDE = 16, 32  # pixels
HELD_OUT = 2500  # in each of select and test
SAMPLES_PER_SHARD = 2500


class BadInputError(Exception):
    """Something that the user can mend; the message says what."""


def main() -> None:
    """Write shards of all named glyphs."""
    parser = argparse.ArgumentParser(description="Turn GNU Unifont into webdataset shards.")
    parser.add_argument("--input", type=Path, default=DEBIAN_FILE, help="unifont.hex (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    arguments = parser.parse_args()
    try:
        glyphs = named(read_glyphs(arguments.input))
    except BadInputError as problem:
        sys.exit(f"{parser.prog}: {problem}")
    for name, codes in split(list(glyphs)).items():
        samples = [sample(code, glyphs[code]) for code in codes]
        shards = write_shards(samples, arguments.output, name, SAMPLES_PER_SHARD)
        print(f"{name}: {len(samples)} samples in {len(shards)} shards, {shards[0]} to {shards[-1].name}")


def read_glyphs(path: Path) -> dict[int, bytes]:
    """The bitmap of each code point, row by row. Raises BadInputError."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"{path}: can't be read: {error}; install the package unifont, or give unifont.hex with --input"
        ) from error
    glyphs: dict[int, bytes] = {}
    for number, line in enumerate(lines, start=1):
        code, _, bits = line.partition(":")
        try:
            glyphs[int(code, 16)] = bytes.fromhex(bits)
        except ValueError:
            raise BadInputError(
                f"{path}:{number}: is no CODE:BITMAP in hexadecimal; fetch it again"
            ) from None
        if len(bits) not in {32, 64}:
            raise BadInputError(
                f"{path}:{number}: has {len(bits)} digits, where 32 or 64 make a glyph; fetch it again"
            )
    return glyphs


def named(glyphs: dict[int, bytes]) -> dict[int, bytes]:
    """Those whose character has a name that says more than its code."""
    return {
        code: bitmap
        for code, bitmap in glyphs.items()
        if (name := unicodedata.name(chr(code), "")) and f"{code:04X}" not in name
    }


def split(codes: list[int]) -> dict[str, list[int]]:
    """Code points of each part, each part in an order that says nothing; the same each time."""
    shuffled = sorted(codes, key=lambda code: hashlib.sha256(f"{code:04X}".encode()).digest())
    held_out = min(HELD_OUT, len(codes) // 4)
    return {
        "train": shuffled[2 * held_out :],
        "select": shuffled[:held_out],
        "test": shuffled[held_out : 2 * held_out],
    }


def sample(code: int, bitmap: bytes) -> Files:
    """The files of a sample: the glyph in white on black, and its name in small letters."""
    return {"png": png(bitmap), "txt": unicodedata.name(chr(code)).lower().encode()}


def png(bitmap: bytes) -> bytes:
    """The glyph, in the middle of a square and enlarged."""
    rows = np.unpackbits(np.frombuffer(bitmap, np.uint8)).reshape(SIDE_GIVEN, -1) * 255
    canvas = np.zeros((SIDE_GIVEN, SIDE_GIVEN), np.uint8)
    left = (SIDE_GIVEN - rows.shape[1]) // 2
    canvas[:, left : left + rows.shape[1]] = rows
    file = io.BytesIO()
    Image.fromarray(canvas).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
