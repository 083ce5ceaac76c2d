"""Files of a web server, read in ranges (RFC 9110, section 14)."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from modelchain.store.base import Forbidden, NotFound, ObjectInfo, StoreError, StoreUnavailable
from modelchain.store.read_only import ReadOnlyStore

TIMEOUT_SECONDS = 30.0  # without a byte

_BUSY = {408, 425, 429}


class HttpStore(ReadOnlyStore):
    """Files below an http:// or https:// address. Redirects are followed."""

    def read(self, key: str, start: int, length: int) -> bytes:
        try:
            headers, data = self._request(key, start, length)
        except _BehindEnd:
            return b""
        self._check_range(key, headers)
        return data

    def head(self, key: str) -> ObjectInfo | None:
        # A range of one byte instead of HEAD: servers that sign addresses refuse HEAD, and this shows that ranges work.
        try:
            headers, _ = self._request(key, 0, 1)
        except NotFound:
            return None
        except _BehindEnd:
            return ObjectInfo(key, 0, "", 0.0)
        self._check_range(key, headers)
        size = headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdecimal():
            raise StoreError(
                f"{self.uri_of(key)}: the server does not say how large the file is; it can't be used"
            )
        modified = headers.get("Last-Modified", "")
        return ObjectInfo(key, int(size), headers.get("ETag") or modified, _seconds(modified))

    def _check_range(self, key: str, headers: http.client.HTTPMessage) -> None:
        if "Content-Range" not in headers:
            raise StoreError(
                f"{self.uri_of(key)}: the server ignores ranged reads; copy the file to a folder or to S3"
            )

    def _request(self, key: str, start: int, length: int) -> tuple[http.client.HTTPMessage, bytes]:
        uri = self.uri_of(key)
        headers = {
            "User-Agent": "modelchain",
            "Accept-Encoding": "identity",
            "Range": f"bytes={start}-{start + length - 1}",
        }
        try:
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
            raise StoreUnavailable(f"{uri}: the server does not answer ({reason})") from error
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


def _seconds(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return 0.0
