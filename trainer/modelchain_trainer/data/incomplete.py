"""Samples that lack their image or one of their texts: which, and when they are too many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import UserDataError
from modelchain_trainer.data.corruption import describe_sample
from modelchain_trainer.data.text_keys import extension_of

if TYPE_CHECKING:
    from modelchain_trainer.data.index import DatasetIndex

_AT_ONCE = 1 << 20  # samples

REMEDY = (
    "the files of a sample stand one after the other in one tar and share their name up to its first dot, folders "
    "included: complete the samples, or fix data.imageKeys or the keys of their texts"
)


def check_complete(index: DatasetIndex, max_fraction: float) -> None:
    """Raises UserDataError where more than a share of samples with images lack a part: they could never be used."""
    lacking = sum(int(lacks.any(axis=1).sum()) for _, lacks in _lacking(index, 0, len(index)))
    if lacking > max_fraction * len(index):
        raise UserDataError(
            f"the shards hold {len(index)} samples, {describe_incomplete(index, 0, len(index))}, more than "
            f"data.maxCorruptFraction {max_fraction:g} allows; {REMEDY}"
        )


def describe_incomplete(index: DatasetIndex, first: int, last: int) -> str:
    """What samples with images lack of those from `first` up to `last`, each with one of them (read from its shard);
    empty where they lack nothing.
    """
    names = ["an image", *(f".{extension_of(key)}" for key in index.text_keys)]
    counts, examples = [0] * len(names), [-1] * len(names)
    for start, lacks in _lacking(index, first, last):
        for part, lack in enumerate(lacks.T):
            if not counts[part] and lack.any():
                examples[part] = start + int(lack.argmax())
            counts[part] += int(lack.sum())
    return " and ".join(
        f"{count} without {name} ({describe_sample(index, example)})"
        for name, count, example in zip(names, counts, examples, strict=True)
        if count
    )


def _lacking(index: DatasetIndex, first: int, last: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Which parts each sample lacks, [n, 1 + C]: its image, and each of its texts; of a part of the mapped index at a
    time, with the number of its first sample.
    """
    for start in range(first, last, _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, last))
        yield (
            start,
            np.concatenate([index.image_offsets[part, None] < 0, index.text_offsets[part] < 0], axis=1),
        )
