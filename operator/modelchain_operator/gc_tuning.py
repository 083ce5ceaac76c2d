"""Settings of Python's garbage collector and of glibc's malloc. With the defaults, listings take twice as long to parse
(docs/architecture.md), and a thousand chains keep a fifth more memory.

The settings of malloc do nothing where the C library is not glibc.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_M_ARENA_MAX = -8
_COLLECT_AFTER = 10_000  # new objects; Python's default of 700 is too few where thousands are read at once


def share_heaps() -> None:
    """Let threads share heaps; by default glibc gives each thread its own.
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def give_back() -> None:
    """Return free pages to the system, in a few milliseconds; glibc keeps those that lie between used ones.
    https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def collect_rarely() -> None:
    """Collect less often, and never among what was imported up to now.
    https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
