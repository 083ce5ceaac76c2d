"""The index of a data set: what is counted, what is missing, what is refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from modelchain.errors import ExitCode, MissingInputError, UserDataError
from modelchain.resolved import ResolvedData, ResolvedSource, ResolvedStore
from modelchain.store import NotFound, Store
from modelchain.store.folder import FolderStore
from modelchain_trainer.data import incomplete
from modelchain_trainer.data.index import build_index, index_samples
from modelchain_trainer.data.kept_index import GROUP, groups_of, index_key, index_missing, read_kept
from modelchain_trainer.data.reader import read_segment
from modelchain_trainer.data.shard_list import ShardList
from modelchain_trainer.retry_policy import RetryPolicy
from tests.seaweedfs import BUCKET, SeaweedFS
from tests.tar_files import write_tar
from tests.trainer.data.shards import access, index_of, png, sample, write_shards


def test_samples_are_numbered_through_all_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 25, 10)
    index = index_of(shards, 25, tmp_path / "store")
    assert index.first_samples.tolist() == [0, 10, 20, 25]
    for number in range(25):
        segment = read_segment(index, number, number + 1, RetryPolicy())
        assert segment.image(number) == png(number)
        assert segment.text(number, 0) == f"number {number}".encode()
        assert index.shard_of(number).uri == shards[number // 10]


def test_progress_counts_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 9, 3)
    seen: list[tuple[int, int]] = []
    index_samples(shards, ["txt"], access(tmp_path), FolderStore(tmp_path), lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_another_number_of_samples_is_refused_with_the_right_one(tmp_path: Path) -> None:
    data = ResolvedData(shards=write_shards(tmp_path / "data", 25, 10), samples=24)
    with pytest.raises(
        UserDataError, match=r"data\.samples is 24, but .* hold 25 samples; write samples: 25"
    ):
        build_index(data, access(tmp_path), FolderStore(tmp_path / "store"))


def test_missing_shards_are_named_up_to_five(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", 6, 3)
    pattern = f"{tmp_path}/data/{{0000..0009}}.tar"
    with pytest.raises(MissingInputError) as raised:
        index_samples([pattern], ["txt"], access(tmp_path), FolderStore(tmp_path / "store"))
    message = str(raised.value)
    assert message.startswith("8 of 10 shards do not exist: ")
    assert all(f"/data/{number:04d}.tar" in message for number in range(2, 7))
    assert "0007.tar" not in message
    assert "and 3 more" in message
    assert raised.value.exit_code is ExitCode.NO_INPUT


def test_a_bad_shard_among_good_ones_is_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 12, 3)
    cut = Path(shards[2])
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(UserDataError, match=r"data/0002\.tar: was cut short"):
        index_samples(shards, ["txt"], access(tmp_path), FolderStore(tmp_path / "store"))


def test_the_first_known_picture_of_a_sample_is_its_image(tmp_path: Path) -> None:
    members = [
        ("0.webp", b"w"),
        ("0.txt", b"t"),
        ("0.png", b"p"),
        ("1.jpeg", b"e"),
        ("1.jpg", b"j"),
        ("2.webp", b"v"),
    ]
    shard = str(write_tar(tmp_path / "a.tar", members))
    index = index_of([shard], 3, tmp_path / "store", max_corrupt_fraction=1)
    images = [read_segment(index, number, number + 1, RetryPolicy()).image(number) for number in range(3)]
    assert images == [b"p", b"j", b"v"]


def test_a_shard_of_two_tars_joined_with_cat_has_the_samples_of_both(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 20, 10)
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(Path(shard).read_bytes() for shard in shards))
    index = index_of([str(joined)], 20, tmp_path / "store")
    segment = read_segment(index, 0, 20, RetryPolicy())
    assert [segment.image(number) for number in range(20)] == [png(number) for number in range(20)]
    assert [segment.text(number, 0) for number in (0, 10)] == [b"number 0", b"number 10"]


def test_groups_without_image_and_text_are_not_counted(tmp_path: Path) -> None:
    members = [
        ("readme.md", b"hello"),
        ("0.png", b"p"),
        ("1.txt", b"t"),
        ("notes.json", b"{}"),
        ("2.other", b"o"),
    ]
    shard = str(write_tar(tmp_path / "a.tar", members))
    index = index_of([shard], 2, tmp_path / "store", max_corrupt_fraction=1)
    assert index.image_offsets.tolist()[1] == -1
    assert index.text_offsets.tolist()[0] == [-1]


IMAGES = [(f"images/{number:03}.png", png(number)) for number in range(20)]
TEXTS = [(f"texts/{number:03}.txt", b"text") for number in range(20)]


@pytest.mark.parametrize("samples", [0, 20, 40])
@pytest.mark.parametrize("shards", [[IMAGES + TEXTS], [IMAGES, TEXTS]], ids=["folders", "shards"])
def test_images_apart_from_their_texts_are_an_error_whatever_number_is_stated(
    tmp_path: Path, shards: list[list[tuple[str, bytes]]], samples: int
) -> None:
    paths = [str(write_tar(tmp_path / f"{n}.tar", members)) for n, members in enumerate(shards)]
    with pytest.raises(
        UserDataError,
        match=r"hold 40 samples, 20 without an image \(sample texts/000 of .*\) and 20 without \.txt "
        r"\(sample images/000 of .*0\.tar\), more than data\.maxCorruptFraction 0\.01 .*name .*folders included",
    ) as raised:
        index_of(paths, samples, tmp_path / "store")
    assert "write samples" not in str(raised.value)


def test_incomplete_samples_within_the_limit_are_told_before_their_number(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 40, 20, lambda n: {"png": png(n)} if n == 27 else sample(n))
    assert len(index_of(shards, 40, tmp_path / "store", max_corrupt_fraction=0.1)) == 40
    with pytest.raises(
        UserDataError,
        match=rf"hold 40 samples; first complete or take out 1 without \.txt \(sample 000027 of {shards[1]}\)",
    ) as raised:
        index_of(shards, 39, tmp_path / "store", max_corrupt_fraction=0.1)
    assert "write samples" not in str(raised.value)


def test_samples_that_are_complete_would_not_be_more(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 40, 20, lambda n: {"png": png(n)} if n == 7 else sample(n))
    with pytest.raises(
        UserDataError, match=r"is 41, but the 2 shards hold 40 samples; write samples: 40, or fix"
    ):
        index_of(shards, 41, tmp_path / "store", max_corrupt_fraction=0.1)
    sources = [ResolvedSource(patterns=1, samples=20), ResolvedSource(patterns=1, samples=19)]
    data = ResolvedData(
        shards=shards, samples=39, sources=tuple(sources), caption_keys=("txt",), max_corrupt_fraction=0.1
    )
    with pytest.raises(
        UserDataError, match=r"sources\[1\]\.samples is 19, .* hold 20 samples; write samples: 20"
    ):
        build_index(data, access(tmp_path), FolderStore(tmp_path / "store"))


def test_incomplete_samples_are_counted_a_part_of_the_index_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incomplete, "_AT_ONCE", 7)
    bad = (3, 20, 21, 33)
    shards = write_shards(tmp_path / "data", 40, 20, lambda n: {"png": png(n)} if n in bad else sample(n))
    index = index_of(shards, 40, tmp_path / "store", max_corrupt_fraction=0.1)
    assert incomplete.describe_incomplete(index, 0, 40) == f"4 without .txt (sample 000003 of {shards[0]})"
    assert incomplete.describe_incomplete(index, 20, 33) == f"2 without .txt (sample 000020 of {shards[1]})"
    assert incomplete.describe_incomplete(index, 34, 40) == ""
    with pytest.raises(UserDataError, match=r"hold 40 samples, 4 without \.txt"):
        incomplete.check_complete(index, 0.09)


def test_images_alone_have_no_texts_and_lack_none(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 20, 10, lambda n: {"png": png(n)})
    data = ResolvedData(shards=shards, samples=20)
    index = build_index(data, access(tmp_path), FolderStore(tmp_path), text_keys=())
    assert (len(index), index.text_offsets.shape) == (20, (20, 0))
    hidden = str(write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.large.png", png(1))]))
    data = ResolvedData(shards=(hidden,), samples=1)
    with pytest.raises(
        UserDataError, match=r"1 images beside the 1 samples .*name their extension in data.imageKeys$"
    ):
        build_index(data, access(tmp_path), FolderStore(tmp_path), text_keys=())


def test_a_shard_with_none_of_the_keys_is_refused(tmp_path: Path) -> None:
    shard = str(write_tar(tmp_path / "a.tar", [("0.json", b"{}")]))
    with pytest.raises(UserDataError, match=r"a\.tar: has no sample with any of jpg, .*, txt, long\.txt;"):
        index_of([shard], 1, tmp_path / "store", caption_keys=("txt", "long.txt"))


def nothing(_count: int) -> None:
    """No progress is looked at."""


def test_ranks_index_their_own_groups_of_shards_only(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 2 * GROUP + 3, 1)
    store = FolderStore(tmp_path / "store")
    found = ShardList.find(shards, access(tmp_path), RetryPolicy())
    index_missing(found, store, RetryPolicy(), nothing, rank=1, world_size=3)
    assert [info.key for info in store.list("indexes/")] == [index_key(groups_of(found)[1])]
    for rank in (0, 2):
        index_missing(found, store, RetryPolicy(), nothing, rank=rank, world_size=3)
    assert len(list(store.list("indexes/"))) == 3


def test_a_shard_list_travels_from_rank_to_rank(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 9, 3)
    found = ShardList.find(shards, access(tmp_path), RetryPolicy())
    told = ShardList.from_text(found.to_text(), access(tmp_path))
    assert [shard.uri for shard in told.shards] == list(shards)
    assert [index_key(group) for group in groups_of(told)] == [index_key(group) for group in groups_of(found)]
    read = [index for _, index in read_kept(told, FolderStore(tmp_path / "store"), RetryPolicy(), nothing)]
    assert [len(index) for index in read if not isinstance(index, Exception)] == [3, 3, 3]


def test_memory_stays_under_a_hundred_bytes_a_sample_with_seven_captions(tmp_path: Path) -> None:
    keys = tuple(f"t{number}" for number in range(7))
    shards = write_shards(tmp_path / "data", 8, 4, lambda n: {"png": png(n)} | dict.fromkeys(keys, b"text"))
    index = index_of(shards, 8, tmp_path / "store", caption_keys=keys)
    arrays = [
        value for value in vars(index).values() if isinstance(value, np.ndarray) and len(value) == len(index)
    ]
    assert len(arrays) == 6
    assert sum(array.nbytes for array in arrays) < 100 * len(index)


@pytest.mark.slow
def test_shards_in_s3_are_indexed_like_those_in_a_folder(
    tmp_path: Path, seaweedfs: SeaweedFS, s3_store: Store
) -> None:
    shards = write_shards(tmp_path / "data", 25, 10)
    for path in map(Path, shards):
        s3_store.upload(path.name, path)
    uris = [f"{s3_store.uri}/{Path(path).name}" for path in shards]
    index = index_samples(uris, ["txt"], seaweedfs.access("unused"), s3_store)
    local = index_of(shards, 25, tmp_path / "store")
    assert index.starts.tolist() == local.starts.tolist()
    assert index.shards[1].uri == uris[1]
    segment = read_segment(index, 12, 18, RetryPolicy())
    assert [segment.text(number, 0) for number in range(12, 18)] == [sample(n)["txt"] for n in range(12, 18)]


@pytest.mark.slow
def test_a_missing_bucket_is_named(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    at: ResolvedStore = seaweedfs.access("unused")
    with pytest.raises((NotFound, MissingInputError), match="no-such-bucket") as raised:
        index_samples(["s3://no-such-bucket/a.tar"], ["txt"], at, FolderStore(tmp_path))
    assert raised.value.exit_code is ExitCode.NO_INPUT
    assert BUCKET not in str(raised.value)


@pytest.mark.parametrize("kind", ["hard", "symbolic"])
@pytest.mark.parametrize("linked", ["png", "txt"])
def test_links_are_no_samples_to_lose(tmp_path: Path, kind: str, linked: str) -> None:
    """Of 8 samples two share a file with the first one, as tools that find duplicates leave them."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(8):
        for extension, content in sample(number).items():
            path = folder / f"{number}.{extension}"
            if number in (1, 2) and extension == linked:
                (path.hardlink_to if kind == "hard" else path.symlink_to)(folder / f"0.{extension}")
            else:
                path.write_bytes(content)
    shard = str(tmp_path / "0.tar")

    def pack(*, dereference: bool) -> None:
        with tarfile.open(shard, "w", dereference=dereference) as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)

    pack(dereference=False)
    says = rf"0\.tar: 2 of its files have no bytes .* 1\.{linked}, a {kind} link to .*--hard-dereference"
    for _ in range(2):  # from the shard, and from what is kept of it
        with pytest.raises(UserDataError, match=says):
            index_of([shard], 8, tmp_path)
    if linked == "txt":
        assert len(index_samples([shard], ["png"], access(tmp_path), FolderStore(tmp_path))) == 8, (
            "not asked for"
        )
    pack(dereference=True)
    assert len(index_of([shard], 8, tmp_path)) == 8


def test_a_shard_of_links_alone_says_so(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../images/0.png"
        archive.addfile(link)
    with pytest.raises(
        UserDataError, match=r"0\.tar: 1 of its files .* 0\.png, a symbolic link to \.\./images/0"
    ):
        index_of([str(tmp_path / "0.tar")], 1, tmp_path)
