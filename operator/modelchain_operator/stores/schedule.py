"""Which store is asked when: tasks in a few threads, so that no store holds up another.

All routine requests share one budget a second; what somebody waits for goes before it. A store that does not
answer is tried by one task at a time, more and more rarely; all such stores together get a quarter of the
threads, and with those that were never asked yet one half.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from modelchain.errors import ModelChainError
from modelchain.store import StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

SILENT_SECONDS = 6.0  # a task that takes longer means that its store does not answer now
FAILURES = 3  # in a row, before a store is said not to answer
PROBE_SECONDS = (1.0, 15.0)  # between tasks at a store that does not answer: first, and longest
REQUESTS_OF_A_TASK = 2.0
CLOSE_SECONDS = 5.0
TIDY_SECONDS = 60.0
DEFECT_SECONDS = 60.0  # before a task is done again that has failed by a defect of ours
DEBT_SECONDS = 5.0  # urgent requests hold up routine ones no longer than this


class Task:
    """Something to do at a place, again and again. Every task is of one place and done once at a time."""

    __slots__ = ("again", "busy", "dropped", "due", "place", "queued", "urgent")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.due: float | None = None  # monotonic
        self.queued = False
        self.urgent = False
        self.busy = False
        self.again = False  # asked for while it was being done
        self.dropped = False  # never to be done any more


class Place:
    """A server (or a folder), and whether it answers."""

    __slots__ = (
        "failures",
        "name",
        "probe_at",
        "probe_wait",
        "proven",
        "readable_since",
        "routine",
        "silent",
        "under_way",
        "urgent",
        "users",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.users = 0
        self.silent = False  # it does not answer
        self.readable_since = time.time()  # it has answered without a gap since
        self.proven = False  # the last request was answered
        self.failures = 0  # requests in a row that were not
        self.probe_at = 0.0  # monotonic
        self.probe_wait = PROBE_SECONDS[0]
        self.urgent: deque[Task] = deque()
        self.routine: deque[Task] = deque()
        self.under_way: dict[int, float] = {}  # since, monotonic

    @property
    def failing(self) -> bool:
        """Whether the last it was asked went without an answer."""
        return bool(self.failures) or self.silent

    @property
    def dependable(self) -> bool:
        """Whether it may be asked several things at once."""
        return self.proven and not self.silent


@dataclass
class _Load:
    """What is under way at all places: counted once, then kept, or thousands of places would each count them all."""

    busy: int = 0  # tasks
    doubtful: int = 0  # places with a task that are not known to answer
    failing: int = 0  # those of them that did not answer

    @classmethod
    def of(cls, places: Iterable[Place]) -> _Load:
        load = cls()
        for place in places:
            if place.under_way:
                load.busy += len(place.under_way) - 1
                load.add(place)
        return load

    def add(self, place: Place) -> None:
        """A task begins there; one that is not dependable has no other."""
        self.busy += 1
        if not place.dependable:
            self.doubtful += 1
            self.failing += place.failing


class StoreSchedule:
    """Does tasks when their time has come and there is room. Every method is called in one event loop."""

    def __init__(
        self,
        work: Callable[[Task], Awaitable[float | None]],
        on_silence: Callable[[Place], None],
        *,
        threads: int,
        requests_per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`work` does a task and returns the seconds until it is to be done again (None: when asked for).

        `on_silence` is called when a place has fallen silent, and when it answers again.
        """
        self._work = work
        self._on_silence = on_silence
        self._threads = threads
        self._rate = requests_per_second
        self._clock = clock
        self._places: OrderedDict[str, Place] = OrderedDict()
        self._heap: list[tuple[float, int, Task]] = []
        self._count = itertools.count()
        self._tokens = requests_per_second
        self._tokens_at = self._tidied_at = clock()
        self._wake = asyncio.Event()
        self._closing = False
        self._loop_task: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="store")
        self._under_way: set[asyncio.Future[None]] = set()

    # ---- places and tasks

    def use(self, name: str) -> Place:
        """The place of that name, for one more user."""
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = Place(name)
        place.users += 1
        return place

    def leave(self, place: Place) -> None:
        """A user less."""
        place.users -= 1
        self._tidy(place)

    def soon(self, task: Task, *, urgent: bool = False) -> None:
        """Do it as soon as there is room; `urgent`: before what is routine."""
        if task.dropped:
            return
        if task.busy:
            task.again = task.again or urgent
            return
        task.due = None
        if task.queued and (task.urgent or not urgent):
            return
        if task.queued:
            task.place.routine.remove(task)
        task.queued, task.urgent = True, urgent
        (task.place.urgent if urgent else task.place.routine).append(task)
        self._wake.set()

    def later(self, task: Task, seconds: float) -> None:
        """Do it after that time, more or less: a thousand tasks must not march in step."""
        if task.dropped or task.queued or task.busy:
            return
        task.due = self._clock() + seconds * random.uniform(0.85, 1.15)  # noqa: S311
        heapq.heappush(self._heap, (task.due, next(self._count), task))
        if task.due <= self._heap[0][0]:
            self._wake.set()

    def drop(self, task: Task) -> None:
        """Never do it any more; what is under way goes on."""
        task.dropped, task.due = True, None

    def begin(self, task: Task) -> bool:
        """Take a task that does not run out of the queue, for doing it elsewhere; `end` must follow."""
        if task.dropped or task.busy:
            return False
        if task.queued:
            (task.place.urgent if task.urgent else task.place.routine).remove(task)
        task.queued, task.due, task.busy = False, None, True
        return True

    def end(self, task: Task, seconds: float | None) -> None:
        """The task is done; next time after so many seconds, unless it was asked for meanwhile."""
        task.busy = False
        if task.again:
            task.again = False
            self.soon(task, urgent=True)
        elif seconds is not None:
            self.later(task, seconds)

    async def call(self, place: Place, function: Callable[..., T], *arguments: object) -> T:
        """Ask the place something in a thread; whether it answers is remembered. Raises what `function` does."""
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        except StoreUnavailable:
            self._unanswered(place)
            raise
        except ModelChainError:
            self._answered(place)  # not what was hoped for, but an answer
            raise
        self._answered(place)
        return answer

    # ---- life

    def start(self) -> None:
        """Begin."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="store schedule")

    async def close(self) -> None:
        """End. What is under way gets a few seconds."""
        self._closing = True
        self._wake.set()
        if self._loop_task is not None:  # not cancelled: asyncio.wait_for may lose that (before Python 3.12)
            await self._loop_task
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_SECONDS)
        for future in self._under_way:
            future.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while not self._closing:
            self._wake.clear()
            wait = self._pump()
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue

    # ---- what is done next

    def _pump(self) -> float:
        """Begin whatever may begin now. Returns the seconds until there may be more."""
        now = self._clock()
        self._tokens = min(self._rate, self._tokens + (now - self._tokens_at) * self._rate)
        self._tokens_at = now
        self._collect_due(now)
        self._notice_silence(now)
        wait = min(1.0, self._heap[0][0] - now) if self._heap else 1.0
        load = _Load.of(self._places.values())
        progress = True
        while progress and load.busy < self._threads:
            progress = False
            for name in list(self._places):  # in turn: one that was served goes to the end
                if load.busy >= self._threads:
                    break
                place = self._places[name]
                if not (place.urgent or place.routine):
                    continue
                if not self._has_room(place, load, now):
                    if place.probe_at > now:
                        wait = min(wait, place.probe_at - now)
                    continue
                if not place.urgent and self._tokens < 0:
                    wait = min(wait, -self._tokens / self._rate)
                    continue
                task = (place.urgent or place.routine).popleft()
                task.queued = False
                self._places.move_to_end(name)
                progress = True
                if not task.dropped:
                    load.add(place)
                    self._begin_work(task, now)
        return max(0.005, wait)

    def _collect_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            due, _, task = heapq.heappop(self._heap)
            if task.due == due:
                self.soon(task)
        if now - self._tidied_at > TIDY_SECONDS:  # entries of dropped tasks, and of times that were changed
            self._tidied_at = now
            self._heap = [entry for entry in self._heap if entry[2].due == entry[0]]
            heapq.heapify(self._heap)

    def _has_room(self, place: Place, load: _Load, now: float) -> bool:
        if place.dependable:
            return len(place.under_way) < max(1, self._threads * 3 // 4)
        if place.under_way or now < place.probe_at:
            return False
        if place.failing:
            return load.failing < max(1, self._threads // 4)
        return load.doubtful < max(1, self._threads // 2)

    def _begin_work(self, task: Task, now: float) -> None:
        task.busy = True
        number = next(self._count)
        task.place.under_way[number] = now
        self._tokens = max(self._tokens - REQUESTS_OF_A_TASK, -DEBT_SECONDS * self._rate)

        async def run() -> None:
            seconds: float | None = DEFECT_SECONDS
            try:
                seconds = await self._work(task)
            except Exception:
                logger.exception("%s: reading the store has failed", task.place.name)
            finally:
                task.place.under_way.pop(number, None)
                self.end(task, seconds)
                self._tidy(task.place)
                self._wake.set()

        future = asyncio.ensure_future(run())
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    def _tidy(self, place: Place) -> None:
        if place.users <= 0 and not place.under_way and self._places.get(place.name) is place:
            del self._places[place.name]

    # ---- whether places answer

    def _notice_silence(self, now: float) -> None:
        for place in list(self._places.values()):
            if place.under_way and now - min(place.under_way.values()) > SILENT_SECONDS:
                self._fall_silent(place)

    def _fall_silent(self, place: Place) -> None:
        if place.silent:
            return
        place.silent = True
        logger.warning("%s does not answer; the chains that are kept there wait for it", place.name)
        self._on_silence(place)

    def _unanswered(self, place: Place) -> None:
        place.failures += 1
        place.proven = False
        place.probe_at = self._clock() + place.probe_wait * random.uniform(0.8, 1.2)  # noqa: S311
        place.probe_wait = min(PROBE_SECONDS[1], place.probe_wait * 2)
        if place.failures >= FAILURES:
            self._fall_silent(place)

    def _answered(self, place: Place) -> None:
        place.failures, place.proven = 0, True
        place.probe_at, place.probe_wait = 0.0, PROBE_SECONDS[0]
        if place.silent:
            place.silent, place.readable_since = False, time.time()
            logger.warning("%s answers again", place.name)
            self._on_silence(place)
