"""What is kept of shards is believed only where it fits, and made anew where it does not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from modelchain.errors import UserDataError
from modelchain.store import StoreError
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.kept_index import groups_of, index_key, read_kept
from modelchain_trainer.data.shard_index import ShardIndex
from modelchain_trainer.data.shard_list import Located, ShardList
from modelchain_trainer.retry_policy import RetryPolicy
from tests.trainer.data.shards import CountingStore, access, info, write_shards


class Kept:
    """One shard of 20 samples in a folder that counts what is read, and a store of indexes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = Path(write_shards(folder / "data", 20, 20)[0])
        self.shards = CountingStore(self.path.parent)
        self.store = FolderStore(folder / "store")

    def list(self) -> ShardList:
        shard = Located(str(self.path), self.shards, info(self.path))
        return ShardList([shard], [], access(self.folder))

    def key(self) -> str:
        return index_key(groups_of(self.list())[0])

    def read(self) -> ShardIndex:
        ((_, found),) = read_kept(self.list(), self.store, RetryPolicy(), lambda _count: None)
        assert isinstance(found, ShardIndex)
        return found


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def same(one: ShardIndex, other: ShardIndex) -> bool:
    columns = ("starts", "lengths", "members", "extension", "offsets", "sizes")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
    return equal and one.extensions == other.extensions and one.apart == other.apart


def test_an_index_is_kept_and_read_instead_of_the_shard(kept: Kept) -> None:
    first = kept.read()
    assert kept.shards.reads
    kept.shards.reads.clear()
    second = kept.read()
    assert kept.shards.reads == []
    assert same(first, second)
    assert second.extensions == ("png", "txt")
    assert len(second) == 20


def test_an_index_is_made_anew_when_the_shard_was_replaced(kept: Kept) -> None:
    kept.read()
    before = kept.key()
    write_shards(kept.path.parent, 21, 21)
    assert kept.key() != before
    assert len(kept.read()) == 21


def test_a_damaged_index_is_made_anew(kept: Kept) -> None:
    whole = kept.read()
    good = kept.store.get(kept.key())[0]
    (document,) = json.loads(good)
    columns = document["columns"]
    for bad in [
        b"",
        good[: len(good) // 2],
        b"{}",
        b"[]",
        b"[1]",
        b"[null]",
        b"\xff\xfe",
        json.dumps([{**document, "version": 99}]).encode(),
        json.dumps([{**document, "bytes": 3}]).encode(),
        json.dumps([{**document, "extensions": ["png"]}]).encode(),
        json.dumps([{**document, "columns": {**columns, "starts": columns["sizes"]}}]).encode(),
        json.dumps([{**document, "columns": {**columns, "offsets": "AAAA"}}]).encode(),
        json.dumps([{**document, "apart": [["a", 5, 99]]}]).encode(),
        json.dumps([document, document]).encode(),
    ]:
        kept.store.put(kept.key(), bad)
        kept.shards.reads.clear()
        assert same(kept.read(), whole)
        assert kept.shards.reads, bad
        assert kept.store.get(kept.key())[0] == good


def test_a_shard_that_is_replaced_while_it_is_indexed_is_no_bad_one(kept: Kept) -> None:
    listed = kept.list()
    os.utime(kept.path, ns=(1, 1))  # another one since it was listed
    with pytest.raises(StoreError, match=r"0000\.tar: was replaced while it was indexed"):
        list(read_kept(listed, kept.store, RetryPolicy(), lambda _count: None))
    assert list(kept.store.list("")) == []
    assert len(kept.read()) == 20


def test_a_shard_of_which_less_comes_than_was_listed_is_no_bad_one(kept: Kept) -> None:
    class Short(CountingStore):
        def get_range_of(self, key: str, start: int, length: int, etag: str) -> bytes:
            return super().get_range_of(key, start, length, etag)[:-1]

    whole, kept.shards = kept.shards, Short(kept.path.parent)
    with pytest.raises(StoreError, match=r"0000\.tar: became shorter while it was read"):
        kept.read()
    assert list(kept.store.list("")) == []
    kept.shards = whole
    assert len(kept.read()) == 20


def test_a_bad_shard_is_not_read_again(kept: Kept) -> None:
    kept.path.write_bytes(kept.path.read_bytes()[:2000])
    messages: list[str] = []
    for _ in range(2):
        ((_, found),) = read_kept(kept.list(), kept.store, RetryPolicy(), lambda _count: None)
        assert isinstance(found, UserDataError)
        messages.append(str(found))
    assert messages[0] == messages[1]
    assert "was cut short" in messages[0]
    assert len(kept.shards.reads) == 1


def test_a_shard_on_a_disk_is_indexed_by_its_headers_alone(tmp_path: Path) -> None:
    """Bodies of a megabyte: of 20 MB less than a tenth is read."""
    (path,) = write_shards(
        tmp_path / "data", 20, 20, lambda n: {"png": bytes([n]) * (1 << 20), "txt": b"text"}
    )
    shards = CountingStore(Path(path).parent)
    listed = ShardList([Located(path, shards, info(Path(path)))], [], access(tmp_path))
    ((_, found),) = read_kept(listed, FolderStore(tmp_path / "store"), RetryPolicy(), lambda _count: None)
    assert isinstance(found, ShardIndex)
    assert len(found) == 20
    assert sum(length for _, _, length in shards.reads) < 2 << 20


@pytest.mark.parametrize("uri", ["s3://bucket/data", "https://server/data", "gs://bucket/data"])
def test_a_shard_elsewhere_is_indexed_with_few_requests(tmp_path: Path, uri: str) -> None:
    """Bodies of 60 kB: each request would take as long as all of them."""
    (path,) = write_shards(tmp_path / "data", 50, 50, lambda n: {"png": bytes([n]) * 60_000, "txt": b"text"})
    shards = CountingStore(Path(path).parent)
    shards.uri = uri
    listed = ShardList([Located(path, shards, info(Path(path)))], [], access(tmp_path))
    ((_, found),) = read_kept(listed, FolderStore(tmp_path / "store"), RetryPolicy(), lambda _count: None)
    assert isinstance(found, ShardIndex)
    assert len(found) == 50
    assert len(shards.reads) <= 3
