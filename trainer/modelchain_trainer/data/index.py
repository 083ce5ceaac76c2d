"""Where every sample of a data set lies: the indexes of its shards, put together.

Samples are numbered in the order of the shard list and of the bytes in each shard.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedData, ResolvedStore
from modelchain.store import Store, open_location, split_uri
from modelchain_trainer.data.columns import ColumnWriter, Int32, Int64, map_columns
from modelchain_trainer.data.incomplete import check_complete, describe_incomplete
from modelchain_trainer.data.kept_index import read_kept
from modelchain_trainer.data.mix import sources_of
from modelchain_trainer.data.selection import files_of, select_samples
from modelchain_trainer.data.shard_list import Located, ShardList, versions_of
from modelchain_trainer.data.text_keys import extension_of
from modelchain_trainer.data.unused import UnusedFiles
from modelchain_trainer.retry_policy import RetryPolicy

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

_DESCRIPTION = "index.json"

_logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shard:
    """A tar file in a store."""

    uri: str
    store: Store
    key: str
    etag: str = ""  # of the bytes that were indexed; empty: any


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
    left_out: tuple[str, ...] = ()  # shards that can't be used, within what is allowed

    @property
    def layout(self) -> str:
        """Hash of which samples there are and where they lie; of their order, therefore."""
        found = hashlib.sha256("\n".join([*self.text_keys, *(shard.uri for shard in self.shards)]).encode())
        columns = (
            self.starts,
            self.lengths,
            self.image_offsets,
            self.image_sizes,
            self.text_offsets,
            self.text_sizes,
        )
        for column in (self.first_samples, *columns):
            found.update(np.ascontiguousarray(column).data)
        return found.hexdigest()

    @property
    def versions(self) -> str:
        """Hash of the versions of all shards: another one as soon as one was written anew."""
        return versions_of(shard.etag for shard in self.shards)

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
    retry_policy: RetryPolicy | None = None,
) -> DatasetIndex:
    """The index of a stage's training data, with the texts of `text_keys` (default: its captions; (): images alone), in
    this process alone. What is in `index_store` already is only read.

    `on_progress(done, total)` counts shards. Raises MissingInputError for shards that do not exist,
    UserDataError for bad ones and where there are not `data.samples` samples.
    """
    retry_policy = retry_policy or RetryPolicy()
    shards = ShardList.find(data.shards, access, retry_policy, max_missing=data.max_missing_shards)
    with tempfile.TemporaryDirectory(prefix="modelchain-index-") as folder:
        write_training_index(
            Path(folder),
            shards,
            data,
            index_store,
            on_progress,
            text_keys=text_keys,
            retry_policy=retry_policy,
        )
        return open_index(Path(folder), access)


def index_samples(
    patterns: Sequence[str],
    text_keys: Sequence[str],
    access: ResolvedStore,
    index_store: Store,
    on_progress: OnProgress | None = None,
    *,
    image_keys: Sequence[str] | None = None,
    max_hidden_fraction: float = MAX_HIDDEN_FRACTION,
    retry_policy: RetryPolicy | None = None,
) -> DatasetIndex:
    """The index of any shards, with the texts that these keys ask for, and the first of the image keys that a sample
    has (by default IMAGE_EXTENSIONS). Raises as `build_index`, and UserDataError where no sample has an image or
    where more than a share of the samples is lost by dots in their names.
    """
    retry_policy = retry_policy or RetryPolicy()
    shards = ShardList.find(patterns, access, retry_policy)
    with tempfile.TemporaryDirectory(prefix="modelchain-index-") as folder:
        _write_index(
            Path(folder),
            shards,
            tuple(text_keys),
            index_store,
            on_progress,
            image_keys=image_keys,
            max_hidden_fraction=max_hidden_fraction,
            max_bad=0,
            retry_policy=retry_policy,
        )
        return open_index(Path(folder), access)


def first_samples(index: DatasetIndex, count: int) -> DatasetIndex:
    """The index of its first samples."""
    if count == len(index):
        return index
    return replace(
        index,
        first_samples=np.minimum(index.first_samples, count),
        starts=index.starts[:count],
        lengths=index.lengths[:count],
        image_offsets=index.image_offsets[:count],
        image_sizes=index.image_sizes[:count],
        text_offsets=index.text_offsets[:count],
        text_sizes=index.text_sizes[:count],
    )


def write_training_index(
    folder: Path,
    shards: ShardList,
    data: ResolvedData,
    index_store: Store,
    on_progress: OnProgress | None = None,
    *,
    text_keys: Sequence[str] | None = None,
    retry_policy: RetryPolicy,
) -> None:
    """Write the index of a stage's training data, with the texts of `text_keys` (default: its captions), into an
    empty folder, for all processes of this node to open.

    Raises UserDataError for bad shards and where there are not `data.samples` samples.
    """
    index = _write_index(
        folder,
        shards,
        tuple(data.caption_keys if text_keys is None else text_keys),
        index_store,
        on_progress,
        image_keys=data.image_keys,
        max_hidden_fraction=data.max_corrupt_fraction,
        max_bad=data.max_missing_shards - len(shards.missing),
        retry_policy=retry_policy,
    )
    check_complete(index, data.max_corrupt_fraction)
    if not data.sources:
        _check_count(index, "data", data.samples, (0, len(index)))
    for number, (source, found) in enumerate(zip(data.sources, sources_of(data, index), strict=True)):
        _check_count(index, f"data.sources[{number}]", source.samples, (found.first, found.last))


def _check_count(index: DatasetIndex, field: str, expected: int, part: tuple[int, int]) -> None:
    """Raises UserDataError where a field says another number of samples than its shards hold, from the first up to the
    last of `part`: with the right one, unless shards are left out, or samples incomplete and too many.
    """
    found, shards = part[1] - part[0], int(np.searchsorted(index.first_samples, part) @ (-1, 1))
    fewer = index.left_out and found < expected
    if found == expected or fewer:
        return
    remedy = f"write samples: {found}, or fix {field}.shards"
    if index.left_out:
        remedy = (
            f"mend or take out those that can't be used ({len(index.left_out)}, e.g. {index.left_out[0]})"
        )
    elif found > expected and (incomplete := describe_incomplete(index, *part)):
        remedy = f"first complete or take out {incomplete}, or fix {field}.shards"
    raise UserDataError(
        f"{field}.samples is {expected}, but the {shards} shards hold {found} samples; {remedy}"
    )


def write_text_index(
    folder: Path,
    shards: ShardList,
    text_keys: Sequence[str],
    index_store: Store,
    on_progress: OnProgress | None = None,
    *,
    max_hidden_fraction: float,
    max_bad: int,
    retry_policy: RetryPolicy,
) -> DatasetIndex:
    """Write the index of samples without images into an empty folder. Raises UserDataError for bad shards."""
    return _write_index(
        folder,
        shards,
        tuple(text_keys),
        index_store,
        on_progress,
        image_keys=(),
        max_hidden_fraction=max_hidden_fraction,
        max_bad=max_bad,
        retry_policy=retry_policy,
    )


def open_index(folder: Path, access: ResolvedStore) -> DatasetIndex:
    """The index that was written into a folder; its columns are mapped, not read."""
    description = json.loads((folder / _DESCRIPTION).read_bytes())
    uris: list[str] = description["shards"]
    stores = {parent: open_location(parent, access) for parent in {split_uri(uri)[0] for uri in uris}}
    columns = map_columns(folder, len(description["textKeys"]))
    return DatasetIndex(
        shards=tuple(
            Shard(uri, stores[split_uri(uri)[0]], split_uri(uri)[1], etag)
            for uri, etag in zip(uris, description["etags"], strict=True)
        ),
        text_keys=tuple(description["textKeys"]),
        unused=description["unused"],
        first_samples=np.array(description["firstSamples"], np.int64),
        left_out=tuple(description["leftOut"]),
        **vars(columns),
    )


def _write_index(
    folder: Path,
    shards: ShardList,
    text_keys: tuple[str, ...],
    index_store: Store,
    on_progress: OnProgress | None,
    *,
    image_keys: Sequence[str] | None,
    max_hidden_fraction: float,
    max_bad: int,
    retry_policy: RetryPolicy,
) -> DatasetIndex:
    images = tuple(key.lower() for key in (IMAGE_EXTENSIONS if image_keys is None else image_keys))
    unused = UnusedFiles(images, [extension_of(key) for key in text_keys])
    done, total = 0, len(shards.shards)

    def progress(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    used: list[Located] = []
    first = [0]
    bad: dict[str, str] = {}
    with ColumnWriter(folder) as writer:
        for shard, found in read_kept(shards, index_store, retry_policy, progress):
            if isinstance(found, UserDataError):
                bad[shard.uri] = str(found)
                if len(bad) > max_bad:
                    raise found
                continue
            columns = select_samples(shard.uri, found, images, text_keys)
            unused.add(shard.uri, found)
            if not len(columns):
                wanted = ", ".join([*images, *map(extension_of, text_keys)])
                raise UserDataError(
                    f"{shard.uri}: has no sample with any of {wanted}; its files are {files_of(found)}; name the "
                    f"extensions of its {unused.kinds} in {unused.fields}"
                )
            writer.append(columns)
            used.append(shard)
            first.append(first[-1] + len(columns))
    if not used:
        raise UserDataError(f"none of the {total} shards can be used; for example {next(iter(bad.values()))}")
    for uri in shards.missing:
        _logger.warning("%s: does not exist, or did not when the stage began; left out", uri)
    for message in bad.values():
        _logger.warning("%s; left out", message)
    description = {
        "shards": [shard.uri for shard in used],
        "etags": [shard.info.etag for shard in used],
        "firstSamples": first,
        "textKeys": text_keys,
        "unused": unused.describe(),
        "leftOut": [*shards.missing, *bad],
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description))
    index = open_index(folder, shards.access)
    _check_columns(index, images)
    _check_hidden(index, unused, max_hidden_fraction)
    return index


def _check_columns(index: DatasetIndex, images: tuple[str, ...]) -> None:
    """Raises UserDataError where no sample at all has an image, or a text of some key."""
    others = f"; files of other extensions: {index.unused}" if index.unused else ""
    if images and (index.image_offsets < 0).all():
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
        f"{unused.hidden} {unused.what} beside the {len(index)} samples would be lost: their names hold more than one "
        f"dot, and none of these extensions is asked for: {index.unused}; for example {unused.example}"
    )
    if unused.hidden > max_fraction * len(index):
        raise UserDataError(
            f"{message}; a sample's name ends at its first dot: rename the files, or name their extension in "
            f"{unused.fields}"
        )
    _logger.warning("%s", message)
