"""Chains that want a pass: each once, one pass of a chain at a time, some of them later."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Key(NamedTuple):
    """A chain, by name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class KeyQueue:
    """A work queue as controllers have it: whatever is added twice before its turn has one turn.

    A key that is added while its pass is under way has another one after it. Used in one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: deque[Key] = deque()
        self._since: dict[Key, float] = {}  # what is in `_ready` or `_again`, wanted since
        self._busy: set[Key] = set()
        self._again: set[Key] = set()  # wanted while busy
        self._idle: dict[Key, None] = {}  # wanted when nothing else is, the longest wanted first
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = itertools.count()
        self._wake = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        """Keys whose turn has come and not begun."""
        return len(self._since)

    @property
    def busy(self) -> int:
        """Passes under way."""
        return len(self._busy)

    def add(self, key: Key) -> None:
        """The key wants a pass now."""
        self._due.pop(key, None)
        self._idle.pop(key, None)
        if key in self._since:
            return
        self._since[key] = self._clock()
        if key in self._busy:
            self._again.add(key)
        else:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """The key wants a pass then, unless it has one before; the earliest of such wishes counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if key in self._since or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._count), key))
        self._wake.set()

    def add_when_idle(self, key: Key, seconds: float) -> None:
        """The key wants a pass once no other does, but after so many seconds in any case."""
        if key not in self._since:
            self._idle[key] = None
            self.add_after(key, seconds)
            self._wake.set()

    def forget(self, key: Key) -> None:
        """The key wants no pass any more; one under way goes on."""
        self._due.pop(key, None)
        self._idle.pop(key, None)
        if self._since.pop(key, None) is not None:
            self._again.discard(key)
            if key in self._ready:
                self._ready.remove(key)

    async def get(self) -> tuple[Key, float] | None:
        """The next key and the seconds that it waited; None once the queue is closed. `done` must follow."""
        while not self._closed:
            self._collect_due()
            if not self._ready:
                self._promote()
            if self._ready:
                key = self._ready.popleft()
                self._busy.add(key)
                self._due.pop(key, None)
                return key, self._clock() - self._since.pop(key)
            self._wake.clear()
            timeout = max(0.0, self._heap[0][0] - self._clock()) if self._heap else None
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except TimeoutError:
                continue
        return None

    def done(self, key: Key) -> None:
        """The key's pass has ended."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self._ready.append(key)
            self._wake.set()
        elif key in self._idle:
            self._wake.set()

    def close(self) -> None:
        """No pass begins any more."""
        self._closed = True
        self._wake.set()

    def _promote(self) -> None:
        if (key := next((key for key in self._idle if key not in self._busy), None)) is not None:
            self.add(key)

    def _collect_due(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                self.add(key)
