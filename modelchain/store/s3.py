"""A store in S3, or in anything that speaks its protocol.

The server may go away in the middle of anything: every call is repeated for `patience_seconds` while the
store does not answer, a body that ends early is continued where it ended, and a conditional write whose
answer was lost finds out whether it won. A store that has never answered is given up early: then it is
rather the address that is wrong than the server that is down.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.manager import TransferManager
from urllib3.exceptions import HTTPError

from modelchain.errors import ConfigurationError, MissingInputError, ModelChainError
from modelchain.resolved import ResolvedStore
from modelchain.store.base import (
    PATIENCE_SECONDS,
    ConflictError,
    Forbidden,
    NotFound,
    ObjectInfo,
    Store,
    StoreError,
    StoreUnavailable,
    check_key,
)
from modelchain.store.local_files import errors_of, partial_file
from modelchain.store.s3_errors import (
    explain,
    is_missing,
    missing_bucket,
    status_of,
    was_repeated,
    without_credentials,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, ObjectTypeDef, PutObjectRequestTypeDef

log = logging.getLogger(__name__)

ChecksumSetting = Literal["when_supported", "when_required"]
T = TypeVar("T")

PART_BYTES = 16 << 20
CHUNK_BYTES = 1 << 20
TRANSFER_THREADS = 8
FIRST_ANSWER_SECONDS = 15.0
CONFLICT_ATTEMPTS = 6

_conditional_writes: dict[
    tuple[str | None, str], bool
] = {}  # what was found out, for each endpoint and bucket
_conditional_writes_lock = threading.Lock()


class S3Store(Store):
    """Objects below s3://bucket/prefix. The first call makes the client, credentials as boto3 finds them."""

    def __init__(
        self,
        uri: str,
        access: ResolvedStore,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        part_bytes: int = PART_BYTES,
    ) -> None:
        """`part_bytes`: of multipart uploads (S3 wants 5 MiB at least) and of parallel downloads."""
        self.bucket, _, prefix = uri.removeprefix("s3://").rstrip("/").partition("/")
        if not self.bucket or "@" in self.bucket:
            raise ConfigurationError(
                "a store's URI is s3://bucket/prefix, without credentials; give those as AWS_* variables"
            )
        self.uri = uri.rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._access = access
        self._endpoint = (
            access.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        )
        self._patience_seconds = patience_seconds
        self._part_bytes = part_bytes
        self._clients: dict[int, S3Client] = {}
        self._client_lock = threading.Lock()
        self._answered = False
        self._bucket_seen = False

    def get(self, key: str) -> tuple[bytes, str]:
        return self._fetch(key, 0, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            self._require(key)
            return b""
        return self._fetch(key, start, length)[0]

    def head(self, key: str) -> ObjectInfo | None:
        def ask(client: S3Client) -> ObjectInfo | None:
            try:
                found = client.head_object(Bucket=self.bucket, Key=self._key(key))
            except ClientError as error:
                if not is_missing(error):
                    raise
                self._require_bucket(
                    client, key
                )  # the answer to HEAD has no body to say which of both is missing
                return None
            return ObjectInfo(key, found["ContentLength"], found["ETag"], found["LastModified"].timestamp())

        return self._patiently(key, ask)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        parent = prefix.rpartition("/")[0]
        if parent:
            check_key(parent, self.uri)

        def ask(client: S3Client) -> list[ObjectInfo]:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix
            )
            return [self._info(found) for page in pages for found in page.get("Contents", [])]

        # Not every server lists in the order of keys (SeaweedFS puts a/b before a-b); some list folders too.
        listed = self._patiently(prefix, ask)
        yield from sorted((info for info in listed if not info.key.endswith("/")), key=lambda info: info.key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        if not (if_absent or if_match is not None):
            return self._put(key, data)
        if self._access.allow_unconditional_writes and not self.check_conditional_writes():
            found = self.head(key)
            etag = None if found is None else found.etag
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
            max_concurrency=TRANSFER_THREADS,
        )

        def send(client: S3Client) -> None:
            with TransferManager(client, config) as manager:
                manager.upload(str(path), self.bucket, self._key(key)).result()

        self._patiently(key, send)

    def download(self, key: str, path: Path) -> str:
        while True:
            with suppress(_Replaced):
                return self._download(key, path)

    def delete(self, keys: Iterable[str]) -> None:
        names = [self._key(key) for key in keys]
        for first in range(0, len(names), 1000):  # S3's limit of one request
            self._delete(names[first : first + 1000])

    def check_conditional_writes(self) -> bool:
        place = (self._endpoint, self.bucket)
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

        return self._patiently(prefix, abort)

    def _info(self, found: ObjectTypeDef) -> ObjectInfo:
        assert "Key" in found
        assert "Size" in found
        assert "ETag" in found
        assert "LastModified" in found
        key = found["Key"].removeprefix(self._prefix)
        return ObjectInfo(key, found["Size"], found["ETag"], found["LastModified"].timestamp())

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
                return client.put_object(**request)["ETag"]
            except BotoCoreError:
                uncertain = True
                raise
            except ClientError as error:
                status = status_of(error)
                if status == 412 or (status == 404 and if_match is not None and is_missing(error)):
                    self._require_bucket(client, key)
                    etag = self._etag_if_equal(key, data) if uncertain or was_repeated(error) else None
                    if etag is None:
                        raise self._conflict(key) from error
                    return etag
                if status == 409:  # somebody writes it at this moment; asking again tells who won
                    busy += 1
                    if busy < CONFLICT_ATTEMPTS:
                        raise _Busy from error
                    raise self._conflict(key) from error
                uncertain = uncertain or status >= 500
                raise

        return self._patiently(key, send)

    def _etag_if_equal(self, key: str, data: bytes) -> str | None:
        try:
            found, etag = self.get(key)
        except NotFound:
            return None
        return etag if found == data else None

    def _fetch(self, key: str, start: int, length: int | None, etag: str | None = None) -> tuple[bytes, str]:
        """The bytes from `start` (`length` of them, or all that follow) and the etag.

        Raises _Replaced if `etag` is given and the object has another one now.
        """
        data = bytearray()
        seen = etag

        def read(client: S3Client) -> None:
            nonlocal seen
            request: GetObjectRequestTypeDef = {"Bucket": self.bucket, "Key": self._key(key)}
            first = start + len(data)
            if first > 0 or length is not None:
                request["Range"] = (
                    f"bytes={first}-" if length is None else f"bytes={first}-{start + length - 1}"
                )
            if seen is not None:
                request["IfMatch"] = seen
            try:
                answer = client.get_object(**request)
            except ClientError as error:
                if status_of(error) == 416:  # nothing lies at or behind `first`
                    return
                if status_of(error) == 412:
                    raise _Replaced from error
                raise
            if first > 0 and "ContentRange" not in answer:
                raise StoreError(f"{self.uri_of(key)}: the store ignores ranged reads: it can't be used")
            seen = answer["ETag"]
            with closing(answer["Body"]) as body:
                while chunk := body.read(CHUNK_BYTES):
                    data.extend(chunk)

        while True:
            try:
                self._patiently(key, read, progress=lambda: len(data))
            except _Replaced:
                if etag is not None:
                    raise
                data.clear()  # replaced while we read: begin again with what is there now
                seen = None
            else:
                return bytes(data if length is None else data[:length]), seen or ""

    def _download(self, key: str, path: Path) -> str:
        """Fetch the parts side by side, write and hash them in their order."""
        info = self._require(key)
        digest = hashlib.sha256()
        with (
            errors_of(str(path), writing=True),
            partial_file(path.parent) as partial,
            partial.open("wb") as file,
            ThreadPoolExecutor(TRANSFER_THREADS, "modelchain-download") as threads,
        ):
            starts = iter(range(0, info.size, self._part_bytes))
            parts: list[Future[tuple[bytes, str]]] = []
            try:
                while True:
                    while len(parts) < 2 * TRANSFER_THREADS and (start := next(starts, None)) is not None:
                        parts.append(threads.submit(self._fetch, key, start, self._part_bytes, info.etag))
                    if not parts:
                        break
                    data = parts.pop(0).result()[0]
                    digest.update(data)
                    file.write(data)
                size = file.tell()
            finally:
                threads.shutdown(wait=False, cancel_futures=True)
            if size != info.size:
                raise StoreUnavailable(
                    f"{self.uri_of(key)}: {size} bytes came instead of {info.size}; try again"
                )
            file.close()
            partial.replace(path)
        return digest.hexdigest()

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
            self._patiently(first, send)
        except (Forbidden, NotFound, StoreUnavailable):
            raise
        except StoreError:  # servers that do not know DeleteObjects, or want another checksum with it
            self._patiently(first, send_singly)

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

    def _require_bucket(self, client: S3Client, key: str) -> None:
        if self._bucket_seen:
            return
        try:
            client.head_bucket(Bucket=self.bucket)
        except ClientError as error:
            if is_missing(error):
                raise missing_bucket(self.bucket, self.uri_of(key), self._endpoint) from error
            if status_of(error) != 403:  # may read objects, but not ask about the bucket
                raise
        self._bucket_seen = True

    def _conflict(self, key: str) -> ConflictError:
        return ConflictError(f"{self.uri_of(key)}: exists already, or is not the one that was read")

    def _patiently(
        self, key: str, action: Callable[[S3Client], T], *, progress: Callable[[], int] = lambda: 0
    ) -> T:
        """Call `action` until it succeeds, fails for good, or the store has not answered for too long."""
        deadline: float | None = None
        done, wait = progress(), 0.2
        while True:
            try:
                result = action(self._client())
            except _Busy:
                time.sleep(random.uniform(0.01, 0.2))  # noqa: S311
                continue
            except ClientError as error:
                self._answered = self._answered or 0 < status_of(error) < 500
                problem: ModelChainError = explain(error, self.uri_of(key), self.bucket, self._endpoint)
                cause: Exception = error
            except BotoCoreError as error:
                problem, cause = explain(error, self.uri_of(key), self.bucket, self._endpoint), error
            except (HTTPError, ConnectionError, TimeoutError) as error:  # a body that breaks off
                problem, cause = (
                    StoreUnavailable(f"{self.uri_of(key)}: the connection broke off; try again"),
                    error,
                )
            else:
                self._answered = True
                return result
            if not isinstance(problem, StoreUnavailable):
                raise problem from cause
            now = time.monotonic()
            if progress() != done:
                done, deadline, wait = progress(), None, 0.2
            if deadline is None:
                seconds = self._patience_seconds
                deadline = now + (seconds if self._answered else min(seconds, FIRST_ANSWER_SECONDS))
            if now + wait > deadline:
                raise problem from cause
            log.info("%s; trying again in %.1f s", problem, wait)
            time.sleep(wait * random.uniform(0.7, 1.0))  # noqa: S311
            wait = min(wait * 2, 5.0)

    def _client(self) -> S3Client:
        with self._client_lock:
            client = self._clients.get(os.getpid())  # a forked process must not share our connections
            if client is None:
                client = self._clients[os.getpid()] = self._make_client()
            return client

    def _make_client(self) -> S3Client:
        bundle = self._access.ca_bundle
        if bundle is not None and not Path(bundle).is_file():
            raise ConfigurationError(
                f"{bundle}: no such file; it should hold the certificate authority of {self.uri}"
            )
        # Not every server knows checksums in trailers, boto3's default since 1.36. Bytes are guarded on
        # the way all the same: by TLS, or by the signature over the payload.
        checksums: ChecksumSetting | None = None if self._endpoint is None else "when_required"
        config = Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=4 * TRANSFER_THREADS,
            s3={"addressing_style": "auto" if self._endpoint is None else "path"},
            request_checksum_calculation=_unless_set("AWS_REQUEST_CHECKSUM_CALCULATION", checksums),
            response_checksum_validation=_unless_set("AWS_RESPONSE_CHECKSUM_VALIDATION", checksums),
        )
        session = Session()
        try:
            return session.client(
                "s3",
                endpoint_url=self._endpoint,
                region_name=self._access.region or session.region_name or "us-east-1",
                verify=bundle,
                config=config,
            )
        except ValueError as error:  # botocore's way to refuse an endpoint
            shown = without_credentials(self._endpoint or "")
            raise ConfigurationError(
                f"{self.uri}: endpoint {shown!r} is not a URL such as http://minio:9000"
            ) from error


def _unless_set(variable: str, value: ChecksumSetting | None) -> ChecksumSetting | None:
    """`value`, or None (botocore then reads the variable) if the user has decided."""
    return None if variable in os.environ else value


class _Replaced(Exception):  # noqa: N818
    """The object was replaced while it was read."""


class _Busy(Exception):  # noqa: N818
    """Somebody writes the object at this moment: ask again."""
