"""Which files of a shard make its samples: one image and the texts that are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelchain.errors import UserDataError
from modelchain_trainer.data.columns import Columns, Int32
from modelchain_trainer.data.shard_index import ShardIndex, special_files
from modelchain_trainer.data.text_keys import extension_of
from modelchain_trainer.data.unused import describe_counts


def select_samples(
    uri: str, index: ShardIndex, images: tuple[str, ...], text_keys: tuple[str, ...]
) -> Columns:
    """The image and the texts of each sample; groups with none of them (a README) are no samples.

    Raises UserDataError where the parts of a sample lie apart, and where one of these files is a link or a device.
    """
    wanted = {*images, *map(extension_of, text_keys)}
    if special := [one for one in index.special if one.extension in wanted]:
        raise special_files(uri, special)
    count = len(index)
    sample_of_member = np.repeat(np.arange(count), index.members)

    def place(extensions: Sequence[str]) -> tuple[Int32, Int32]:
        offsets, sizes = np.full(count, -1, np.int32), np.zeros(count, np.int32)
        for extension in reversed(extensions):  # the first one named wins
            if extension in index.extensions:
                chosen = index.extension == index.extensions.index(extension)
                offsets[sample_of_member[chosen]] = index.offsets[chosen]
                sizes[sample_of_member[chosen]] = index.sizes[chosen]
        return offsets, sizes

    image_offsets, image_sizes = place(images)
    texts = [place([extension_of(key)]) for key in text_keys]
    nothing = np.empty((count, 0), np.int32)
    text_offsets = np.column_stack([nothing, *(offsets for offsets, _ in texts)])
    text_sizes = np.column_stack([nothing, *(sizes for _, sizes in texts)])
    kept = (image_offsets >= 0) | (text_offsets >= 0).any(axis=1)
    apart = next((parts for parts in index.apart if kept[parts.first] and kept[parts.second]), None)
    if apart is not None:
        raise UserDataError(
            f"{uri}: the parts of sample {apart.key} lie apart; write the files of a sample one after the other, "
            "e.g. with tar --sort=name"
        )
    return Columns(
        starts=index.starts[kept],
        lengths=index.lengths[kept].astype(np.int32),
        image_offsets=image_offsets[kept],
        image_sizes=image_sizes[kept],
        text_offsets=text_offsets[kept],
        text_sizes=text_sizes[kept],
    )


def files_of(index: ShardIndex) -> str:
    """The files of a shard by extension, for messages."""
    counts = np.bincount(index.extension, minlength=len(index.extensions)).tolist()
    return describe_counts(dict(zip(index.extensions, counts, strict=True)))
