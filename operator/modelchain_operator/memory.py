"""How the C library keeps memory: without these two, a thousand chains cost a fifth more of it for good.

Both do nothing where the C library is not glibc.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8


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
