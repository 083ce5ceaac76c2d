"""Which files of the shards no sample uses, so that nothing is lost without a word.

A sample's name ends at its first dot. `2021.05.01_cat.png` is thus the file `.05.01_cat.png` of the sample `2021`,
and a picture that nobody asks for. Most such files are meant to be there (labels, JSON beside captions); those that
would be samples under a better name are *hidden samples*: pictures of which nobody would ever hear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from modelchain_trainer.data.shard_index import ShardIndex

_NAMED = 6


class UnusedFiles:
    """Counts files and hidden samples over shards."""

    def __init__(self, image_extensions: Sequence[str], text_extensions: Sequence[str]) -> None:
        self._image_ends = tuple(f".{extension}" for extension in image_extensions)
        self._text_ends = tuple(f".{extension}" for extension in text_extensions)
        self._used = {*image_extensions, *text_extensions}
        self.files: Counter[str] = Counter()  # by extension
        self.hidden = 0  # samples
        self.example = ""  # of a file of a hidden sample, for messages

    def add(self, uri: str, index: ShardIndex) -> None:
        """Count those of one more shard."""
        counts = np.bincount(index.extension, minlength=len(index.extensions)).tolist()
        unused = {
            name: count
            for name, count in zip(index.extensions, counts, strict=True)
            if name not in self._used
        }
        self.files.update(unused)
        self.files.update(
            {one.extension: one.members for one in index.special if one.extension not in self._used}
        )
        lookalikes = [name for name in unused if name.endswith((*self._image_ends, *self._text_ends))]
        if lookalikes:
            self._count_hidden(uri, index, lookalikes)

    def _count_hidden(self, uri: str, index: ShardIndex, lookalikes: Sequence[str]) -> None:
        """A group's lookalikes make as many hidden samples as they have stems with a picture and a text; in a group
        of which nothing is used, a picture alone is one too.
        """
        sample_of_member = np.repeat(np.arange(len(index)), index.members)
        names = np.array([name in self._used for name in index.extensions])
        used = np.zeros(len(index), bool)
        used[sample_of_member[names[index.extension]]] = True
        wanted = np.array([name in lookalikes for name in index.extensions])
        groups: dict[int, list[str]] = {}
        for member in np.flatnonzero(wanted[index.extension]).tolist():
            group = int(sample_of_member[member])
            groups.setdefault(group, []).append(index.extensions[int(index.extension[member])])
        for group, files in groups.items():
            found = self._stems(files, complete=bool(used[group]))
            self.hidden += len(found)
            if found and not self.example:
                self.example = f".{files[0]} in {uri}"

    def _stems(self, files: Sequence[str], *, complete: bool) -> set[str]:
        """The names that the files would have but for their dots. `complete`: with both a picture and a text.

        Where samples have no pictures, a text is one by itself; where they have no texts, a picture is.
        """
        pictures = {stem for file in files if (stem := _stem(file, self._image_ends)) is not None}
        texts = {stem for file in files if (stem := _stem(file, self._text_ends)) is not None}
        if not self._image_ends:
            return texts
        if not self._text_ends:
            return pictures
        return pictures & texts if complete else pictures

    @property
    def kinds(self) -> str:
        """What samples have, for people."""
        both = bool(self._image_ends and self._text_ends)
        return "images and texts" if both else "images" if self._image_ends else "texts"

    @property
    def fields(self) -> str:
        """Which fields of the chain name their extensions."""
        if not self._image_ends:
            return "data.textKey"
        return "data.imageKeys" + " and data.captionKeys (or classKey)" * bool(self._text_ends)

    @property
    def what(self) -> str:
        """What hidden samples are, for people."""
        return "images" if self._image_ends else "texts"

    def describe(self) -> str:
        """The files, for people: `.json (100), .cls (3)`; empty if there are none."""
        return describe_counts(self.files)


def describe_counts(files: Mapping[str, int]) -> str:
    """Counted extensions, the most frequent first: `.json (100), .cls (3) and 2 more`."""
    ordered = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f".{name} ({count})" for name, count in ordered[:_NAMED])
    return named + (f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else "")


def _stem(file: str, ends: Sequence[str]) -> str | None:
    return next((file.removesuffix(end) for end in ends if file.endswith(end)), None)
