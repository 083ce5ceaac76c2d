"""Where the samples of one shard lie: read from its tar headers once, then kept in the store.

A sample is a run of consecutive members with the same key; the key is the path up to the first dot of the
file's name, the rest is the extension, in lower case (webdataset's rule). Where
archives were joined, the last sample of one and the first of the next may share their key: a file that the first has
already begins the second. Files that begin with a dot or have none are no samples. A link or a device has no bytes of
its own and is no file of a sample; it is counted, and whoever uses files of its extension refuses the shard. Where the
files of one key lie apart, each run of them is a sample of its own; the index says so, and whoever uses those files
refuses the shard.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import MissingInputError, UserDataError
from modelchain.store import NotFound, ObjectInfo, Replaced, Store, StoreError
from modelchain_trainer.data.tar import Member, scan
from modelchain_trainer.retry_policy import RetryPolicy

VERSION = 5
MAX_SAMPLE_BYTES = 2**31 - 1

_COLUMNS = ("starts", "lengths", "members", "extension", "offsets", "sizes")

Int64 = NDArray[np.int64]


class Apart(NamedTuple):
    """Two runs of members that seem to be parts of one sample: one key, no extension in common."""

    key: str
    first: int  # numbers of the two samples in the shard
    second: int


class Special(NamedTuple):
    """Members of an extension that are no regular files: links and devices."""

    extension: str
    members: int  # how many
    example: str  # for messages: `1.png, a hard link to 0.png`


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard as columns: n samples with m members in all. Bytes count from the shard's
    beginning.
    """

    extensions: tuple[str, ...]  # those that occur; members refer to them by number
    starts: Int64  # [n] first byte of a sample, its first header included
    lengths: Int64  # [n] up to the end of its last member's body
    members: Int64  # [n] how many members it has
    extension: Int64  # [m] number of each member's extension
    offsets: Int64  # [m] of each member's body, from its sample's start
    sizes: Int64  # [m] of each member's body
    apart: tuple[Apart, ...] = ()
    special: tuple[Special, ...] = ()

    def __len__(self) -> int:
        return len(self.starts)

    def to_document(self, uri: str, size: int, etag: str) -> dict[str, object]:
        """Compact: columns as byte planes (small numbers leave most planes empty), compressed, in base64."""
        columns = {name: _pack(getattr(self, name)) for name in _COLUMNS}
        return {
            "version": VERSION,
            "uri": uri,
            "bytes": size,
            "etag": etag,
            "samples": len(self),
            "extensions": self.extensions,
            "columns": columns,
            "apart": self.apart,
            "special": self.special,
        }

    @classmethod
    def from_document(cls, document: Any, size: int) -> ShardIndex:
        """Read what `to_document` made for a shard of `size` bytes. Raises ValueError for anything else."""
        try:
            if document["version"] != VERSION or document["bytes"] != size:
                raise ValueError("another version, or of another shard")
            columns = {name: _unpack(document["columns"][name]) for name in _COLUMNS}
            apart = tuple(Apart(str(key), int(one), int(two)) for key, one, two in document["apart"])
            special = tuple(Special(str(name), int(n), str(one)) for name, n, one in document["special"])
            index = cls(
                extensions=tuple(str(name) for name in document["extensions"]),
                **columns,
                apart=apart,
                special=special,
            )
        except (KeyError, TypeError, zlib.error, binascii.Error) as error:
            raise ValueError(f"damaged index: {error}") from error
        if not index._fits(size):
            raise ValueError("damaged index: its columns contradict each other")
        return index

    def _fits(self, size: int) -> bool:
        """Whether the columns belong together and stay inside a shard of `size` bytes."""
        n, m = len(self.starts), len(self.extension)
        if not (len(self.lengths) == len(self.members) == n and len(self.offsets) == len(self.sizes) == m):
            return False
        if n == 0 or any(
            column.min() < 0
            for column in (self.starts, self.lengths, self.extension, self.offsets, self.sizes)
        ):
            return False
        if self.members.min() < 1 or self.members.sum() != m or self.extension.max() >= len(self.extensions):
            return False
        ends = self.starts + self.lengths
        bodies_fit = self.offsets + self.sizes <= np.repeat(self.lengths, self.members)
        if not all(0 <= first < second < n for _, first, second in self.apart):
            return False
        return bool((self.starts[1:] >= ends[:-1]).all() and ends[-1] <= size and bodies_fit.all())


def build_from_store(store: Store, info: ObjectInfo, uri: str, retry_policy: RetryPolicy) -> ShardIndex:
    """The index of a shard, made from its headers.

    Raises UserDataError where the shard is no tar, is damaged, or holds no sample, MissingInputError where it is gone,
    StoreError where it is another one than `info` speaks of.
    """

    def read(start: int, length: int) -> bytes:
        return retry_policy.call(lambda: store.get_range_of(info.key, start, length, info.etag))

    try:
        return build(scan(read, info.size, uri, seeks_are_cheap=store.uri.startswith("file://")), uri)
    except NotFound as error:
        raise MissingInputError(f"{uri}: was removed while it was indexed; put it back") from error
    except Replaced as error:  # no UserDataError: nothing is wrong with the shard
        raise StoreError(
            f"{uri}: was replaced while it was indexed; let nothing write to the shards"
        ) from error


def build(members: Iterator[Member], uri: str) -> ShardIndex:
    """Group members into samples. Raises UserDataError for a shard without samples or a member that stands
    twice.
    """
    numbers: dict[str, int] = {}  # extension -> its number
    starts: list[int] = []
    ends: list[int] = []
    counts: list[int] = []
    extension: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    current: str | None = None
    archive = 0  # of the last file
    seen: set[int] = set()
    runs: list[tuple[str, set[int]]] = []  # each sample's key and the extensions it has
    special: dict[str, Special] = {}
    for member in members:
        split = split_name(member.name)
        if split is None:
            continue
        key, suffix = split
        if member.special:
            first = special.get(suffix, Special(suffix, 0, f"{member.name}, {member.special}"))
            special[suffix] = first._replace(members=first.members + 1)
            continue
        number = numbers.setdefault(suffix, len(numbers))
        if key != current or (number in seen and member.archive != archive):
            current = key
            seen = set()
            runs.append((key, seen))
            starts.append(member.start)
            ends.append(member.start)
            counts.append(0)
        if number in seen:
            raise UserDataError(
                f"{uri}: sample {key} has two files .{suffix}; write each file of a sample once"
            )
        archive = member.archive
        seen.add(number)
        extension.append(number)
        offsets.append(member.offset - starts[-1])
        sizes.append(member.size)
        ends[-1] = member.offset + member.size
        counts[-1] += 1
        if ends[-1] - starts[-1] > MAX_SAMPLE_BYTES:
            raise UserDataError(
                f"{uri}: sample {key} is larger than {MAX_SAMPLE_BYTES} bytes; take it out of the shard"
            )
    if not starts and special:
        raise special_files(uri, list(special.values()))
    if not starts:
        raise UserDataError(f"{uri}: holds no samples; write the shard again or take it out of the list")
    starts_array = np.array(starts, np.int64)
    return ShardIndex(
        extensions=tuple(numbers),
        starts=starts_array,
        lengths=np.array(ends, np.int64) - starts_array,
        members=np.array(counts, np.int64),
        extension=np.array(extension, np.int64),
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        apart=_find_apart(runs),
        special=tuple(special.values()),
    )


def special_files(uri: str, special: Sequence[Special]) -> UserDataError:
    """The error for a shard whose samples need such members."""
    return UserDataError(
        f"{uri}: {sum(one.members for one in special)} of its files have no bytes of their own, for example "
        f"{special[0].example}; write the shard with tar --hard-dereference --dereference, and without devices"
    )


def _find_apart(runs: Sequence[tuple[str, set[int]]]) -> tuple[Apart, ...]:
    """Runs of one key that complete each other. Those that share an extension are samples of the same name."""
    found: list[Apart] = []
    earlier: dict[str, tuple[int, set[int]]] = {}
    for number, (key, extensions) in enumerate(runs):
        first = earlier.setdefault(key, (number, extensions))
        if first[0] != number and first[1].isdisjoint(extensions):
            found.append(Apart(key, first[0], number))
    return tuple(found)


def split_name(path: str) -> tuple[str, str] | None:
    """A member's key and extension; None for names that belong to no sample."""
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.partition(".")
    if not stem or not dot or (not slash and name.startswith("__") and name.endswith("__")):
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def _pack(column: Int64) -> str:
    planes = np.ascontiguousarray(np.diff(column, prepend=0).astype("<i8")).view(np.uint8).reshape(-1, 8).T
    return base64.b64encode(zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)).decode()


def _unpack(text: str) -> Int64:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), np.uint8)
    if planes.size % 8:
        raise ValueError("damaged index: a column is cut short")
    differences = np.ascontiguousarray(planes.reshape(8, -1).T).view("<i8").reshape(-1)
    return np.cumsum(differences, dtype=np.int64)
