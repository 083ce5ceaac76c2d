"""Samples that lack their image or one of their texts: which, and when they are too many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import UserDataError
from modelchain_trainer.data.corruption import describe_sample
from modelchain_trainer.data.text_keys import extension_of

if TYPE_CHECKING:
    from modelchain_trainer.data.index import DatasetIndex

REMEDY = (
    "the files of a sample stand one after the other in one tar and share their name up to its first dot, folders "
    "included: complete the samples, or fix data.imageKeys or the keys of their texts"
)


def check_complete(index: DatasetIndex, max_fraction: float) -> None:
    """Raises UserDataError where more than a share of samples with images lack a part: they could never be used."""
    lacking = int(_lacking(index).any(axis=1).sum())
    if lacking > max_fraction * len(index):
        raise UserDataError(
            f"the shards hold {len(index)} samples, {describe_incomplete(index)}, more than data.maxCorruptFraction "
            f"{max_fraction:g} allows; {REMEDY}"
        )


def describe_incomplete(index: DatasetIndex) -> str:
    """What samples with images lack, each with one of them (read from its shard); empty where they lack nothing."""
    names = ["an image", *(f".{extension_of(key)}" for key in index.text_keys)]
    parts = [
        f"{lacks.sum()} without {name} ({describe_sample(index, int(lacks.argmax()))})"
        for name, lacks in zip(names, _lacking(index).T, strict=True)
        if lacks.any()
    ]
    return " and ".join(parts)


def _lacking(index: DatasetIndex) -> NDArray[np.bool_]:
    """Which parts each sample lacks, [N, 1 + C]: its image, and each of its texts."""
    return np.concatenate([index.image_offsets[:, None] < 0, index.text_offsets < 0], axis=1)
