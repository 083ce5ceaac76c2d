"""Files of a web server, read in ranges (RFC 9110, section 14)."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from modelchain.proxies import proxy_for
from modelchain.store.base import Forbidden, NotFound, ObjectInfo, Replaced, StoreError, StoreUnavailable
from modelchain.store.ranges import parse_content_range
from modelchain.store.read_only import ReadOnlyStore
from modelchain.text import one_line

TIMEOUT_SECONDS = 30.0  # without a byte

_BUSY = {408, 425, 429}


class HttpStore(ReadOnlyStore):
    """Files below an http:// or https:// address. Redirects are followed."""

    def read(self, key: str, start: int, length: int) -> bytes:
        return self._read(key, start, length, "")

    def get_range_of(self, key: str, start: int, length: int, etag: str) -> bytes:
        return self._read(key, start, length, etag) if length else self.get_range(key, start, length)

    def head(self, key: str) -> ObjectInfo | None:
        # A range of one byte instead of HEAD: servers that sign addresses refuse HEAD, and this shows that ranges work.
        try:
            headers, data = self._request(key, 0, 1)
        except NotFound:
            return None
        except _BehindEnd:
            return ObjectInfo(key, 0, "", 0.0)
        size = self._check_range(key, headers, 0, 1, len(data))
        if size is None:
            raise StoreError(
                f"{self.uri_of(key)}: the server does not say how large the file is; it can't be used"
            )
        return ObjectInfo(key, size, _version(headers, size), _seconds(headers.get("Last-Modified", "")))

    def _read(self, key: str, start: int, length: int, etag: str) -> bytes:
        try:
            headers, data = self._request(key, start, length)
        except _BehindEnd:
            return b""
        size = self._check_range(key, headers, start, length, len(data))
        # Compared here and not asked for (If-Match), which no ETag that is weak at times ever fulfils.
        if etag and _version(headers, size).removeprefix("W/") != etag.removeprefix("W/"):
            raise Replaced
        return data

    def _check_range(
        self, key: str, headers: http.client.HTTPMessage, start: int, length: int, came: int
    ) -> int | None:
        """The size of the file, None where the server does not know it. Raises StoreError where the answer is of
        another range than was asked for, StoreUnavailable where less came than the answer is said to hold.
        """
        said = headers.get("Content-Range")
        if said is None:
            raise StoreError(
                f"{self.uri_of(key)}: the server ignores ranged reads; copy the file to a folder or to S3"
            )
        found = parse_content_range(said)
        if found is None or not found.answers(start, length):
            raise StoreError(
                f"{self.uri_of(key)}: bytes {start}-{start + length - 1} were asked for, and the server answers with "
                "others; copy the file to a folder or to S3",
                quoted=one_line(said)[:200],
            )
        expected = min(length, found.end - start)
        if came < expected:
            raise StoreUnavailable(f"{self.uri_of(key)}: {came} bytes came instead of {expected}")
        return found.size

    def _request(self, key: str, start: int, length: int) -> tuple[http.client.HTTPMessage, bytes]:
        uri = self.uri_of(key)
        headers = {
            "User-Agent": "modelchain",
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{start + length - 1}",
        }
        through = ""
        try:
            if proxy_for(uri):
                through = " through the proxy that the environment names"
            request = urllib.request.Request(quote(uri, safe=":/?#[]@!$&'()*+,;=%~"), headers=headers)  # noqa: S310
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                if answer.status != 206:
                    return answer.headers, b""  # all of the file would follow
                data = answer.read(length + 1)
                if len(data) <= length and answer.length:
                    raise http.client.IncompleteRead(data, answer.length)
                return answer.headers, data[:length]
        except urllib.error.HTTPError as error:
            raise _error(error.code, uri) from error
        except (OSError, http.client.HTTPException) as error:  # urllib.error.URLError is an OSError
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise StoreUnavailable(f"{uri}: the server does not answer{through} ({reason})") from error
        except ValueError as error:
            raise StoreError(f"{uri}: is no address that can be asked ({error})") from error


class _BehindEnd(Exception):  # noqa: N818
    """Nothing lies where the range begins."""


def _error(status: int, uri: str) -> Exception:
    if status in (404, 410):
        return NotFound(f"{uri}: no such file")
    if status == 416:
        return _BehindEnd()
    if status in (401, 403):
        return Forbidden(f"{uri}: the server refuses to give it ({status}); make it public, or copy it to S3")
    if status >= 500 or status in _BUSY:
        return StoreUnavailable(f"{uri}: the server answers {status}")
    return StoreError(f"{uri}: the server answers {status}; check the address")


def _version(headers: http.client.HTTPMessage, size: int | None) -> str:
    """What tells versions of a file apart: the best that the server says of it."""
    return headers.get("ETag") or headers.get("Last-Modified") or f"size-{size}"


def _seconds(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0
