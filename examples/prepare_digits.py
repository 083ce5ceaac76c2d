"""Turn scikit-learn's handwritten digits into webdataset shards with captions.

    python examples/prepare_digits.py --output examples/data/digits
    python examples/prepare_digits.py --output FOLDER --folds 5         parts for cross-validation

1797 pictures of digits, 8 x 8 pixels in 17 shades, written by hand; they come with scikit-learn, so nothing
is downloaded. Here they are enlarged to 32 x 32 pixels and get two captions each. Of each digit the last thirty
are kept apart for validation; or all are dealt into stratified parts, fold-0, fold-1 ... The collection goes by
writer, and a part takes a run of neighbours, so that hardly a hand is in two parts.

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
FEWEST_OF_A_DIGIT = 174
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
    parser.add_argument(
        "--folds", type=int, metavar="N", help="write N parts of about one size, rather than train and val"
    )
    arguments = parser.parse_args()
    if arguments.folds is not None and not 2 <= arguments.folds <= FEWEST_OF_A_DIGIT:
        parser.error(f"--folds {arguments.folds}: write 2 to {FEWEST_OF_A_DIGIT}")
    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    images = pixels.reshape(-1, SIDE_GIVEN, SIDE_GIVEN)
    parts = split(labels) if arguments.folds is None else folds(labels, arguments.folds)
    for name, numbers in parts.items():
        samples = [sample(images[number], int(labels[number]), int(number)) for number in numbers]
        per_shard = SAMPLES_PER_SHARD if arguments.folds is None else len(samples)
        shards = write_shards(samples, arguments.output, name, per_shard)
        print(f"{name}: {len(samples)} samples in {len(shards)} shards, {shards[0]} to {shards[-1].name}")


def split(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Numbers of the samples of each part, in the order of the collection; the same each time."""
    validation = np.concatenate(
        [np.flatnonzero(labels == digit)[-VALIDATION_PER_DIGIT:] for digit in range(10)]
    )
    everything = np.arange(len(labels))
    return {"train": np.setdiff1d(everything, validation), "val": np.sort(validation)}


def folds(labels: NDArray[np.int64], count: int) -> dict[str, NDArray[np.int64]]:
    """Numbers of the samples of each of `count` parts, whose sizes, in all and of each digit, differ by one at most."""
    by_digit = np.concatenate([np.flatnonzero(labels == digit) for digit in range(10)])
    part_of = np.empty(len(labels), np.int64)
    begin = 0
    for digit in range(10):
        size = int(np.sum(labels == digit))
        # A digit's larger parts are those that follow the larger parts of the digit before.
        sizes = np.bincount((begin + np.arange(size)) % count, minlength=count)
        part_of[by_digit[begin : begin + size]] = np.repeat(np.arange(count), sizes)
        begin += size
    return {f"fold-{part}": np.flatnonzero(part_of == part) for part in range(count)}


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
