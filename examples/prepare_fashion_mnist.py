"""Turn Fashion-MNIST's IDX files into webdataset shards with captions.

    python examples/prepare_fashion_mnist.py --input FOLDER --output examples/data/fashion-mnist

FOLDER holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
t10k-labels-idx1-ubyte, each as it is or with .gz: for example torchvision's ROOT/FashionMNIST/raw, or, by
default, /usr/share/datasets/fashion-mnist of Debian's and Ubuntu's package dataset-fashion-mnist. 60,000
pictures of clothes for training and 10,000 for validation, 28 x 28 pixels, in grey.

Data: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv 1708.07747, 2017, Zalando SE, licence MIT.
"""

from __future__ import annotations

import argparse
import gzip
import io
import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from shard_writer import Files, write_shards

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PARTS = {"train": "train", "val": "t10k"}  # our name, and how their files begin
SAMPLES_PER_SHARD = 2500

# One name in the prompts, others in captions: a language has more than one word for most things.
CLOTHES = (
    ("t-shirt", "t-shirt", "tee", "short-sleeved top"),
    ("trousers", "pair of trousers", "pair of pants", "pair of slacks"),
    ("pullover", "pullover", "sweater", "jumper"),
    ("dress", "dress", "gown", "frock"),
    ("coat", "coat", "overcoat", "long jacket"),
    ("sandal", "sandal", "open shoe", "summer shoe"),
    ("shirt", "shirt", "button-up shirt", "blouse"),
    ("sneaker", "sneaker", "running shoe", "trainer"),
    ("bag", "bag", "handbag", "purse"),
    ("ankle boot", "ankle boot", "boot", "high shoe"),
)
PLAIN = ("a photo of a {}", "a picture of a {}", "an image of a {} on black", "a small photo of a {}", "a {}")
SHOP = (
    "a {} from an online shop",
    "buy this {}",
    "product photo: {}",
    "a {} to wear",
    "new in the catalogue: a {}",
)

_IDX_BYTES = 0x08  # the type code of unsigned bytes


class BadInputError(Exception):
    """Something that the user can mend; the message says what."""


def main() -> None:
    """Write the shards that examples/fashion-mnist.yaml names."""
    parser = argparse.ArgumentParser(description="Turn Fashion-MNIST's IDX files into webdataset shards.")
    parser.add_argument(
        "--input", type=Path, default=DEBIAN_FOLDER, help="folder of the IDX files (%(default)s)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    arguments = parser.parse_args()
    try:
        for name, prefix in PARTS.items():
            images = read_idx(find(arguments.input, f"{prefix}-images-idx3-ubyte"), dimensions=3)
            labels = read_idx(find(arguments.input, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
            if len(images) != len(labels):
                raise BadInputError(
                    f"{arguments.input}: {len(images)} images but {len(labels)} labels for {name}"
                )
            if labels.max() >= len(CLOTHES):
                raise BadInputError(f"{arguments.input}: a label is {labels.max()}; Fashion-MNIST has 0 to 9")
            samples = [sample(image, int(labels[number]), number) for number, image in enumerate(images)]
            shards = write_shards(samples, arguments.output, name, SAMPLES_PER_SHARD)
            print(f"{name}: {len(samples)} samples in {len(shards)} shards, {shards[0]} to {shards[-1].name}")
    except BadInputError as problem:
        sys.exit(f"{parser.prog}: {problem}")


def find(folder: Path, name: str) -> Path:
    """The file, or its compressed form. Raises BadInputError."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise BadInputError(
        f"{folder} has neither {name} nor {name}.gz; install the package dataset-fashion-mnist, or give "
        "torchvision's folder FashionMNIST/raw with --input"
    )


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file: two zero bytes, type, number of dimensions, sizes, and the bytes.

    Raises BadInputError.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise BadInputError(f"{path}: can't be read: {error}; fetch it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, _IDX_BYTES, dimensions]):
        raise BadInputError(
            f"{path}: is no IDX file of unsigned bytes in {dimensions} dimensions; fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != np.prod(shape, dtype=np.int64):
        raise BadInputError(f"{path}: was cut short: {len(data) - header} bytes for {shape}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def sample(image: NDArray[np.uint8], label: int, number: int) -> Files:
    """The files of a sample: a picture, two captions, and the class."""
    words = CLOTHES[label][1:]
    plain = PLAIN[number % len(PLAIN)].format(words[number % len(words)])
    shop = SHOP[number // 2 % len(SHOP)].format(words[number // 3 % len(words)])
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return {"png": file.getvalue(), "txt": plain.encode(), "txt2": shop.encode(), "cls": str(label).encode()}


if __name__ == "__main__":
    main()
