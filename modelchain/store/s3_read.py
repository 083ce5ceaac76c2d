"""Reading objects: a body that breaks off is continued, an object replaced meanwhile is never mixed with the old."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from modelchain.store.base import ObjectInfo, Replaced, StoreError, StoreUnavailable, too_large
from modelchain.store.local_files import errors_of, partial_file
from modelchain.store.ranges import parse_content_range
from modelchain.store.s3_connection import Connection
from modelchain.store.s3_errors import status_of
from modelchain.text import one_line

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

CHUNK_BYTES = 1 << 20
THREADS = 8
_STAND_IN = "no-etag-"


def fetch(
    connection: Connection,
    name: str,
    uri: str,
    start: int,
    length: int | None,
    etag: str | None = None,
    *,
    most: int | None = None,
) -> tuple[bytes, str]:
    """The bytes from `start` (`length` of them, or all that follow) and the etag.

    Raises Replaced if `etag` is given and the object has another one now, UserDataError for more than `most` bytes.
    """
    data = bytearray()
    seen = etag

    def read(client: S3Client) -> None:
        nonlocal seen
        if (
            seen is None
        ):  # nothing would tell the rest of this object from that of another: once more from the start
            data.clear()
        request: GetObjectRequestTypeDef = {"Bucket": connection.bucket, "Key": name}
        first = start + len(data)
        if first > 0 or length is not None:
            request["Range"] = f"bytes={first}-" if length is None else f"bytes={first}-{start + length - 1}"
        if seen is not None and not is_stand_in(seen):
            request["IfMatch"] = seen
        try:
            answer = client.get_object(**request)
        except ClientError as error:
            if status_of(error) == 416:  # nothing lies at or behind `first`
                return
            if status_of(error) == 412 and "IfMatch" in request:
                raise Replaced from error
            raise
        if first > 0 and "ContentRange" not in answer:
            raise StoreError(f"{uri}: the store ignores ranged reads: it can't be used")
        said = answer.get("ContentRange") if "Range" in request else None
        found = None if said is None else parse_content_range(said)
        if said is not None and (
            found is None or not found.answers(first, length and start + length - first)
        ):
            raise StoreError(
                f"{uri}: bytes from {first} on were asked for, and the store answers with others: it can't be used",
                quoted=one_line(said)[:200],
            )
        seen = answer.get("ETag") or etag
        with closing(answer["Body"]) as body:
            while chunk := body.read(CHUNK_BYTES):
                data.extend(chunk)
                if length is not None and len(data) > length:
                    break  # the server ignores the range
                if most is not None and len(data) > most:
                    raise too_large(uri, most)
        wanted = None if found is None else found.end
        if wanted is not None and length is not None:
            wanted = min(wanted, start + length)  # the answer may be wider
        if wanted is not None and start + len(data) < wanted:
            raise StoreUnavailable(f"{uri}: the body broke off at byte {start + len(data)}")

    while True:
        try:
            connection.call(uri, read, progress=lambda: len(data))
        except Replaced:
            if etag is not None:
                raise
            data.clear()  # replaced while we read: begin again with what is there now
            seen = None
        else:
            found = bytes(data if length is None else data[:length])
            return found, seen or (content_etag(found) if length is None else "")


def content_etag(data: bytes) -> str:
    """The etag of an object that came without one (S3 does not require it): as S3 makes it of small objects."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def stand_in_etag(size: int, modified: float) -> str:
    """What tells versions of an object apart where a listing or a HEAD comes without an ETag."""
    return f"{_STAND_IN}{size}-{modified:.3f}"


def is_stand_in(etag: str) -> bool:
    """Whether the server does not know this etag."""
    return etag.startswith(_STAND_IN)


def download(
    connection: Connection, name: str, uri: str, info: ObjectInfo, path: Path, *, part_bytes: int
) -> str:
    """Fetch the parts of the object side by side, write and hash them in their order; returns the sha256.

    Raises Replaced if the object is not the one that `info` speaks of any more.
    """
    digest = hashlib.sha256()
    with (
        errors_of(str(path), writing=True),
        partial_file(path.parent) as partial,
        partial.open("wb") as file,
        ThreadPoolExecutor(THREADS, "modelchain-download") as threads,
    ):
        starts = iter(range(0, info.size, part_bytes))
        parts: list[Future[tuple[bytes, str]]] = []
        try:
            while True:
                while len(parts) < 2 * THREADS and (start := next(starts, None)) is not None:
                    parts.append(threads.submit(fetch, connection, name, uri, start, part_bytes, info.etag))
                if not parts:
                    break
                data = parts.pop(0).result()[0]
                digest.update(data)
                file.write(data)
            size = file.tell()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        if size != info.size:
            raise StoreUnavailable(f"{uri}: {size} bytes came instead of {info.size}; try again")
        file.close()
        partial.replace(path)
    return digest.hexdigest()
