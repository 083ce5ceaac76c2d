"""Where every sample of a data set lies: the indexes of its shards, put together.

Samples are numbered in the order of the shard list and of the bytes in each shard. Columns are numpy arrays,
20 bytes a sample and 8 more a text, so that millions of samples fit in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import MissingInputError, UserDataError
from modelchain.resolved import ResolvedData, ResolvedStore
from modelchain.shards import expand_all
from modelchain.store import ObjectInfo, Store, open_location, split_uri
from modelchain_trainer.data.patience import Patience
from modelchain_trainer.data.shard_index import ShardIndex, read_or_build
from modelchain_trainer.data.text_keys import extension_of
from modelchain_trainer.data.unused import UnusedFiles, describe_counts

# The first of these that a sample has is its image, unless data.imageKeys names others.
IMAGE_EXTENSIONS = (
    "jpg",
    "png",
    "jpeg",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "jp2",
    "avif",
    "ppm",
    "pgm",
    "jfif",
)
MAX_HIDDEN_FRACTION = (
    0.01  # of samples that are lost by their names; of training data: data.maxCorruptFraction
)

_logger = logging.getLogger(__name__)

_THREADS = 16
_NAMED = 5  # missing shards named in a message

Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shard:
    """A tar file in a store."""

    uri: str
    store: Store
    key: str


@dataclass(frozen=True, eq=False)
class DatasetIndex:
    """N samples with one image and C texts each; offsets are bytes from the sample's start, -1 where there is
    none.
    """

    shards: tuple[Shard, ...]
    text_keys: tuple[str, ...]  # C extensions, or fields of JSON files (`json:caption`)
    unused: str  # files that no sample uses, for messages: `.json (100), .cls (100)`
    first_samples: Int64  # [shards + 1] number of each shard's first sample, and N
    starts: Int64  # [N] first byte in the shard
    lengths: Int32  # [N]
    image_offsets: Int32  # [N]
    image_sizes: Int32  # [N]
    text_offsets: Int32  # [N, C]
    text_sizes: Int32  # [N, C]

    def __len__(self) -> int:
        return len(self.starts)

    def shard_of(self, sample: int) -> Shard:
        """The shard that holds a sample."""
        return self.shards[int(np.searchsorted(self.first_samples, sample, side="right")) - 1]


def build_index(
    data: ResolvedData,
    access: ResolvedStore,
    index_store: Store,
    on_progress: OnProgress | None = None,
    *,
    text_keys: Sequence[str] | None = None,
    patience: Patience | None = None,
) -> DatasetIndex:
    """The index of a stage's training data, with the texts of `text_keys` (default: its captions). Every rank calls
    it; what is in `index_store` already is only read.

    With many ranks and shards, let each call `index_shards` on its part first, then a barrier, then all this.
    `on_progress(done, total)` counts shards. Raises MissingInputError for shards that do not exist,
    UserDataError for bad ones and where there are not `data.samples` samples.
    """
    index = index_samples(
        data.shards,
        text_keys or data.caption_keys,
        access,
        index_store,
        on_progress,
        image_keys=data.image_keys,
        max_hidden_fraction=data.max_corrupt_fraction,
        patience=patience,
    )
    if len(index) != data.samples:
        raise UserDataError(
            f"data.samples is {data.samples}, but the {len(index.shards)} shards hold {len(index)} samples"
            f"{_incomplete(index)}; write samples: {len(index)}, or mend data.shards"
        )
    return index


def index_samples(
    patterns: Sequence[str],
    text_keys: Sequence[str],
    access: ResolvedStore,
    index_store: Store,
    on_progress: OnProgress | None = None,
    *,
    image_keys: Sequence[str] | None = None,
    max_hidden_fraction: float = MAX_HIDDEN_FRACTION,
    patience: Patience | None = None,
) -> DatasetIndex:
    """The index of any shards, with the texts that these keys ask for, and the first of the image keys that a sample
    has (by default IMAGE_EXTENSIONS). Raises as `build_index`, and UserDataError where no sample has an image or
    where more than a share of the samples is lost by dots in their names.
    """
    located = _locate(expand_all(patterns), access, patience or Patience())
    images = tuple(key.lower() for key in image_keys or IMAGE_EXTENSIONS)
    unused = UnusedFiles(images, [extension_of(key) for key in text_keys])
    indexes = _index_all(located, index_store, on_progress, patience or Patience())
    index = _assemble(located, images, tuple(text_keys), indexes, unused)
    _check_columns(index, images)
    _check_hidden(index, unused, max_hidden_fraction)
    return index


def index_shards(
    patterns: Sequence[str],
    access: ResolvedStore,
    index_store: Store,
    on_progress: OnProgress | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    patience: Patience | None = None,
) -> None:
    """Put the indexes of this rank's part of the shards into `index_store`, where they are not there yet."""
    mine = expand_all(patterns)[rank::world_size]
    located = _locate(mine, access, patience or Patience())
    _index_all(located, index_store, on_progress, patience or Patience())


@dataclass(frozen=True)
class _Located:
    uri: str
    store: Store
    info: ObjectInfo


def _locate(uris: Sequence[str], access: ResolvedStore, patience: Patience) -> list[_Located]:
    """Size and etag of every shard. Raises MissingInputError that names those that do not exist (NotFound for
    a bucket).
    """
    stores: dict[str, Store] = {}
    keys: list[tuple[Store, str]] = []
    for uri in uris:
        parent, name = split_uri(uri)
        if parent not in stores:
            stores[parent] = open_location(parent, access)
        keys.append((stores[parent], name))

    def head(place: tuple[Store, str]) -> ObjectInfo | None:
        store, name = place
        return patience.attempt(lambda: store.head(name))

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="modelchain-head") as pool:
        infos = list(pool.map(head, keys))
    located: list[_Located] = []
    missing: list[str] = []
    for uri, (store, _), info in zip(uris, keys, infos, strict=True):
        if info is None:
            missing.append(uri)
        else:
            located.append(_Located(uri, store, info))
    if missing:
        named = ", ".join(missing[:_NAMED]) + (
            f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        )
        raise MissingInputError(
            f"{len(missing)} of {len(uris)} shards do not exist: {named}; write them, or mend the shard list"
        )
    return located


def _index_all(
    located: Sequence[_Located], index_store: Store, on_progress: OnProgress | None, patience: Patience
) -> list[ShardIndex]:
    indexes: list[ShardIndex | None] = [None] * len(located)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="modelchain-index") as pool:
        futures = {
            pool.submit(read_or_build, shard.store, shard.info, shard.uri, index_store, patience): number
            for number, shard in enumerate(located)
        }
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                indexes[futures[future]] = future.result()
                if on_progress is not None:
                    on_progress(done, len(located))
        except BaseException:
            patience.stop()  # the other threads end with their next request
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [index for index in indexes if index is not None]


def _check_columns(index: DatasetIndex, images: tuple[str, ...]) -> None:
    """Raises UserDataError where no sample at all has an image, or a text of some key."""
    others = f"; files of other extensions: {index.unused}" if index.unused else ""
    if (index.image_offsets < 0).all():
        raise UserDataError(
            f"none of the {len(index)} samples has an image (.{', .'.join(images)}){others}; "
            "name the extension of the images in data.imageKeys"
        )
    for column, key in enumerate(index.text_keys):
        if (index.text_offsets[:, column] < 0).all():
            raise UserDataError(
                f"none of the {len(index)} samples has a .{extension_of(key)}{others}; fix the key"
            )


def _check_hidden(index: DatasetIndex, unused: UnusedFiles, max_fraction: float) -> None:
    """Raises UserDataError for too many hidden samples; says how many there are where they are forgiven."""
    if not unused.hidden:
        if index.unused:
            _logger.info("%d samples; files that none of them uses: %s", len(index), index.unused)
        return
    message = (
        f"{unused.hidden} images beside the {len(index)} samples would be lost: their names hold more than one dot, "
        f"and none of these extensions is asked for: {index.unused}; for example {unused.example}"
    )
    if unused.hidden > max_fraction * len(index):
        raise UserDataError(
            f"{message}; a sample's name ends at its first dot: rename the files, or name their extension in "
            "data.imageKeys and data.captionKeys"
        )
    _logger.warning("%s", message)


def _incomplete(index: DatasetIndex) -> str:
    """How many samples lack something, for a message about their number."""
    lacking = [("no image", int((index.image_offsets < 0).sum()))] + [
        (f"no .{extension_of(key)}", int((index.text_offsets[:, column] < 0).sum()))
        for column, key in enumerate(index.text_keys)
    ]
    parts = [f"{count} {what}" for what, count in lacking if count]
    return f", of which {' and '.join(parts)} (a sample lies in one shard as a whole)" if parts else ""


def _assemble(
    located: Sequence[_Located],
    images: tuple[str, ...],
    text_keys: tuple[str, ...],
    indexes: Sequence[ShardIndex],
    unused: UnusedFiles,
) -> DatasetIndex:
    shards: list[Shard] = []
    columns: list[_Columns] = []
    first = [0]
    for shard, index in zip(located, indexes, strict=True):
        part = _select(shard.uri, index, images, text_keys)
        unused.add(shard.uri, index)
        if not len(part.starts):
            wanted = ", ".join([*images, *map(extension_of, text_keys)])
            raise UserDataError(
                f"{shard.uri}: has no sample with any of {wanted}; its files are {_files_of(index)}; name the "
                "extensions of images and captions in data.imageKeys and data.captionKeys"
            )
        shards.append(Shard(shard.uri, shard.store, shard.info.key))
        columns.append(part)
        first.append(first[-1] + len(part.starts))
    return DatasetIndex(
        shards=tuple(shards),
        text_keys=text_keys,
        unused=unused.describe(),
        first_samples=np.array(first, np.int64),
        starts=np.concatenate([part.starts for part in columns]),
        lengths=np.concatenate([part.lengths for part in columns]),
        image_offsets=np.concatenate([part.image_offsets for part in columns]),
        image_sizes=np.concatenate([part.image_sizes for part in columns]),
        text_offsets=np.concatenate([part.text_offsets for part in columns]),
        text_sizes=np.concatenate([part.text_sizes for part in columns]),
    )


def _files_of(index: ShardIndex) -> str:
    counts = np.bincount(index.extension, minlength=len(index.extensions)).tolist()
    return describe_counts(dict(zip(index.extensions, counts, strict=True)))


@dataclass(frozen=True, eq=False)
class _Columns:
    starts: Int64
    lengths: Int32
    image_offsets: Int32
    image_sizes: Int32
    text_offsets: Int32
    text_sizes: Int32


def _select(uri: str, index: ShardIndex, images: tuple[str, ...], text_keys: tuple[str, ...]) -> _Columns:
    """The image and the texts of each sample; groups with none of them (a README) are no samples.

    Raises UserDataError where the parts of a sample lie apart.
    """
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
    text_offsets = np.stack([offsets for offsets, _ in texts], axis=1)
    text_sizes = np.stack([sizes for _, sizes in texts], axis=1)
    kept = (image_offsets >= 0) | (text_offsets >= 0).any(axis=1)
    apart = next((parts for parts in index.apart if kept[parts.first] and kept[parts.second]), None)
    if apart is not None:
        raise UserDataError(
            f"{uri}: the parts of sample {apart.key} lie apart; write the files of a sample one after the other, "
            "e.g. with tar --sort=name"
        )
    return _Columns(
        starts=index.starts[kept],
        lengths=index.lengths[kept].astype(np.int32),
        image_offsets=image_offsets[kept],
        image_sizes=image_sizes[kept],
        text_offsets=text_offsets[kept],
        text_sizes=text_sizes[kept],
    )
