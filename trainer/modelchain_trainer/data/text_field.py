"""What a batch holds beside its images: how the texts of a sample become numbers. A task names its field."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelchain_trainer.data.sample import Cause, CorruptSampleError
from modelchain_trainer.data.text_keys import text_of
from modelchain_trainer.data.tokenizer import Tokenizer

LONGEST_LABEL = 9  # digits; fits in 32 bits


class TextField(Protocol):
    """Decodes the text files of samples. May be called from several threads at once."""

    @property
    def width(self) -> int:
        """Numbers that one text becomes."""
        ...

    @property
    def missing(self) -> Cause:
        """What it counts as where a sample has no such file."""
        ...

    def decode(self, data: bytes, key: str) -> Any:
        """The content of a file `.key`. Raises CorruptSampleError where it can't be used."""
        ...

    def encode_into(self, value: Any, row: NDArray[np.int64]) -> None:
        """Write what `decode` gave into a row of `width` zeros."""
        ...


class NoText:
    """Of samples that are images alone."""

    width = 0
    missing = Cause.MISSING_TEXT

    def decode(self, data: bytes, key: str) -> None:
        """There are no files to decode."""

    def encode_into(self, value: None, row: NDArray[np.int64]) -> None:
        """There is nothing to write."""


class CaptionField:
    """Captions, as tokens."""

    missing = Cause.MISSING_CAPTION

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.width = tokenizer.context_length

    def decode(self, data: bytes, key: str) -> str:
        """The caption."""
        return text_of(data, key)

    def encode_into(self, value: str, row: NDArray[np.int64]) -> None:
        """Its tokens."""
        self._tokenizer.encode_into(value, row)


class LabelField:
    """The class numbers of a head with so many classes."""

    width = 1
    missing = Cause.MISSING_LABEL

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def decode(self, data: bytes, key: str) -> int:
        """The class. Raises CorruptSampleError for one that the head does not have, too."""
        return decode_label(data, key, self._classes)

    def encode_into(self, value: int, row: NDArray[np.int64]) -> None:
        """The class itself."""
        row[0] = value


def decode_label(data: bytes, key: str, classes: int | None = None) -> int:
    """A class number, 0 or more, below `classes` where these are known. Raises CorruptSampleError for anything else."""
    if ":" in key:
        data = text_of(data, key, missing=Cause.MISSING_LABEL, bad=Cause.BAD_LABEL).encode()
    text = data.strip()
    if not text.isdigit() or len(text) > LONGEST_LABEL:
        raise CorruptSampleError(Cause.BAD_LABEL, f"the .{key} is not a class number, 0 or more")
    label = int(text)
    if classes is not None and label >= classes:
        raise CorruptSampleError(
            Cause.BAD_LABEL,
            f"the .{key} is {label}, but the classes are 0 to {classes - 1} "
            "(write as many classes as the labels have, or check classKey)",
        )
    return label
