"""The interface of a store, and its errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modelchain.errors import ExitCode, ModelChainError, UserDataError

PATIENCE_SECONDS = 30.0  # a server that restarts is back by then; callers with more patience ask again


class StoreError(ModelChainError):
    """Something went wrong with the store; the message names the object's URI."""


class NotFound(StoreError):  # noqa: N818 - the names read well where they are raised
    """The object (or the bucket: the message says which) does not exist."""

    exit_code = ExitCode.NO_INPUT


class MissingBucket(NotFound):
    """The bucket itself does not exist: nothing in it can be called absent, and waiting will not help."""


class Forbidden(StoreError):  # noqa: N818
    """The store refuses these credentials, or the folder is not ours to read. Not the same as absent."""

    exit_code = ExitCode.NO_PERMISSION


class ConflictError(StoreError):
    """A conditional write lost: the object exists already, or is not the one that was read."""


class Replaced(Exception):  # noqa: N818
    """The object is another one than was asked for: its bytes were replaced."""


class StoreUnavailable(StoreError):  # noqa: N818
    """The store does not answer, or answers 5xx, also after retries. This may pass."""


@dataclass(frozen=True)
class Bounds:
    """How much is taken from a store into memory: whoever may write there, or runs it, is not always trusted."""

    object_bytes: int = 256 << 20  # of an object that is read whole
    listed: int = 1_000_000  # objects of one listing


BOUNDS = Bounds()


@dataclass(frozen=True)
class Credentials:
    """Somebody's keys to a store. Nothing of them is ever shown."""

    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing says of an object. `key` is relative to the store's URI."""

    key: str
    size: int  # bytes
    etag: str  # changes whenever the object's bytes are replaced; opaque
    modified: float  # seconds since the epoch, by the store's clock


class Store(ABC):
    """Objects under one URI. Keys are relative, with '/' between parts. Any thread may call any method.

    Every method raises `Forbidden` and `StoreUnavailable` besides what it lists. Writes are whole or not
    there: no reader ever sees part of an object. A full disk raises `modelchain.errors.DiskFullError`, a
    read-only folder `modelchain.errors.CannotWriteError`, a key that leaves the store
    `modelchain.errors.UserDataError`.
    """

    uri: str

    @abstractmethod
    def get(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and its etag. Raises NotFound, and UserDataError for more than `Bounds.object_bytes`."""

    def find(self, key: str) -> tuple[bytes, str] | None:
        """As `get`; None if there is no such object. Raises MissingBucket: then nothing can be called absent."""
        try:
            return self.get(key)
        except MissingBucket:
            raise
        except NotFound:
            return None

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`. Fewer only where the object ends. Raises NotFound."""

    def get_range_of(self, key: str, start: int, length: int, etag: str) -> bytes:  # noqa: ARG002
        """The same, of that version of the object. Raises Replaced where it has another one now; a store that can't
        tell without a request more gives what is there.
        """
        return self.get_range(key, start, length)

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object; None if there is none."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, in the order of their keys. S3: raises UserDataError for more
        than `Bounds.listed`.
        """

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Write a small object; returns its etag.

        Raises ConflictError if `if_absent` and it exists, or if `if_match` is not its etag now (or it is
        gone). A writer whose answer was lost on the way recognises its own success by the bytes: writers that
        race for an object must write different bytes (a token, a nonce) for exactly one of them to win.
        """

    @abstractmethod
    def upload(self, key: str, path: Path) -> None:
        """Write a file of any size (multipart on S3)."""

    @abstractmethod
    def download(self, key: str, path: Path) -> str:
        """Write the object into the file `path`, whole or not at all; returns its sha256 in hex.

        Raises NotFound, and for `path` DiskFullError and CannotWriteError.
        """

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are no error."""

    @abstractmethod
    def check_conditional_writes(self) -> bool:
        """Try whether the store honours if_absent and if_match, with a probe object under .probe/.

        S3 is asked once in a process for each bucket.
        """

    @abstractmethod
    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:
        """Drop unfinished uploads (multipart, temporary files); returns how many."""

    def uri_of(self, key: str) -> str:
        """The object's full URI, for messages."""
        return f"{self.uri.rstrip('/')}/{key}"


def split_uri(uri: str) -> tuple[str, str]:
    """Split `scheme://a/b/c.tar` (or a path) into its parent and its last part: ('scheme://a/b', 'c.tar')."""
    parent, _, name = uri.rpartition("/")
    return (parent or ("/" if uri.startswith("/") else "."), name)


def too_large(uri: str, most: int) -> UserDataError:
    """The error for an object that is larger than is read whole."""
    return UserDataError(f"{uri}: holds more than {most:,} bytes, the most that is read whole")


def check_key(key: str, uri: str) -> str:
    """`key` itself, if it names an object below the store's root. (A manifest that somebody changed may not.)

    Raises UserDataError for an empty or absolute key, and for one with '.', '..' or an empty part.
    """
    if "\0" in key or "\\" in key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise UserDataError(
            f"{uri}: {key!r} does not name an object in the store; names are relative, without '..' and '//'"
        )
    return key
