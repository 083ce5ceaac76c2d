"""Files on this machine: whole or not there at all, and what their errors mean to a person."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelchain.errors import CannotWriteError, DiskFullError, ModelChainError
from modelchain.store.base import Forbidden, StoreError, StoreUnavailable

_PARTIAL = re.compile(r"\.partial-[0-9a-f]{16}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}
_NETWORK = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN}


def is_partial(name: str) -> bool:
    """Whether a file of this name is one that a write has not finished (or never will)."""
    return _PARTIAL.fullmatch(name) is not None


@contextmanager
def partial_file(folder: Path) -> Iterator[Path]:
    """A new, empty file in `folder` (made if it is missing) for a write that is to be renamed when it is
    whole.

    Whatever happens, no file of that name is left behind by a living process. Raises OSError.
    """
    path = _create_partial(folder)
    try:
        yield path
    finally:
        with suppress(OSError):  # renamed: nothing to remove
            path.unlink()


@contextmanager
def errors_of(name: str, *, writing: bool) -> Iterator[None]:
    """Turn an OSError inside the block into an error that names `name` and says what to do."""
    try:
        yield
    except OSError as error:
        raise explain(error, name, writing=writing) from error


def explain(error: OSError, name: str, *, writing: bool) -> ModelChainError:
    """The error to show for `error`, which happened when `name` was read or written."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return DiskFullError(f"{name}: can't be written: {reason}; free some space there and start again")
    if error.errno in _NETWORK:
        return StoreUnavailable(f"{name}: the file system does not answer: {reason}")
    if writing and error.errno in _REFUSED:
        return CannotWriteError(
            f"{name}: can't be written: {reason}; make the folder writable or choose another"
        )
    if writing and error.errno in _IN_THE_WAY:
        return CannotWriteError(
            f"{name}: can't be written: {reason}; something of another kind is in its place"
        )
    if error.errno in _REFUSED:
        return Forbidden(f"{name}: can't be read: {reason}; give this user the right to read it")
    return StoreError(f"{name}: can't be {'written' if writing else 'read'}: {reason}")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a power failure, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems can't
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of `path` last through a power failure."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create_partial(folder: Path) -> Path:
    for attempt in range(10):
        path = folder / f".partial-{secrets.token_hex(8)}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileNotFoundError:
            if attempt == 9:
                raise
            _make_folder(folder)  # again if a delete beside us has just removed the empty folder
        else:
            return path
    raise AssertionError("unreachable")


def _make_folder(folder: Path) -> None:
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        with suppress(FileNotFoundError):
            sync_folder(made.parent)
