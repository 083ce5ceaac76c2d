"""Whether what answers is an S3 server at all, by each response before botocore reads it.

botocore takes any answer of status 200 for what it asked for, so a sign-in page would pass for an empty listing
or for an object's bytes; and it follows a redirect by asking the same endpoint for the bucket's region, for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from modelchain.errors import ConfigurationError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_LISTINGS = {"ListObjectsV2": b"ListBucketResult", "ListMultipartUploads": b"ListMultipartUploadsResult"}
# Of all services, for handlers of these are called before those of "before-parse.s3.*", where botocore's own is: that
# one makes an error 500, which is retried, of a body that is not XML.
_EVERY_ANSWER = "before-parse.*.*"
_BEGINNING_BYTES = 2048  # of a listing, in which its first element stands
_MOST_TAGS = 100_000  # of an answer: a page of a listing has 1,000 objects, each with a dozen elements
_PAGE = "a page"
_OF_S3 = ("x-amz-request-id", "x-amz-id-2", "x-amz-bucket-region", "etag")


class NotS3Error(ConfigurationError):
    """Something else than an S3 server answers."""


def check_answers(client: S3Client) -> None:
    """Have each answer to `client` checked; its calls then raise NotS3Error."""

    def before_parse(operation_model: Any, response_dict: Mapping[str, Any], **_: object) -> None:
        check_answer(
            operation_model.name,
            int(response_dict["status_code"]),
            {name.lower(): value for name, value in response_dict["headers"].items()},
            response_dict["body"],
        )

    client.meta.events.register_first(_EVERY_ANSWER, before_parse)


def check_answer(operation: str, status: int, headers: Mapping[str, str], body: object) -> None:
    """Raises NotS3Error for a redirect, for a page, for a listing that is none, and for XML that would fill the memory.

    `headers` by their names in lower case; `body` is bytes, or a stream, which is left alone.
    """
    from_s3 = any(name in headers for name in _OF_S3)
    if status in (301, 302, 303, 307, 308) and not from_s3 and not _is_error(body):
        raise NotS3Error(
            "the endpoint redirects to another address; write the address of the S3 server itself as the endpoint",
            quoted=_origin(headers.get("location", "")),
        )
    if isinstance(body, bytes) and _grows(body):
        raise NotS3Error("the endpoint answers with XML as S3 writes none: this is no S3 server")
    what = _foreign(operation, headers, body, from_s3=from_s3)
    # A page that says 404 would pass for an object that is not there, and all of the store for empty.
    if what and (200 <= status < 300 or (status == 404 and what == _PAGE)):
        raise NotS3Error(
            f"the endpoint answers with {what}: this is no S3 server; is it a console's port, or behind a sign-in?"
        )


def _foreign(operation: str, headers: Mapping[str, str], body: object, *, from_s3: bool) -> str:
    """What else than S3's answer it is; empty if it may be that."""
    beginning = body.lstrip()[:_BEGINNING_BYTES] if isinstance(body, bytes) else b""
    typed = headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml"))
    if (typed and not from_s3) or beginning.lower().startswith((b"<!doctype html", b"<html")):
        return _PAGE
    if not isinstance(body, bytes) or b"<Error>" in beginning:  # S3 may say so late, with status 200
        return ""
    if operation in _LISTINGS and b"<" + _LISTINGS[operation] not in beginning:
        return "something else than a listing"
    return "something else than XML" if beginning and not beginning.startswith(b"<") else ""


def _grows(body: bytes) -> bool:
    """Whether a parser may make many times its bytes of it: entities (NUL: written in UTF-16), or many elements."""
    return b"<!ENTITY" in body or b"\0" in body or body.count(b"<") > _MOST_TAGS


def _is_error(body: object) -> bool:
    """Whether it is S3's own way to say something: an <Error> with a code."""
    return isinstance(body, bytes) and b"<Error>" in body and b"<Code>" in body


def _origin(location: str) -> str:
    """Scheme and host of an URL, and no more: what follows them may hold a token."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    shown = f"{parts.scheme}://{host}" if parts.scheme and host else ""
    return shown[:200] if shown.isprintable() else ""
