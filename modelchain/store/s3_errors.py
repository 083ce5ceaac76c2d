"""What an error of S3 (or of the way there) means to a person. No message ever holds a key or a secret."""

from __future__ import annotations

import re
import ssl
from http.client import HTTPException

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from modelchain.errors import ConfigurationError, DiskFullError, ModelChainError
from modelchain.store.base import (
    ConflictError,
    Forbidden,
    MissingBucket,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from modelchain.store.s3_answers import NotS3Error
from modelchain.store.tls_errors import explain_tls, tls_error
from modelchain.text import one_line
from modelchain.uri import without_credentials

GIVE_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE); in a cluster, store.secretRef "
    "or a service account with rights to the bucket"
)

_CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")  # no server's prose passes for a code
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}
_NEEDS_NO_OBJECT = {"ListObjectsV2", "ListMultipartUploads", "PutObject", "CreateMultipartUpload"}
_CONFLICT = {"PreconditionFailed", "412"}
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidClientTokenId",
}
_REFUSED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden", "UnauthorizedAccess"}
_OTHER_REGION = {
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
}
_FULL = {"XMinioStorageFull", "QuotaExceeded", "InsufficientStorage", "507"}
_BUSY = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "TooManyRequests",
    "OperationAborted",
    "429",
}
_CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
    boto.NoAuthTokenError,
)
_BROKEN_BODY = (
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    boto.ChecksumError,
    boto.FlexibleChecksumError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)
_CONNECTION = (boto.ConnectionError, boto.HTTPClientError, ssl.SSLError)
_MALFORMED = (
    boto.ParamValidationError,
    boto.InvalidEndpointDiscoveryConfigurationError,
    boto.NoRegionError,
    boto.InvalidRegionError,
    boto.UnknownEndpointError,
    boto.InvalidConfigError,
    boto.ConfigParseError,
)


def explain(error: Exception, uri: str, bucket: str, endpoint: str | None) -> ModelChainError | None:
    """The error to show for `error`, which happened on the way to the object at `uri`; None: it is none of S3's.

    Every exception of botocore, urllib3 and ssl has its meaning here, and nowhere else.
    """
    at = f" at {without_credentials(endpoint)}" if endpoint else ""
    if isinstance(error, NotS3Error):
        return NotS3Error(f"{uri}: {error.public}", quoted=error.quoted)
    if isinstance(error, ModelChainError):
        return error
    if isinstance(error, ClientError):
        return _explain_answer(error, uri, bucket, endpoint)
    if (tls := tls_error(error)) is not None:
        wrong = explain_tls(tls, endpoint)
        if wrong is not None:
            return ConfigurationError(f"{uri}: {wrong[0]}", quoted=wrong[1])
    if isinstance(error, _CREDENTIAL_ERRORS):
        return Forbidden(f"{uri}: no usable credentials found; {GIVE_CREDENTIALS}")
    if isinstance(error, _MALFORMED):
        # An answer may have named a region that there can't be: the error's words may be the server's.
        wrong = "the store's address can't be used; correct its bucket, its region and its endpoint"
        return ConfigurationError(f"{uri}: {wrong}", quoted=_one_line(error))
    inner = error.kwargs.get("error") if isinstance(error, boto.HTTPClientError) else None
    if isinstance(inner, ValueError) and not isinstance(inner, HTTPError):
        return ConfigurationError(
            f"{uri}: the key or the address holds a character that no request may have; write it again without"
        )
    if isinstance(inner, Exception) and not isinstance(inner, OSError | HTTPError | HTTPException):
        error = inner  # not of the network: urllib3 could make nothing of the answer
    if isinstance(error, _BROKEN_BODY):
        return StoreUnavailable(f"{uri}: the connection{at} broke off; try again")
    if isinstance(error, boto.ProxyConnectionError):
        return StoreUnavailable(
            f"{uri}: the proxy that the environment names (HTTP_PROXY, HTTPS_PROXY) can't be reached, or lets nothing "
            "through; is it running, and are its user and password right?"
        )
    if isinstance(error, _CONNECTION):
        return StoreUnavailable(f"{uri}: the store{at} does not answer ({_kind(error)}); is it running?")
    if isinstance(
        error,
        BotoCoreError
        | ResponseParserError
        | ArithmeticError
        | LookupError
        | ValueError
        | TypeError
        | RecursionError,
    ):
        return NotS3Error(
            f"{uri}: the answer of the store{at} can't be understood ({type(error).__name__}): is it an S3 server?"
        )
    return None


def code_of(error: ClientError) -> str:
    """The error's code; for an answer without a body (HEAD) its HTTP status as text."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if _CODE.fullmatch(code) else ""


def status_of(error: ClientError) -> int:
    """The HTTP status of the answer, 0 if unknown."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_missing(error: ClientError) -> bool:
    """Whether the answer says that the object (or, to HEAD, the object or the bucket) does not exist."""
    return code_of(error) in _MISSING


def missing_bucket(bucket: str, uri: str, endpoint: str | None) -> MissingBucket:
    """The error for a bucket that does not exist, with what to do."""
    at = f" at {without_credentials(endpoint)}" if endpoint else ""
    return MissingBucket(
        f"{uri}: bucket {bucket!r} does not exist{at}; create it, or correct URI or endpoint"
    )


def _explain_answer(error: ClientError, uri: str, bucket: str, endpoint: str | None) -> ModelChainError:
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return missing_bucket(bucket, uri, endpoint)
    if code in {"", "404", "NotFound"} and status == 404 and error.operation_name in _NEEDS_NO_OBJECT:
        at = f" at {without_credentials(endpoint)}" if endpoint else ""
        return NotS3Error(
            f"{uri}: the endpoint{at} answers 404 where S3 lists and writes: is it an S3 server, and its path right?"
        )
    if code in _MISSING:
        return NotFound(f"{uri}: no such object")
    if code in _CONFLICT:
        return ConflictError(f"{uri}: exists already, or is not the one that was read")
    if code in _BAD_CREDENTIALS:
        return Forbidden(f"{uri}: the store refuses the credentials ({code}); {GIVE_CREDENTIALS}")
    if code == "RequestTimeTooSkewed":
        return Forbidden(f"{uri}: the store refuses the request: this machine's clock is wrong; set it")
    if code in _OTHER_REGION:
        return ConfigurationError(f"{uri}: the bucket is in another region ({code}); set the store's region")
    if code in _FULL or status == 507:
        return DiskFullError(f"{uri}: the store is full ({code}); free some space there and start again")
    if code in _BUSY or status in {408, 429} or (status >= 500 and status != 501):
        return StoreUnavailable(f"{uri}: the store is failing ({code or status}); try again later")
    if code in _REFUSED or status in {401, 403}:
        return Forbidden(
            f"{uri}: access denied; these credentials need to read, write and list here "
            "(without s3:ListBucket, a missing object looks like this too)"
        )
    message = one_line(str(error.response.get("Error", {}).get("Message", "")))
    return StoreError(f"{uri}: the store answers {code or status}", quoted=message[:200])


def _kind(error: Exception) -> str:
    if isinstance(error, boto.ReadTimeoutError | boto.ConnectTimeoutError):
        return "no answer in time"
    if isinstance(error, boto.EndpointConnectionError):
        return "can't connect"
    return type(error).__name__


def _one_line(error: Exception) -> str:
    return one_line(str(error))[:300]
