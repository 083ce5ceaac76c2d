"""A store in a folder: local, or on a network file system that several machines mount.

An object is a file; its etag is its modification time and size. This store gives each file it writes a time
of its own, later than that of the file it replaces, so an etag never comes back. Nothing is written in
place: bytes go into a hidden `.partial-*` file beside the target, reach the disk, and get their name in one
step. That step happens under a lock (flock on `.modelchain.lock` in the root), so that nobody comes between
comparing an etag and replacing the file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from modelchain.errors import MissingInputError, UserDataError
from modelchain.store.base import (
    BOUNDS,
    Bounds,
    ConflictError,
    NotFound,
    ObjectInfo,
    Replaced,
    Store,
    StoreError,
    StoreUnavailable,
    check_key,
    too_large,
)
from modelchain.store.local_files import (
    errors_of,
    is_partial,
    partial_file,
    sync_file,
    sync_folder,
)

CHUNK_BYTES = 1 << 20
LOCK = ".modelchain.lock"
LOCK_SECONDS = 60.0  # the lock is held for one rename; a holder that takes this long is stopped or gone

_NO_SUCH_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_SUCH_LINK = {*_NO_SUCH_LOCK, errno.EPERM, errno.EMLINK}


class FolderStore(Store):
    """Objects as files below `root`, which is made by the first write."""

    def __init__(
        self, root: Path, *, allow_unconditional_writes: bool = False, bounds: Bounds = BOUNDS
    ) -> None:
        """`allow_unconditional_writes`: go on where the file system has no locks (risk: see StoreSpec)."""
        self.root = root.absolute()
        self.uri = f"file://{self.root}"
        self._allow_unconditional_writes = allow_unconditional_writes
        self._bounds = bounds

    def get(self, key: str) -> tuple[bytes, str]:
        with self._reading(key), self._path(key).open("rb") as file:
            if os.fstat(file.fileno()).st_size > self._bounds.object_bytes:
                raise too_large(self.uri_of(key), self._bounds.object_bytes)
            return file.read(), _etag(os.fstat(file.fileno()))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self._reading(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def get_range_of(self, key: str, start: int, length: int, etag: str) -> bytes:
        data = self.get_range(key, start, length)
        found = self.head(key)  # after the bytes: a file that is written in place has changed by then
        if found is not None and etag and found.etag != etag:
            raise Replaced
        return data

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._reading(key):
                status = self._path(key).stat()
        except NotFound:
            return None
        return None if not _is_file(status) else _info(key, status)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for key, status in self._walk(prefix):
            name = key.rpartition("/")[2]
            if not is_partial(name) and name != LOCK:
                yield _info(key, status)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        target = self._path(key)
        with self._writing(key), partial_file(target.parent) as partial:
            partial.write_bytes(data)
            sync_file(partial)
            return self._publish(key, partial, target, if_absent=if_absent, if_match=if_match)

    def upload(self, key: str, path: Path) -> None:
        target = self._path(key)
        if not path.is_file():
            raise MissingInputError(f"{path}: no such file to upload to {self.uri_of(key)}")
        with self._writing(key), partial_file(target.parent) as partial:
            shutil.copyfile(path, partial)
            sync_file(partial)
            self._publish(key, partial, target, if_absent=False, if_match=None)

    def download(self, key: str, path: Path) -> str:
        source, digest = self._path(key), hashlib.sha256()
        with (
            self._reading(key),
            source.open("rb") as file,
            errors_of(str(path), writing=True),
            partial_file(path.parent) as partial,
        ):
            with partial.open("wb") as copy:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    copy.write(chunk)
            partial.replace(path)
        return digest.hexdigest()

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            with self._writing(key):
                try:
                    with self._lock(key):
                        path.unlink()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                self._remove_empty_folders(path.parent)

    def check_conditional_writes(self) -> bool:
        key = f".probe/{secrets.token_hex(8)}"
        try:
            self.put(key, b"2", if_match=self.put(key, b"1", if_absent=True))
        except _NoLocksError:
            return False
        else:
            return True
        finally:
            self.delete([key])

    def abort_stale_uploads(self, prefix: str, older_than_seconds: float) -> int:
        removed = 0
        for key, status in self._walk(prefix):
            if is_partial(key.rpartition("/")[2]) and time.time() - status.st_mtime > older_than_seconds:
                with self._writing(key), suppress(FileNotFoundError):
                    path = self.root / key
                    path.unlink()
                    removed += 1
                    self._remove_empty_folders(path.parent)
        return removed

    def _path(self, key: str) -> Path:
        name = check_key(key, self.uri).rpartition("/")[2]
        if is_partial(name) or name == LOCK:
            raise UserDataError(f"{self.uri_of(key)}: this name is kept for the store's own use")
        return self.root / key

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        with errors_of(self.uri_of(key), writing=False):
            try:
                yield
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NotFound(f"{self.uri_of(key)}: no such file") from error

    def _writing(self, key: str) -> AbstractContextManager[None]:
        return errors_of(self.uri_of(key), writing=True)

    def _publish(
        self, key: str, partial: Path, target: Path, *, if_absent: bool, if_match: str | None
    ) -> str:
        """Give the finished `partial` its name, if the condition holds. Returns its etag."""
        with self._lock(key, needed=if_absent or if_match is not None):
            try:
                old: os.stat_result | None = target.stat()
            except FileNotFoundError:
                old = None
            if if_absent and old is not None:
                raise ConflictError(f"{self.uri_of(key)}: exists already")
            if if_match is not None and (old is None or _etag(old) != if_match):
                raise ConflictError(
                    f"{self.uri_of(key)}: is not the one that was read: somebody else wrote it"
                )
            etag = _stamp(partial, later_than=None if old is None else old.st_mtime_ns)
            if if_absent:
                self._link(key, partial, target)
            else:
                partial.replace(target)
        sync_folder(target.parent)
        return etag

    def _link(self, key: str, partial: Path, target: Path) -> None:
        """Name `partial` `target` unless that exists; right also where locks do not hold (NFS `nolock`)."""
        try:
            os.link(partial, target)
        except FileExistsError:
            # The answer to our own link may get lost on NFS; the repeated request then finds our file there.
            if partial.stat().st_nlink != 2:
                raise ConflictError(f"{self.uri_of(key)}: exists already") from None
        except OSError as error:
            if error.errno not in _NO_SUCH_LINK:
                raise
            partial.replace(target)  # a file system without links: the lock alone protects us

    @contextmanager
    def _lock(self, key: str, *, needed: bool = False) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: flock tells threads apart by their descriptors.
        descriptor = os.open(self.root / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            try:
                self._wait_for_lock(descriptor)
            except OSError as error:
                if error.errno not in _NO_SUCH_LOCK:
                    raise
                if needed and not self._allow_unconditional_writes:
                    raise _NoLocksError(
                        f"{self.uri_of(key)}: the file system has no locks; mount it with locks (flock), "
                        "choose another store, or set store.allowUnconditionalWrites"
                    ) from error
            yield
        finally:
            os.close(descriptor)

    def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"{self.root / LOCK}: another process has held this lock for {LOCK_SECONDS:.0f} s; "
                        "is a process stopped (SIGSTOP) or a machine hung?"
                    ) from None
                time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311
            else:
                return

    def _walk(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every file whose key starts with `prefix`, in the order of keys, unfinished ones included."""
        parent = prefix.rpartition("/")[0]
        folder = self._path(parent) if parent else self.root
        with errors_of(self.uri_of(prefix), writing=False):
            yield from _walk(folder, f"{parent}/" if parent else "", prefix, ())

    def _remove_empty_folders(self, folder: Path) -> None:
        with suppress(OSError):  # not empty
            while folder != self.root:
                folder.rmdir()
                folder = folder.parent


class _NoLocksError(StoreError):
    """The file system has no locks."""


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=status.st_size, etag=_etag(status), modified=status.st_mtime)


def _is_file(status: os.stat_result) -> bool:
    return (status.st_mode & 0o170000) == 0o100000


def _stamp(path: Path, *, later_than: int | None) -> str:
    """Give `path` a modification time of its own, later than that of the file it replaces. The etag."""
    stamp = time.time_ns()
    os.utime(path, ns=(stamp, stamp))
    status = path.stat()
    if later_than is not None and status.st_mtime_ns <= later_than:  # coarse times, or a clock set back only
        stamp = later_than + 2_000_000_000
        os.utime(path, ns=(stamp, stamp))
        status = path.stat()
    return _etag(status)


def _walk(
    folder: Path, base: str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result]]:
    """`above`: device and inode of the folders on the way, against links that lead back into one of them."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            # A folder sorts as its name with the '/': 'a-b' stands before 'a/b', as in a listing of S3.
            found = [(entry.name + ("/" if entry.is_dir() else ""), entry) for entry in entries]
            found.sort(key=lambda pair: pair[0])
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for name, entry in found:
        key = base + name
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(Path(entry.path), key, prefix, (*above, identity))
        elif key.startswith(prefix):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # deleted while we looked, or a link to nowhere
            if _is_file(status):
                yield key, status
