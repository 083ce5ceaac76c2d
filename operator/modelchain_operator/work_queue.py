"""The queue of chains to reconcile: each once, one pass of a chain at a time, some after a delay, urgent ones first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable

from modelchain_operator.kubernetes.key import Key

COMPACT_FROM = 64  # stale entries of the heap beyond which it is rebuilt
# A key that is not urgent gives way to urgent ones that are queued up to so long after it.
GIVES_WAY_SECONDS = 30.0


class KeyQueue:
    """A work queue as controllers have it: a key that is added twice before it is taken is taken once.

    A key that is added during its pass is taken again after it. Urgent keys come first, so that a chain whose stage has
    ended does not wait behind the thousands that are queued after a restart; others give way to those that are queued
    up to GIVES_WAY_SECONDS after them, so that nobody who changes chains without end holds up those of others. Used in
    one event loop.

    As https://pkg.go.dev/k8s.io/client-go/util/workqueue
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Key, float] = {}  # when what is in `_urgent`, `_others` or `_again` was added
        self._urgent: dict[Key, None] = {}  # in their order
        self._others: dict[Key, None] = {}
        self._busy: set[Key] = set()  # being processed
        self._again: dict[Key, bool] = {}  # added during its pass; whether urgently
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = itertools.count()
        self._waiting: deque[asyncio.Future[None]] = deque()  # callers that wait in `get`
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        """Keys that are queued, delayed ones left out."""
        return len(self._since)

    @property
    def busy(self) -> int:
        """Passes under way."""
        return len(self._busy)

    def add(self, key: Key, *, urgent: bool = False) -> None:
        """Queue the key; `urgent`: before those that are not."""
        self._due.pop(key, None)
        self._since.setdefault(key, self._clock())
        if key in self._busy:
            self._again[key] = urgent or self._again.get(key, False)
        else:
            self._make_ready(key, urgent=urgent or key in self._urgent)

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue the key after a delay, unless it is queued before; the earliest such time counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if key in self._since or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._count), key))
        self._compact()
        if self._waiting:
            self._set_timer()

    def forget(self, key: Key) -> None:
        """Remove the key; a pass under way goes on."""
        for queued in (self._due, self._since, self._urgent, self._others, self._again):
            queued.pop(key, None)

    async def get(self) -> tuple[Key, float] | None:
        """The next key and the seconds that it waited; None once the queue is closed. `done` must follow."""
        while not self._closed:
            self._collect_due()
            if (key := self._take()) is not None:
                self._wake_next()
                return key, self._clock() - self._since.pop(key)
            self._set_timer()
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_next()  # for the next waiter
                raise
        return None

    def done(self, key: Key) -> None:
        """The key's pass has ended."""
        self._busy.discard(key)
        if (urgent := self._again.pop(key, None)) is not None:
            self._make_ready(key, urgent=urgent)
        else:
            self._wake_next()

    def begin(self) -> None:
        """Start taking keys: the waiting times of those added before count from now on."""
        self._since = dict.fromkeys(self._since, self._clock())

    def close(self) -> None:
        """Give out no more keys."""
        self._closed = True
        while self._waiting:
            _wake(self._waiting.popleft())
        if self._timer is not None:
            self._timer.cancel()

    def _compact(self) -> None:
        """Rebuild the heap once most of its entries are stale: each pass may leave one, and one that is due in a day
        would stay for a day.
        """
        if len(self._heap) > 2 * len(self._due) + COMPACT_FROM:
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    # ---- which key is next

    def _make_ready(self, key: Key, *, urgent: bool) -> None:
        if urgent:
            self._others.pop(key, None)
        (self._urgent if urgent else self._others).setdefault(key)
        self._wake_next()

    def _take(self) -> Key | None:
        """Take the next key, if there is one."""
        urgent, other = next(iter(self._urgent), None), next(iter(self._others), None)
        if urgent is None or (
            other is not None and self._since[other] + GIVES_WAY_SECONDS < self._since[urgent]
        ):
            key, line = other, self._others
        else:
            key, line = urgent, self._urgent
        if key is not None:
            del line[key]
            self._due.pop(key, None)
            self._busy.add(key)
        return key

    def _collect_due(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                self.add(key)

    # ---- waiters

    def _wake_next(self) -> None:
        """Wake a waiter, if there may be a key for it."""
        if not (self._urgent or self._others):
            return
        while self._waiting:
            if _wake(self._waiting.popleft()):
                return

    def _set_timer(self) -> None:
        """Wake a waiter when the next key is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # stale: it was taken before, or is due earlier
        if self._heap:
            wait = max(0.0, self._heap[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._collect_due()
        if self._waiting:
            self._set_timer()


def _wake(waiter: asyncio.Future[None]) -> bool:
    """Wake the waiter. Returns whether it still waited."""
    if waiter.done():
        return False
    waiter.set_result(None)
    return True
