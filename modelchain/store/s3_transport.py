"""What botocore has no setting for: how much an answer may hold.

An answer that is no object's body is read into memory before anything looks at it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from botocore.awsrequest import AWSResponse

from modelchain.store.s3_answers import NotS3Error

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Of a listing's page, the largest: 1,000 keys of 1,024 bytes each, all of them escaped, and what is said of each.
ANSWER_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 16


class _Answer(AWSResponse):
    """An answer whose body, unless it is left to a stream, is read up to a bound."""

    _read: bytes | None = None

    @property
    def content(self) -> bytes:
        if self._read is None:
            data = bytearray()
            for chunk in self.raw.stream(_CHUNK_BYTES):
                data += chunk
                if len(data) > ANSWER_BYTES:
                    self.raw.close()
                    raise NotS3Error(
                        f"the endpoint answers with more than {ANSWER_BYTES >> 20} MiB where S3 says less: "
                        "this is no S3 server"
                    )
            self._read = bytes(data)
        return self._read


class _Session:
    """botocore's session of HTTP, with the bound."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def send(self, request: Any) -> AWSResponse:
        request.stream_output = True  # nothing is read yet
        answer = self._session.send(request)
        return _Answer(answer.url, answer.status_code, answer.headers, answer.raw)

    def close(self) -> None:
        self._session.close()


def bound_answers(client: S3Client) -> None:
    """Have the answers to `client` bounded; longer ones raise NotS3Error. (botocore has no public way to do this.)"""
    endpoint: Any = client._endpoint  # noqa: SLF001 # pyright: ignore[reportAttributeAccessIssue]
    endpoint.http_session = _Session(endpoint.http_session)
