"""Files of whatever fsspec knows: gs:// with gcsfs, az:// with adlfs, hf:// with huggingface_hub."""

from __future__ import annotations

from typing import Any

from modelchain.errors import ConfigurationError, ModelChainError
from modelchain.store.base import Forbidden, NotFound, ObjectInfo, StoreUnavailable
from modelchain.store.read_only import ReadOnlyStore

_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "sha256", "blob_id", "generation", "mtime", "created")


class FsspecStore(ReadOnlyStore):
    """Files below a URI of another scheme, with the credentials that its library finds by itself."""

    def __init__(self, uri: str) -> None:
        """Raises ConfigurationError where the package that knows the scheme is not installed."""
        super().__init__(uri)
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(self.uri)
        except ImportError as error:
            raise ConfigurationError(f"{uri}: {error}; add the package to the trainer's image") from error
        except Exception as error:
            raise _translated(error, uri) from error

    def read(self, key: str, start: int, length: int) -> bytes:
        try:
            return self._files.cat_file(self._path(key), start=start, end=start + length)
        except Exception as error:
            raise _translated(error, self.uri_of(key)) from error

    def head(self, key: str) -> ObjectInfo | None:
        try:
            self._files.invalidate_cache()
            info: dict[str, Any] = self._files.info(self._path(key))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _translated(error, self.uri_of(key)) from error
        version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
        return ObjectInfo(key, int(info.get("size") or 0), version, 0.0)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"


def _translated(error: Exception, uri: str) -> ModelChainError:
    """Each library has errors of its own: what is not known to be permanent may pass."""
    if isinstance(error, ModelChainError):
        return error
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{uri}: no such file")
    if isinstance(error, PermissionError):
        return Forbidden(f"{uri}: can't be read: {error}; give the trainer's identity the right to read it")
    if isinstance(error, ValueError | TypeError):
        return ConfigurationError(f"{uri}: can't be opened: {error}")
    return StoreUnavailable(f"{uri}: can't be read now: {type(error).__name__}: {error}")
