"""A store in S3, or in anything that speaks its protocol.

The server may go away in the middle of anything: every call is repeated for `patience_seconds` while the
store does not answer, a body that ends early is continued where it ended, and a conditional write whose
answer was lost finds out whether it won. A store that has never answered is given up early: then it is
rather the address that is wrong than the server that is down.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError, PaginationError
from s3transfer.manager import TransferManager

from modelchain.errors import ConfigurationError, MissingInputError, UserDataError
from modelchain.resolved import ResolvedStore
from modelchain.store.base import (
    BOUNDS,
    PATIENCE_SECONDS,
    Bounds,
    ConflictError,
    Credentials,
    Forbidden,
    NotFound,
    ObjectInfo,
    Replaced,
    Store,
    StoreError,
    StoreUnavailable,
    check_key,
)
from modelchain.store.s3_answers import NotS3Error
from modelchain.store.s3_clients import SharedClients
from modelchain.store.s3_connection import Busy, Connection
from modelchain.store.s3_errors import is_missing, status_of
from modelchain.store.s3_read import THREADS, content_etag, download, fetch, stand_in_etag

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        ListObjectsV2RequestTypeDef,
        ObjectTypeDef,
        PutObjectRequestTypeDef,
        UploadPartOutputTypeDef,
    )

PART_BYTES = 16 << 20
CONFLICT_ATTEMPTS = 6

_conditional_writes: dict[tuple[str | None, str], bool] = {}  # found out, by endpoint and bucket
_conditional_writes_lock = threading.Lock()


class _PartByPart:
    """A client that sends a part of an upload again by itself: one that fails does not begin the whole upload anew."""

    def __init__(self, client: S3Client, connection: Connection, uri: str) -> None:
        self._client, self._connection, self._uri = client, connection, uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def upload_part(self, **request: Any) -> UploadPartOutputTypeDef:
        def send(_: S3Client) -> UploadPartOutputTypeDef:
            request["Body"].seek(0)
            return self._client.upload_part(**request)

        return self._connection.call(self._uri, send)


class S3Store(Store):
    """Objects below s3://bucket/prefix. The first call makes the client, credentials as boto3 finds them."""

    def __init__(
        self,
        uri: str,
        access: ResolvedStore,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        part_bytes: int = PART_BYTES,
        credentials: Credentials | None = None,
        clients: SharedClients | None = None,
        bounds: Bounds = BOUNDS,
    ) -> None:
        """`credentials`: instead of those that boto3 finds. `clients`: shared with other stores.

        `part_bytes`: of multipart uploads (S3 wants 5 MiB at least) and of parallel downloads.
        """
        self.bucket, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
        if not self.bucket:
            raise ConfigurationError("a store's URI is s3://bucket/prefix, and this one names no bucket")
        self.uri = uri.rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._access = access
        self._connection = Connection(
            self.bucket,
            access,
            patience_seconds=patience_seconds,
            credentials=credentials,
            clients=clients,
        )
        self._part_bytes = part_bytes
        self._bounds = bounds

    def get(self, key: str) -> tuple[bytes, str]:
        most = self._bounds.object_bytes
        return fetch(self._connection, self._key(key), self.uri_of(key), 0, None, most=most)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            self._require(key)
            return b""
        return fetch(self._connection, self._key(key), self.uri_of(key), start, length)[0]

    def get_range_of(self, key: str, start: int, length: int, etag: str) -> bytes:
        if length == 0 or not etag:
            return self.get_range(key, start, length)
        return fetch(self._connection, self._key(key), self.uri_of(key), start, length, etag)[0]

    def head(self, key: str) -> ObjectInfo | None:
        def ask(client: S3Client) -> ObjectInfo | None:
            try:
                found = client.head_object(Bucket=self.bucket, Key=self._key(key))
            except ClientError as error:
                if not is_missing(error):
                    raise
                self._connection.require_bucket(
                    self.uri_of(key), client
                )  # HEAD does not say which is missing
                return None
            modified = found["LastModified"].timestamp()
            size = found["ContentLength"]
            return ObjectInfo(key, size, found.get("ETag") or stand_in_etag(size, modified), modified)

        return self._connection.call(self.uri_of(key), ask)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        parent = prefix.rpartition("/")[0]
        if parent:
            check_key(parent, self.uri)

        request: ListObjectsV2RequestTypeDef = {"Bucket": self.bucket, "Prefix": self._prefix + prefix}

        def ask(client: S3Client) -> tuple[list[ObjectInfo], str | None]:
            page = client.list_objects_v2(**request)
            following = page.get("NextContinuationToken") if page.get("IsTruncated") else None
            if following is not None and following == request.get("ContinuationToken"):
                raise PaginationError(message="the page that follows a page is that page itself")
            return [self._info(found) for found in page.get("Contents", [])], following

        pages = 1
        listed, following = self._connection.call(self.uri_of(prefix), ask)
        while following is not None:  # page by page: one that fails is asked for again, and not all of them
            pages += 1  # empty ones count too: a server may give them for ever
            if len(listed) + pages > self._bounds.listed:
                raise UserDataError(
                    f"{self.uri_of(prefix)}: more than {self._bounds.listed:,} objects are listed, too many"
                )
            request["ContinuationToken"] = following
            page, following = self._connection.call(self.uri_of(prefix), ask)
            listed += page
        # Not every server lists in the order of keys (SeaweedFS puts a/b before a-b); some list folders too.
        yield from sorted((info for info in listed if not info.key.endswith("/")), key=lambda info: info.key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if not (if_absent or if_match is not None):
            return self._put(key, data)
        if self._access.allow_unconditional_writes and not self.check_conditional_writes():
            found = self.find(key)
            etag = None if found is None else found[1]
            if (if_absent and etag is not None) or (if_match is not None and etag != if_match):
                raise self._conflict(key)
            return self._put(key, data)
        return self._put(key, data, if_absent=if_absent, if_match=if_match)

    def upload(self, key: str, path: Path) -> None:
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file to upload to {self.uri_of(key)}")
        if path.stat().st_size < self._part_bytes:
            self._put(key, path.read_bytes())
            return
        config = TransferConfig(
            multipart_threshold=self._part_bytes,
            multipart_chunksize=self._part_bytes,
            max_concurrency=THREADS,
        )

        def send(client: S3Client) -> None:
            parts = cast("S3Client", _PartByPart(client, self._connection, self.uri_of(key)))
            with TransferManager(parts, config) as manager:
                manager.upload(str(path), self.bucket, self._key(key)).result()

        self._connection.call(self.uri_of(key), send)

    def download(self, key: str, path: Path) -> str:
        while True:
            with suppress(Replaced):
                info = self._require(key)
                return download(
                    self._connection,
                    self._key(key),
                    self.uri_of(key),
                    info,
                    path,
                    part_bytes=self._part_bytes,
                )

    def delete(self, keys: Iterable[str]) -> None:
        names = [self._key(key) for key in keys]
        for first in range(0, len(names), 1000):  # S3's limit of one request
            self._delete(names[first : first + 1000])

    def check_conditional_writes(self) -> bool:
        place = (self._connection.endpoint, self.bucket)
        with _conditional_writes_lock:
            if place not in _conditional_writes:
                _conditional_writes[place] = self._probe_conditional_writes()
            return _conditional_writes[place]

    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:
        def abort(client: S3Client) -> int:
            aborted = 0
            pages = client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix
            )
            for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
                started, name, number = upload.get("Initiated"), upload.get("Key"), upload.get("UploadId")
                if started is None or name is None or number is None:
                    continue
                if time.time() - started.timestamp() > older_than_seconds:
                    client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=number)
                    aborted += 1
            return aborted

        return self._connection.call(self.uri_of(prefix), abort)

    def _info(self, found: ObjectTypeDef) -> ObjectInfo:
        if "Key" not in found or "Size" not in found or "LastModified" not in found:
            raise NotS3Error(
                "the endpoint lists objects without their name, size or time: this is no S3 server"
            )
        key, size, modified = (
            found["Key"].removeprefix(self._prefix),
            found["Size"],
            found["LastModified"].timestamp(),
        )
        return ObjectInfo(key, size, found.get("ETag") or stand_in_etag(size, modified), modified)

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key, self.uri)

    def _put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        # Without a digest, SeaweedFS makes an empty object of a request that breaks off before its body.
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        request: PutObjectRequestTypeDef = {
            "Bucket": self.bucket,
            "Key": self._key(key),
            "Body": data,
            "ContentMD5": md5,
        }
        if if_absent:
            request["IfNoneMatch"] = "*"
        if if_match is not None:
            request["IfMatch"] = if_match
        uncertain = False  # whether a request whose answer we did not get may have written the object
        busy = 0

        def send(client: S3Client) -> str:
            nonlocal uncertain, busy
            try:
                return client.put_object(**request).get("ETag") or content_etag(data)
            except BotoCoreError:
                uncertain = True
                raise
            except ClientError as error:
                status = status_of(error)
                if status == 412 or (status == 404 and if_match is not None and is_missing(error)):
                    self._connection.require_bucket(self.uri_of(key), client)
                    etag = self._etag_if_equal(key, data) if uncertain else None
                    if etag is None:
                        raise self._conflict(key) from error
                    return etag
                if status == 409:  # somebody writes it at this moment; asking again tells who won
                    busy += 1
                    if busy < CONFLICT_ATTEMPTS:
                        raise Busy from error
                    raise self._conflict(key) from error
                uncertain = uncertain or status >= 500
                raise

        return self._connection.call(self.uri_of(key), send)

    def _etag_if_equal(self, key: str, data: bytes) -> str | None:
        try:
            found, etag = self.get(key)
        except NotFound:
            return None
        return etag if found == data else None

    def _delete(self, names: list[str]) -> None:
        def send(client: S3Client) -> None:
            answer = client.delete_objects(
                Bucket=self.bucket, Delete={"Objects": [{"Key": name} for name in names], "Quiet": True}
            )
            for problem in answer.get("Errors", []):
                code = problem.get("Code", "")
                if code not in {"NoSuchKey", "404"}:
                    name = problem.get("Key", "").removeprefix(self._prefix)
                    raise ClientError(
                        {"Error": {"Code": code, "Message": f"deleting {name}"}}, "DeleteObjects"
                    )

        def send_singly(client: S3Client) -> None:
            for name in names:
                client.delete_object(Bucket=self.bucket, Key=name)

        if not names:
            return
        first = names[0].removeprefix(self._prefix)
        try:
            self._connection.call(self.uri_of(first), send)
        except (Forbidden, NotFound, StoreUnavailable):
            raise
        except StoreError:  # servers that do not know DeleteObjects, or want another checksum with it
            self._connection.call(self.uri_of(first), send_singly)

    def _probe_conditional_writes(self) -> bool:
        key = f".probe/{secrets.token_hex(8)}"
        written = False
        try:
            etag = self._put(key, b"1", if_absent=True)
            written = True
            with suppress(ConflictError):
                self._put(key, b"2", if_absent=True)
                return False
            with suppress(ConflictError):
                self._put(key, b"3", if_match='"00000000000000000000000000000000"')
                return False
            self._put(key, b"4", if_match=etag)
        except (Forbidden, NotFound, StoreUnavailable):
            raise
        except StoreError:  # e.g. NotImplemented: it does not know the headers
            return False
        finally:
            if written:
                self.delete([key])
        return True

    def _require(self, key: str) -> ObjectInfo:
        info = self.head(key)
        if info is None:
            raise NotFound(f"{self.uri_of(key)}: no such object")
        return info

    def _conflict(self, key: str) -> ConflictError:
        return ConflictError(f"{self.uri_of(key)}: exists already, or is not the one that was read")
