"""Turn scikit-learn's handwritten digits into webdataset shards with captions.

    python examples/prepare_digits.py --output examples/data/digits

1797 pictures of digits, 8 x 8 pixels in 17 shades, written by hand; they come with scikit-learn, so nothing
is downloaded. Here they are enlarged to 32 x 32 pixels and get two captions each. Of each digit the last thirty
are kept apart for validation.

Data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shard_writer import Files, write_shards
from sklearn.datasets import load_digits

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE_GIVEN, SIDE = 8, 32  # pixels
BRIGHTEST = 16
VALIDATION_PER_DIGIT = 30
SAMPLES_PER_SHARD = 300

IN_WORDS = (
    "a photo of the digit {}",
    "a handwritten {}",
    "the digit {}, white on black",
    "somebody wrote a {} by hand",
    "{}, written in a hurry",
    "a small picture of a {}",
    "this is a {}",
)
IN_FIGURES = (
    "the number {}",
    "a photo of the number {}",
    "the number {}, written by hand",
    "a blurry handwritten {}",
    "a scan of a {}",
)


def main() -> None:
    """Write the shards that examples/digits.yaml names."""
    parser = argparse.ArgumentParser(
        description="Turn scikit-learn's handwritten digits into webdataset shards."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    output = parser.parse_args().output
    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    images = pixels.reshape(-1, SIDE_GIVEN, SIDE_GIVEN)
    for name, numbers in split(labels).items():
        samples = [sample(images[number], int(labels[number]), int(number)) for number in numbers]
        shards = write_shards(samples, output, name, SAMPLES_PER_SHARD)
        print(f"{name}: {len(samples)} samples in {len(shards)} shards, {shards[0]} to {shards[-1].name}")


def split(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Numbers of the samples of each part, in the order of the collection; the same each time."""
    validation = np.concatenate(
        [np.flatnonzero(labels == digit)[-VALIDATION_PER_DIGIT:] for digit in range(10)]
    )
    everything = np.arange(len(labels))
    return {"train": np.setdiff1d(everything, validation), "val": np.sort(validation)}


def sample(image: NDArray[np.float64], digit: int, number: int) -> Files:
    """The files of a sample: a picture, two captions, and the class."""
    in_words = IN_WORDS[number % len(IN_WORDS)].format(DIGITS[digit])
    in_figures = IN_FIGURES[number % len(IN_FIGURES)].format(digit)
    return {
        "png": png(image),
        "txt": in_words.encode(),
        "txt2": in_figures.encode(),
        "cls": str(digit).encode(),
    }


def png(image: NDArray[np.float64]) -> bytes:
    """The picture, enlarged."""
    pixels = np.rint(image * (255 / BRIGHTEST)).astype(np.uint8)
    picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
