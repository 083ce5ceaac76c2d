"""A store whose requests are counted and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from modelchain.errors import ModelChainError
from modelchain.store import ConflictError, Forbidden, NotFound, ObjectInfo, Store, StoreUnavailable

T = TypeVar("T")

# operation, seconds, kind of error: forbidden, unavailable or other; None: no error
OnAnswer = Callable[[str, float, str | None], None]


class MeasuredStore(Store):
    """Wraps a store, and reports every call to `on_answer`. That something is absent is no error."""

    def __init__(self, store: Store, on_answer: OnAnswer) -> None:
        self.uri = store.uri
        self._store = store
        self._on_answer = on_answer

    def get(self, key: str) -> tuple[bytes, str]:
        return self._measure("get", lambda: self._store.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._measure("get", lambda: self._store.get_range(key, start, length))

    def head(self, key: str) -> ObjectInfo | None:
        return self._measure("head", lambda: self._store.head(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._measure("list", lambda: tuple(self._store.list(prefix)))

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        return self._measure(
            "put", lambda: self._store.put(key, data, if_absent=if_absent, if_match=if_match)
        )

    def upload(self, key: str, path: Path) -> None:
        self._measure("put", lambda: self._store.upload(key, path))

    def download(self, key: str, path: Path) -> str:
        return self._measure("get", lambda: self._store.download(key, path))

    def delete(self, keys: Iterable[str]) -> None:
        self._measure("delete", lambda: self._store.delete(keys))

    def check_conditional_writes(self) -> bool:
        return self._measure("probe", self._store.check_conditional_writes)

    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:
        return self._measure("list", lambda: self._store.abort_stale_uploads(prefix, older_than_seconds))

    def _measure(self, operation: str, action: Callable[[], T]) -> T:
        began = time.perf_counter()
        failed: str | None = "other"
        try:
            answer = action()
            failed = None
        except (NotFound, ConflictError):
            failed = None
            raise
        except Forbidden:
            failed = "forbidden"
            raise
        except StoreUnavailable:
            failed = "unavailable"
            raise
        except ModelChainError:
            raise
        finally:
            self._on_answer(operation, time.perf_counter() - began, failed)
        return answer
