"""Where the members of a tar file lie, found by reading little more than its headers.

Understands ustar, GNU and PAX archives (POSIX.1-2017, "pax", and the GNU tar manual, "Basic Tar Format").
Stricter than tar itself in two things: a file without the end-of-archive mark was cut short, and is refused, and the
mark is no end before that of the file. What lies behind it is read as `tar --ignore-zeros` does, another archive that
somebody appended with `cat` for instance; anything but zeros and archives is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from modelchain.errors import UserDataError
from modelchain.store import StoreError

RECORD = 512  # bytes of a header; bodies are padded to whole records

_ZEROS = bytes(RECORD)
_FIRST_READ = 1 << 20
_SMALLEST_READ = 1 << 16
_LARGEST_READ = 8 << 20
# Bodies larger than this are skipped. A request to S3 takes as long as some MiB of its answer.
_WORTH_SKIPPING = 1 << 20
_FIRST_READ_ON_DISK = 1 << 12
_WORTH_SKIPPING_ON_DISK = 1 << 14
_LONGEST_EXTENSION = 1 << 20  # bytes of a long name or of PAX records

_REGULAR = b"07\0"
_LINKS_AND_DEVICES = b"12346"  # no body, whatever their size field says
_HARD_LINK, _SYMBOLIC_LINK, _DIRECTORY = b"1", b"2", b"5"
_OTHERS = {b"3": "a device", b"4": "a device", b"6": "a named pipe"}
_GNU_LONG_NAME, _GNU_LONG_LINK = b"L", b"K"
_PAX, _PAX_GLOBAL = b"x", b"g"

ReadRange = Callable[[int, int], bytes]


class Member(NamedTuple):
    """A file in the archive; all in bytes from the archive's beginning."""

    name: str  # bytes that are not UTF-8 stand as \xNN, so that it can be written wherever text can
    start: int  # of its first header, a PAX or long-name header included
    offset: int  # of its body
    size: int  # of its body
    archive: int = 0  # number of the archive it is of, where zeros stand between several
    special: str = ""  # what it is, where it is no regular file and so has no body: `a hard link to 0.png`


def scan(read: ReadRange, size: int, uri: str, *, seeks_are_cheap: bool = False) -> Iterator[Member]:
    """The files of the archive of `size` bytes, in order: all but directories.

    `read(start, length)` gives bytes of the archive; it is called with large ranges that skip large bodies, and with
    little more than the headers where `seeks_are_cheap`, as on a disk.
    Records of zeros between members are passed over, and must be the last thing in the file. Raises UserDataError,
    with `uri` in its message, where the archive is not one, is damaged or was cut short, StoreError where less is read
    than `size` says.
    """
    if size == 0:
        raise UserDataError(f"{uri}: is empty (0 bytes); write the shard again or take it out of the list")
    window = _Window(read, size, uri, seeks_are_cheap=seeks_are_cheap)
    pax_for_all: dict[str, str] = {}
    position: int | None = 0
    end, archive = 0, 0
    while (position := _next_header(window, position, size, uri)) is not None:
        start = position
        archive += start > end
        pax: dict[str, str] = {}
        long_name: str | None = None
        long_link: str | None = None
        while True:
            header = window.take(position, RECORD)
            _check(header, position, uri)
            kind = header[156:157]
            length = _number(header[124:136], position, uri)
            position += RECORD
            if kind not in (_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK):
                break
            if length > _LONGEST_EXTENSION:
                raise _damaged(uri, position)
            body = window.take(position, length)
            position += _padded(length)
            if kind == _PAX:
                pax = _pax_records(body, position, uri)
            elif kind == _PAX_GLOBAL:
                pax_for_all |= _pax_records(body, position, uri)
            elif kind == _GNU_LONG_NAME:
                long_name = _text(body)
            else:
                long_link = _text(body)
        pax = pax_for_all | pax
        if kind == b"S" or any(keyword.startswith("GNU.sparse") for keyword in pax):
            raise UserDataError(
                f"{uri}: holds a sparse file at byte {start}; write the shard without --sparse"
            )
        if "size" in pax:
            if not pax["size"].isdecimal():
                raise _damaged(uri, start)
            length = int(pax["size"])
        if kind in _LINKS_AND_DEVICES:
            length = 0
        if position + length > size:
            raise _cut_short(uri, size)
        name = pax.get("path") or long_name or _short_name(header)
        if kind in _REGULAR:
            yield Member(name, start, position, length, archive)
        elif kind != _DIRECTORY:
            target = pax.get("linkpath") or long_link or _text(header[157:257])
            yield Member(name, start, position, 0, archive, _special(kind, target))
        position = end = position + _padded(length)


def _next_header(window: _Window, position: int, size: int, uri: str) -> int | None:
    """Where the next member begins, behind any records of zeros; None where these are the last in the file."""
    first = position
    while (record := window.take(position, RECORD)) == _ZEROS:
        position += RECORD
        if size - position < RECORD:
            if window.take(position, size - position).strip(b"\0"):
                raise _damaged(uri, position, " behind the end-of-archive mark")
            return None
    if position > first and not is_header(record):
        raise _damaged(uri, position, " behind the end-of-archive mark")
    return position


class _Window:
    """The part of the archive in memory. Reads grow while nothing is skipped, and shrink where bodies are large."""

    def __init__(self, read: ReadRange, size: int, uri: str, *, seeks_are_cheap: bool) -> None:
        self._read, self._size, self._uri = read, size, uri
        self._next_read = _FIRST_READ_ON_DISK if seeks_are_cheap else _FIRST_READ
        self._smallest_read = _FIRST_READ_ON_DISK if seeks_are_cheap else _SMALLEST_READ
        self._worth_skipping = _WORTH_SKIPPING_ON_DISK if seeks_are_cheap else _WORTH_SKIPPING
        self._bytes = b""
        self._begin = 0

    def take(self, start: int, length: int) -> bytes:
        if start + length > self._size:
            raise _cut_short(self._uri, self._size)
        if start + length > self._begin + len(self._bytes):
            self._advance(start, length)
        return self._bytes[start - self._begin : start - self._begin + length]

    def _advance(self, start: int, length: int) -> None:
        if self._bytes and start - (self._begin + len(self._bytes)) <= self._worth_skipping:
            self._next_read = min(self._next_read * 2, _LARGEST_READ)
        elif self._bytes:
            self._next_read = max(self._next_read // 4, self._smallest_read)
        wanted = min(max(self._next_read, length), self._size - start)
        self._begin = start
        self._bytes = self._read(start, wanted)
        if len(self._bytes) < wanted:
            raise StoreError(  # no UserDataError: a later attempt may find it whole
                f"{self._uri}: became shorter while it was read; let nothing write to the shards"
            )


def is_header(record: bytes) -> bool:
    """Whether 512 bytes are a tar header: whether their checksum is right."""
    field = record[148:156].partition(b"\0")[0].strip()
    if len(record) != RECORD or not field.isdigit() or b"8" in field or b"9" in field:
        return False
    # The checksum is the sum of all bytes, its own eight counted as spaces. zlib.adler32 has 1 + the sum of
    # the bytes, modulo 65521, in its low half, and is many times faster than summing in Python.
    total = (zlib.adler32(record) & 0xFFFF) - 1 - sum(record[148:156]) + 8 * ord(" ")
    return (total - int(field, 8)) % 65521 == 0


def _check(header: bytes, position: int, uri: str) -> None:
    if is_header(header):
        return
    if position > 0:
        raise _damaged(uri, position)
    kind = " but compressed with gzip: give it uncompressed" if header[:2] == b"\x1f\x8b" else ""
    raise UserDataError(f"{uri}: is not a tar file{kind}; webdataset shards are plain tar files")


def _special(kind: bytes, target: str) -> str:
    if kind in (_HARD_LINK, _SYMBOLIC_LINK):
        return f"a {'hard' if kind == _HARD_LINK else 'symbolic'} link to {target}"
    return _OTHERS.get(kind, f"an entry of type {_decoded(kind)}")


def _number(field: bytes, position: int, uri: str) -> int:
    if field[0] == 0x80:  # GNU's binary form of large sizes
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _damaged(uri, position)
    return int(digits, 8)


def _short_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU keeps other things there
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return _decoded(field.partition(b"\0")[0])


def _decoded(name: bytes) -> str:
    """A name that JSON, logs and terminals take, whatever its bytes are."""
    return name.decode("utf-8", "backslashreplace")


def _pax_records(body: bytes, position: int, uri: str) -> dict[str, str]:
    """`LENGTH KEYWORD=VALUE\\n`, LENGTH counting the whole record."""
    records: dict[str, str] = {}
    while body.strip(b"\0"):
        digits, _, _ = body.partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = body[len(digits) + 1 : length].partition(b"=")
        if not len(digits) < length <= len(body) or not equals or not value.endswith(b"\n"):
            raise _damaged(uri, position)
        records[_decoded(keyword)] = _decoded(value[:-1])
        body = body[length:]
    return records


def _padded(length: int) -> int:
    return -(-length // RECORD) * RECORD


def _damaged(uri: str, position: int, where: str = "") -> UserDataError:
    return UserDataError(
        f"{uri}: is damaged: no valid tar header at byte {position}{where}; write the shard again"
    )


def _cut_short(uri: str, size: int) -> UserDataError:
    return UserDataError(
        f"{uri}: was cut short: it ends at byte {size} without the end-of-archive mark; copy it again"
    )
