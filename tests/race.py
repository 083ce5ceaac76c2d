"""Threads that want the same thing at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def race(
    count: int, action: Callable[[int], object], *, loses: type[Exception] | tuple[()] = ()
) -> list[int]:
    """Numbers of the threads whose `action` did not end with the error `loses`; all start at once.

    Any other error of a thread is raised here.
    """
    barrier = threading.Barrier(count)

    def wins(number: int) -> bool:
        barrier.wait()
        try:
            action(number)
        except loses:
            return False
        return True

    with ThreadPoolExecutor(count) as threads:
        return [number for number, won in enumerate(threads.map(wins, range(count))) if won]
