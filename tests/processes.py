"""Processes that tests wait for, look at, and limit."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 240.0  # for what takes seconds on a machine that has time: only a failure uses it up


def wait_until(
    holds: Callable[[], bool], what: str, *, seconds: float = PATIENCE_SECONDS, pause: float = 0.02
) -> None:
    """Wait until something holds, and look every `pause` seconds, at first more often."""
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        assert waited < seconds, f"waited {seconds} s in vain until {what}"
        time.sleep(min(pause, max(0.02, waited / 10)))


def is_alive(pid: int) -> bool:
    """Whether the process lives (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def parent_of(pid: int) -> int:
    """The process that started it, or has taken it over."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse writes past `size` bytes of any file of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
