"""Places that data and weights are read from, and that nothing is ever written to."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from modelchain.errors import ConfigurationError
from modelchain.store.base import BOUNDS, NotFound, ObjectInfo, Replaced, Store, StoreUnavailable, too_large
from modelchain.store.local_files import errors_of, partial_file

_CHUNK_BYTES = 8 << 20


class ReadOnlyStore(Store):
    """A store of which only `read` and `head` are particular."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    @abstractmethod
    def read(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`. Fewer only where the object ends. Raises NotFound."""

    def get(self, key: str) -> tuple[bytes, str]:
        most = BOUNDS.object_bytes
        info = self._require(key)
        data = self._part(info, 0, most + 1)
        if len(data) > most:
            raise too_large(self.uri_of(key), most)
        return data, info.etag

    def get_range(self, key: str, start: int, length: int) -> bytes:
        if length == 0:
            self._require(key)
            return b""
        return self.read(key, start, length)

    def download(self, key: str, path: Path) -> str:
        info, digest = self._require(key), hashlib.sha256()
        with errors_of(str(path), writing=True), partial_file(path.parent) as partial:
            with partial.open("wb") as file:
                while file.tell() < info.size:
                    data = self._part(info, file.tell(), min(_CHUNK_BYTES, info.size - file.tell()))
                    if not data:
                        raise StoreUnavailable(
                            f"{self.uri_of(key)}: {file.tell()} bytes came instead of {info.size}; try again"
                        )
                    digest.update(data)
                    file.write(data)
            partial.replace(path)
        return digest.hexdigest()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise ConfigurationError(f"{self.uri_of(prefix)}: can't be listed; name each file")

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:  # noqa: ARG002
        self._refuse()

    def upload(self, key: str, path: Path) -> None:  # noqa: ARG002
        self._refuse()

    def delete(self, keys: Iterable[str]) -> None:  # noqa: ARG002
        self._refuse()

    def check_conditional_writes(self) -> bool:
        self._refuse()

    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:  # noqa: ARG002
        self._refuse()

    def _part(self, info: ObjectInfo, start: int, length: int) -> bytes:
        """Of that version: parts of two are never put together."""
        try:
            return self.get_range_of(info.key, start, length, info.etag)
        except Replaced as error:
            raise StoreUnavailable(
                f"{self.uri_of(info.key)}: was replaced while it was read; try again"
            ) from error

    def _require(self, key: str) -> ObjectInfo:
        info = self.head(key)
        if info is None:
            raise NotFound(f"{self.uri_of(key)}: no such file")
        return info

    def _refuse(self) -> NoReturn:
        raise ConfigurationError(
            f"{self.uri}: data can be read from there, but nothing written; use s3://bucket/prefix, file:///folder "
            "or a path as the store"
        )
