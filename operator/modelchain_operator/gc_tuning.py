"""How Python and the C library keep memory: by default, a thousand chains cost a fifth more of it for good, and half of
the processor time goes into looking for garbage.

What is about the C library does nothing where that is not glibc.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_M_ARENA_MAX = -8
_COLLECT_AFTER = 10_000  # new objects; Python's 700 do not suit who reads thousands at once


def share_heaps() -> None:
    """Let threads share heaps; glibc gives each one of its own, with its own free space.
    https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def give_back() -> None:
    """Return free pages to the system, a few milliseconds' work; glibc keeps those that lie between used ones.
    https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def collect_rarely() -> None:
    """Look for garbage less often, and never among what was imported up to now.
    https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
