"""Members are found where Python's tarfile finds them, and damaged archives are named."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain.errors import UserDataError
from modelchain_trainer.data.tar import Member, is_header, scan

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
URI = "s3://data/shard.tar"


def archive(members: list[tuple[str, bytes]], format_: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def members_of(data: bytes) -> list[Member]:
    return list(scan(lambda start, length: data[start : start + length], len(data), URI))


def expected(data: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join).filter(lambda name: name.strip("./") != "")


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(PATHS, st.binary(max_size=1500)), min_size=1, max_size=6))
def test_members_are_those_that_tarfile_finds(name: str, members: list[tuple[str, bytes]]) -> None:
    try:
        data = archive(members, FORMATS[name])
    except ValueError:  # ustar can't write every long name
        return
    found = members_of(data)
    assert [(m.name.rstrip("/"), m.offset, m.size) for m in found] == expected(data)


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sample_starts_at_its_long_name(format_: int) -> None:
    long = "folder/" + "x" * 300 + ".txt"
    data = archive([("a.txt", b"1"), (long, b"2")], format_)
    first, second = members_of(data)
    assert (second.name, data[second.offset : second.offset + 1]) == (long, b"2")
    assert second.start == 1024  # right after the first member: its extension header belongs to it
    assert second.offset > second.start + 512
    assert is_header(data[second.start : second.start + 512])
    assert first.start == 0


@pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
def test_links_and_devices_are_told_from_files_and_directories_passed_over(format_: int) -> None:
    file = io.BytesIO()
    long = "/".join(["folder" * 10] * 4) if format_ != tarfile.USTAR_FORMAT else "target"
    kinds = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"V"]
    with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
        for kind in kinds:
            member = tarfile.TarInfo(f"{kind.decode()}.txt")
            member.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = long
            tar.addfile(member)
        member = tarfile.TarInfo("a.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert [(member.name, member.special) for member in members_of(file.getvalue())] == [
        ("2.txt", f"a symbolic link to {long}"),
        ("1.txt", f"a hard link to {long}"),
        ("3.txt", "a device"),
        ("6.txt", "a named pipe"),
        ("V.txt", "an entry of type V"),
        ("a.txt", ""),
    ]


def test_sizes_over_eight_gibibytes_are_understood() -> None:
    member = tarfile.TarInfo("big.bin")
    member.size = 9 << 30
    header = member.tobuf(tarfile.GNU_FORMAT)
    size = len(header) + member.size + 1024

    def read(start: int, length: int) -> bytes:
        return (header + bytes(length))[start : start + length] if start < len(header) else bytes(length)

    assert [(m.size, m.offset) for m in scan(read, size, URI)] == [(9 << 30, 512)]


def test_large_bodies_are_not_read() -> None:
    body = bytes(4 << 20)
    data = archive([(f"{number}.bin", body) for number in range(12)])
    read = 0

    def count(start: int, length: int) -> bytes:
        nonlocal read
        read += length
        return data[start : start + length]

    assert len(list(scan(count, len(data), URI))) == 12
    assert read < len(data) / 10


def test_small_members_take_few_reads() -> None:
    data = archive([(f"{number}.txt", b"text") for number in range(8000)])  # 8 MB
    reads = 0

    def count(start: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        return data[start : start + length]

    assert len(list(scan(count, len(data), URI))) == 8000
    assert reads <= 4


@pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
def test_an_archive_cut_short_anywhere_is_refused(format_: int) -> None:
    data = archive([("a.txt", b"x" * 600), ("w" * 90 + "/" + "y" * 80 + ".txt", b"z")], format_)
    end = data.rindex(b"z") + 512 - data.rindex(b"z") % 512  # of the last body
    for size in [1, 100, 511, 512, 700, 1024, 1535, *range(1536, end + 1, 256), end + 100, end + 511]:
        with pytest.raises(UserDataError, match=r"s3://data/shard.tar: was cut short"):
            members_of(data[:size])
    assert len(members_of(data[: end + 512])) == 2  # one end record is enough


@pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("cheap", [False, True], ids=["S3", "disk"])
def test_archives_one_behind_the_other_have_the_members_of_all(format_: int, *, cheap: bool) -> None:
    names = [f"{number:03}.{extension}" for number in range(40) for extension in ("png", "txt")]
    members = [(name, name.encode() * 100) for name in names]
    joined = b"".join(archive(members[first : first + 20], format_) for first in range(0, 80, 20))
    for data in (joined, joined[: joined.index(b"020.png") + 20 * 512] + bytes(512) * 3):
        found = list(scan(lambda at, n, d=data: d[at : at + n], len(data), URI, seeks_are_cheap=cheap))
        with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as tar:
            assert [(m.name, m.offset, m.size) for m in found] == [
                (m.name, m.offset_data, m.size) for m in tar
            ]
        assert all(is_header(data[member.start : member.start + 512]) for member in found)
    assert [member.name for member in members_of(joined)] == names


def test_a_record_of_zeros_between_members_ends_nothing() -> None:
    data = archive([("a.txt", b"1"), ("b.txt", b"2")])
    found = members_of(data[:1024] + bytes(512) + data[1024:])
    assert [(member.name, member.start) for member in found] == [("a.txt", 0), ("b.txt", 1536)]


def test_any_number_of_zeros_may_end_a_file_and_takes_few_reads() -> None:
    data = archive([("a.txt", b"1")])[:1024]
    for zeros in (512, 513, 1024, 10 * 512, 100_000, 4 << 20):
        reads: list[int] = []

        def read(start: int, length: int, whole: bytes = data + bytes(zeros)) -> bytes:
            reads.append(length)  # noqa: B023 - called within this turn
            return whole[start : start + length]

        assert [member.name for member in scan(read, len(data) + zeros, URI)] == ["a.txt"]
        assert len(reads) <= 3


@pytest.mark.parametrize("rest", [b"x", b"garbage" * 200, bytes(5000) + b"x"], ids=["x", "text", "0x"])
def test_what_is_neither_zeros_nor_an_archive_behind_the_end_is_named_with_its_place(rest: bytes) -> None:
    data = archive([("a.txt", b"1")])
    at = len(data) + len(rest.removesuffix(b"x")) // 512 * 512 if rest[:1] != b"g" else len(data)
    with pytest.raises(UserDataError, match=f"header at byte {at} behind the end-of-archive mark; write"):
        members_of(data + rest)


def test_an_archive_that_was_appended_and_cut_short_is_refused() -> None:
    data = archive([("a.txt", b"1" * 3000)])
    for size in (512, 700, 2000, 512 + 3072):
        with pytest.raises(UserDataError, match="was cut short"):
            members_of(data + data[:size])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff" + b"picture" * 200, "is not a tar file;"),
        (b"a,b,c\n" * 500, "is not a tar file;"),
        (gzip.compress(archive([("a.txt", bytes(2000))]), 0, mtime=0), "compressed with gzip"),
    ],
    ids=["empty", "picture", "table", "gzip"],
)
def test_what_is_no_archive_is_named(data: bytes, message: str) -> None:
    with pytest.raises(UserDataError, match=rf"^{URI}: .*{message}"):
        members_of(data)


def test_a_damaged_header_is_named_with_its_place() -> None:
    data = bytearray(archive([("a.txt", b"1"), ("b.txt", b"2")]))
    data[1024 + 3] ^= 1
    with pytest.raises(UserDataError, match="no valid tar header at byte 1024"):
        members_of(bytes(data))


def test_one_changed_bit_anywhere_in_a_header_is_noticed() -> None:
    header = archive([("a.txt", b"1")])[:512]
    for position in range(0, 512, 7):
        changed = bytearray(header)
        changed[position] ^= 4
        if 148 <= position < 156:
            continue  # the checksum's own padding may differ
        assert not is_header(bytes(changed)), position
    assert is_header(header)


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("hole.bin")
    member.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(UserDataError, match="sparse"):
        members_of(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
