"""How members make samples, and that a kept index is only believed where it fits."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from modelchain.errors import UserDataError
from modelchain_trainer.data.shard_index import ShardIndex, build, split_name
from modelchain_trainer.data.tar import scan
from tests.tar_files import write_tar


def index_of(path: Path) -> ShardIndex:
    data = path.read_bytes()
    return build(scan(lambda start, length: data[start : start + length], len(data), str(path)), str(path))


def files_of(path: Path, index: ShardIndex) -> list[dict[str, bytes]]:
    """The samples as the index finds them."""
    data = path.read_bytes()
    files: list[dict[str, bytes]] = []
    ends = np.cumsum(index.members)
    for start, first, end in zip(index.starts, ends - index.members, ends, strict=True):
        files.append(
            {
                index.extensions[index.extension[m]]: data[start + index.offsets[m] :][: index.sizes[m]]
                for m in range(first, end)
            }
        )
    return files


NASTY = [
    ("README", b"no extension"),
    ("__meta__", b"meta"),
    ("a/0.jpg", b"picture"),
    ("a/0.long.txt", b"two dots"),
    ("a/0.TXT", b"upper case"),
    ("b/0.jpg", b"another folder, another sample"),
    ("v1.0/x.txt", b"a dot in the folder"),
    ("./1.jpg", b"dot slash"),
    ("./1.txt", b""),
    ("a/0.jpg", b"the same key again is a new sample"),
    ("a/é.txt", "café".encode()),
]


def test_samples_are_those_that_webdataset_sees(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "nasty.tar", NASTY, format_=tarfile.PAX_FORMAT)
    theirs = [
        {name: content for name, content in one.items() if not name.startswith("__")}
        for one in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    assert files_of(path, index_of(path)) == theirs
    assert len(theirs) == 6


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    """What macOS and editors leave behind. webdataset makes odd samples of them: a/._0.jpg has the key "a/"."""
    members = [("a/._0.jpg", b"macOS"), ("a/0.jpg", b"picture"), ("a/.txt", b"editor"), ("a/0.txt", b"text")]
    path = write_tar(tmp_path / "hidden.tar", members)
    assert files_of(path, index_of(path)) == [{"jpg": b"picture", "txt": b"text"}]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("0.jpg", ("0", "jpg")),
        ("a/b/0.long.TXT", ("a/b/0", "long.txt")),
        ("a.b/c.txt", ("a.b/c", "txt")),
        ("a.b/c", None),
        (".txt", None),
        ("a/.txt", None),
        ("noextension", None),
        ("__x.y__", None),
    ],
)
def test_a_name_is_split_at_the_first_dot_of_its_last_part(
    path: str, expected: tuple[str, str] | None
) -> None:
    assert split_name(path) == expected


def test_a_shard_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserDataError, match=r"empty\.tar: holds no samples"):
        index_of(write_tar(tmp_path / "empty.tar", [("README", b"hello")]))
    with pytest.raises(UserDataError, match=r"none\.tar: holds no samples"):
        index_of(write_tar(tmp_path / "none.tar", []))


def test_a_file_that_stands_twice_in_a_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserDataError, match=r"sample a/0 has two files \.jpg"):
        index_of(write_tar(tmp_path / "twice.tar", [("a/0.jpg", b"1"), ("a/0.txt", b"2"), ("a/0.JPG", b"3")]))


def test_the_first_sample_of_an_appended_archive_may_have_the_name_of_the_last_before_it(
    tmp_path: Path,
) -> None:
    one = write_tar(tmp_path / "one.tar", [("0.png", b"1"), ("0.txt", b"2")]).read_bytes()
    path = tmp_path / "joined.tar"
    path.write_bytes(one + one)
    sample = {"png": b"1", "txt": b"2"}
    assert files_of(path, index_of(path)) == [sample, sample]
    twice = write_tar(tmp_path / "twice.tar", [("0.png", b"1"), ("0.png", b"2")]).read_bytes()
    path.write_bytes(one + twice)
    with pytest.raises(UserDataError, match=r"sample 0 has two files \.png"):
        index_of(path)


def test_a_kept_index_is_small(tmp_path: Path) -> None:
    members: list[tuple[str, bytes]] = []
    sizes = np.random.default_rng(0).integers(20, 200, (500, 8))
    for number, row in enumerate(sizes.tolist()):
        members += [(f"{number:08d}.{extension}", bytes(size)) for extension, size in enumerate(row)]
    index = index_of(write_tar(tmp_path / "captions.tar", members))
    text = json.dumps(index.to_document("uri", 0, "etag"))
    assert len(text) / len(members) < 5  # bytes a member
