"""Errors that a person can fix, and the exit codes they end with (sysexits.h where one fits).

0 done; 64..78 permanent: trying again can't help; anything else may be retried from the latest checkpoint.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1  # unforeseen: retried
    USAGE = 64  # the command line or the environment of the trainer is wrong
    DATA = 65  # bad data: the chain file, a shard, weights that do not match
    NO_INPUT = 66  # a shard, weights or bucket that does not exist
    SOFTWARE = 70  # an assertion of ours failed: a defect to report
    CANNOT_CREATE = 73  # the store can't be written (read-only, forbidden)
    IO = 74  # the disk is full
    NO_PERMISSION = 77  # credentials are refused
    CONFIG = 78  # the stage can't be trained as configured (e.g. world size does not divide the batch)
    HELD = 80  # somebody else trains this stage, or runs this chain, right now: come back later
    INTERRUPTED = 130  # SIGINT
    TERMINATED = 143  # SIGTERM: a checkpoint was written


PERMANENT_EXIT_CODES = frozenset(range(64, 79))


def is_permanent(code: int) -> bool:
    """Whether an attempt that ended with `code` must not be tried again."""
    return code in PERMANENT_EXIT_CODES


class ModelChainError(Exception):
    """Something a person can fix. The message is one line: what is wrong, where, what to do.

    `quoted` is what a server has said about it. `str` shows it to whoever asked that server; `public` leaves it out,
    for others: what a server says may have been meant for the one who asked alone.
    """

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str = "", *, quoted: str = "") -> None:
        super().__init__(message)
        self.public = message
        self.quoted = quoted

    def __str__(self) -> str:
        return f"{self.public}: {self.quoted}" if self.quoted else self.public


class UsageError(ModelChainError):
    """The command line, or the environment of the trainer, is wrong."""

    exit_code = ExitCode.USAGE


class UserDataError(ModelChainError):
    """Bad data: a chain file, a shard, weights."""

    exit_code = ExitCode.DATA


class MissingInputError(ModelChainError):
    """A shard, a weights file or a bucket that does not exist."""

    exit_code = ExitCode.NO_INPUT


class ConfigurationError(ModelChainError):
    """The stage can't be trained as it is configured."""

    exit_code = ExitCode.CONFIG


class CannotWriteError(ModelChainError):
    """The store or the folder can't be written: read-only, forbidden."""

    exit_code = ExitCode.CANNOT_CREATE


class DiskFullError(ModelChainError):
    """No space left where something had to be written."""

    exit_code = ExitCode.IO


class PermissionRefusedError(ModelChainError):
    """The store refuses these credentials."""

    exit_code = ExitCode.NO_PERMISSION


class HeldError(ModelChainError):
    """Somebody else holds the lease."""

    exit_code = ExitCode.HELD
