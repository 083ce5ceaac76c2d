"""No sample is lost without a word, and no advice adopts a wrong number of samples."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelchain.errors import UserDataError
from modelchain.store.folder import FolderStore
from modelchain_trainer.data.index import DatasetIndex, index_samples
from modelchain_trainer.data.reader import read_segment
from modelchain_trainer.data.sample import CorruptSampleError
from modelchain_trainer.retry_policy import RetryPolicy
from tests.tar_files import write_tar
from tests.trainer.data.shards import access, index_of, png

Members = Sequence[tuple[str, bytes]]


def pairs(count: int, image: str = "png", text: str = "txt") -> list[tuple[str, bytes]]:
    """Samples of one image and one text."""
    return [
        member
        for n in range(count)
        for member in ((f"{n:06d}.{image}", png(n)), (f"{n:06d}.{text}", b"a text"))
    ]


def index(tmp_path: Path, members: Members, **options: object) -> DatasetIndex:
    shard = write_tar(tmp_path / "a.tar", members, format_=tarfile.PAX_FORMAT)
    store = FolderStore(tmp_path / "store")
    return index_samples([str(shard)], ["txt"], access(tmp_path), store, **options)  # type: ignore[arg-type]


def test_a_tar_with_all_images_before_all_texts_is_refused(tmp_path: Path) -> None:
    members = sorted(pairs(16), key=lambda member: member[0].endswith("txt"))
    with pytest.raises(UserDataError, match=r"a\.tar: the parts of sample 000000 lie apart; .*--sort=name"):
        index(tmp_path, members)


def test_one_sample_in_two_parts_is_enough_to_refuse_a_shard(tmp_path: Path) -> None:
    members = pairs(16)
    members.append(members.pop(7))  # the text of sample 3
    with pytest.raises(UserDataError, match="the parts of sample 000003 lie apart"):
        index(tmp_path, members)


def test_parts_that_nobody_uses_may_lie_apart(tmp_path: Path) -> None:
    members = [*pairs(16), *((f"{n:06d}.json", b"{}") for n in range(16))]
    assert len(index(tmp_path, members)) == 16


def test_two_whole_samples_of_one_name_are_two_samples(tmp_path: Path) -> None:
    assert len(index(tmp_path, [*pairs(3), *pairs(2)])) == 5


def test_images_whose_names_hold_dots_are_never_lost_silently(tmp_path: Path) -> None:
    members = [
        *pairs(14),
        ("2021.05.01_cat.png", png(3)),
        ("2021.05.01_cat.txt", b"a cat"),
        ("Dr. No.png", png(4)),
        ("Dr. No.txt", b"no"),
    ]
    for _ in range(2):  # the second time from the index that was kept
        with pytest.raises(UserDataError, match=r"^2 images beside the 14 samples would be lost") as raised:
            index(tmp_path, members)
        assert ".05.01_cat.png (1)" in str(raised.value)
        assert "samples: 14" not in str(raised.value)


def test_samples_that_share_what_comes_before_the_first_dot_are_counted_apart(tmp_path: Path) -> None:
    days = [(f"2021.05.{day:02d}.{end}", png(day)) for day in range(1, 6) for end in ("png", "txt")]
    with pytest.raises(UserDataError, match=r"^5 images beside the 14 samples would be lost"):
        index(tmp_path, [*pairs(14), *days])


def test_a_few_hidden_images_are_forgiven_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = index(tmp_path, [*pairs(14), ("a.b.png", png(1))], max_hidden_fraction=0.1)
    assert len(found) == 14
    assert "1 images beside the 14 samples would be lost" in caplog.text
    assert ".b.png" in caplog.text


def test_files_beside_a_sample_are_no_hidden_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [
        member
        for n in range(4)
        for member in (
            (f"{n}.jpg", png(n)),
            (f"{n}.txt", b"text"),
            (f"{n}.mask.png", png(n)),
            (f"{n}.long.txt", b"a long text"),
            (f"{n}.json", b"{}"),
        )
    ]
    with caplog.at_level(logging.INFO):
        assert len(index(tmp_path, members)) == 4
    assert "files that none of them uses: .json (4), .long.txt (4), .mask.png (4)" in caplog.text


def test_images_of_another_extension_are_named_and_can_be_asked_for(tmp_path: Path) -> None:
    members = pairs(16, "input.jpg", "txt")
    with pytest.raises(
        UserDataError, match=r"none of the 16 samples has an image .*\.input\.jpg \(16\).*imageKeys"
    ):
        index(tmp_path, members)
    found = index(tmp_path, members, image_keys=["input.jpg"])
    assert read_segment(found, 5, 6, RetryPolicy()).image(5) == png(5)


def test_a_shard_of_other_extensions_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        UserDataError, match=r"its files are \.input\.jpg \(16\), \.outputs\.txt \(16\); name"
    ):
        index(tmp_path, pairs(16, "input.jpg", "outputs.txt"))


def test_the_order_of_image_keys_decides(tmp_path: Path) -> None:
    members = [("0.jpg", b"j"), ("0.small.jpg", b"s"), ("0.txt", b"t")]
    found = index(tmp_path, members, image_keys=["small.jpg", "jpg"])
    assert read_segment(found, 0, 1, RetryPolicy()).image(0) == b"s"


def test_a_caption_that_no_sample_has_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserDataError, match=r"none of the 16 samples has a \.txt; .*\.caption \(16\)"):
        index(tmp_path, pairs(16, "png", "caption"))


def test_a_sample_without_its_image_says_what_else_is_there(tmp_path: Path) -> None:
    found = index(tmp_path, [*pairs(2), ("9.heic", b"h"), ("9.txt", b"t")])
    with pytest.raises(CorruptSampleError, match=r"has no image; .*\.heic \(1\)"):
        read_segment(found, 2, 3, RetryPolicy()).image(2)


def test_a_sample_cut_in_two_by_the_end_of_a_shard_shows_in_the_message(tmp_path: Path) -> None:
    members = pairs(8)
    shards = [
        str(write_tar(tmp_path / "data" / name, part))
        for name, part in (("0.tar", members[:9]), ("1.tar", members[9:]))
    ]
    with pytest.raises(UserDataError, match=r"hold 9 samples, 1 without an image .* and 1 without \.txt"):
        index_of(shards, 8, tmp_path / "store")


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_are_not_utf_8_can_be_written_in_messages(tmp_path: Path, format_: int) -> None:
    path = tmp_path / "latin.tar"
    members = [("caf\udce9_02.png", png(1)), ("caf\udce9_02.png", png(1)), ("caf\udce9_02.txt", b"a cafe")]
    with tarfile.open(path, "w", format=format_, encoding="utf-8", errors="surrogateescape") as archive:
        for name, _ in members:
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserDataError) as raised:
        index_samples([str(path)], ["txt"], access(tmp_path), FolderStore(tmp_path / "store"))
    assert r"sample caf\xe9_02 has two files .png" in str(raised.value)
    str(raised.value).encode()
