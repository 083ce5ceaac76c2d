"""When each store is read: tasks in a few threads, so that no store holds up another.

All routine tasks share one budget of requests per second; urgent ones go first. A store that does not answer is tried
by one task at a time, with growing intervals; all such stores together get a quarter of the threads, and with those
that were never read yet one half. One that answers has several tasks at once, as long as a quarter of the threads is
left for others; what takes longer than CALL_SECONDS is cut, and counts as no answer.

Namespaces take turns, at one store and among all, and each may start a task only while it has fewer of them under way
than threads are free: alone it gets half of them, so that no namespace holds up another one, whatever its stores do.
(The same is known of shared buffers as dynamic thresholds: Choudhury and Hahne, IEEE/ACM Trans. Networking 6(2), 1998.)
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TypeVar

from modelchain.clock import steady
from modelchain.errors import ModelChainError
from modelchain.store import StoreUnavailable
from modelchain.store.s3_transport import TimeLimit
from modelchain_operator.stores.access import EndpointRefused

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNRESPONSIVE_SECONDS = 6.0  # a task that takes longer means that its store is unresponsive
# All requests of a call together: a server that drips keeps every time-out per read from passing.
CALL_SECONDS = 20.0
MEASURING_SECONDS = 300.0  # where they are the evaluations of all runs, segment by segment
FAILURES = 3  # in a row, before a store counts as unresponsive
PROBE_SECONDS = (1.0, 15.0)  # between tasks at an unresponsive store: first, and longest
REQUESTS_OF_A_TASK = 2.0
CLOSE_SECONDS = 5.0
TIDY_SECONDS = 60.0
DISPATCH_RETRY_SECONDS = 1.0  # after an unforeseen error of the schedule itself
DEFECT_SECONDS = 60.0  # before a task runs again that an unforeseen error has ended
DEBT_SECONDS = 5.0  # for which urgent requests hold up routine ones at most


class Task:
    """Something to do at an endpoint, again and again; it never runs twice at once."""

    __slots__ = (
        "busy",
        "dropped",
        "due",
        "endpoint",
        "namespace",
        "queued",
        "rerun",
        "urgent",
    )

    def __init__(self, endpoint: StoreEndpoint, namespace: str) -> None:
        """`namespace` is that of the chain whose task it is."""
        self.endpoint = endpoint
        self.namespace = namespace
        self.due: float | None = None  # monotonic
        self.queued = False
        self.urgent = False
        self.busy = False
        self.rerun = False  # urgently wanted while it was running
        self.dropped = False  # never to run again


class StoreEndpoint:
    """A server (or a folder), its tasks, and whether it answers."""

    __slots__ = (
        "asleep_until",
        "chains",
        "failures",
        "name",
        "placed",
        "probe_at",
        "probe_wait",
        "proven",
        "queues",
        "readable_since",
        "under_way",
        "unresponsive",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.chains = 0  # that use it
        self.queues: dict[str, _Queue] = {}  # by namespace, where tasks wait
        self.placed: _Standing | None = None  # in whose lanes its queues are; None: it sleeps
        self.asleep_until = 0.0  # monotonic: when it is placed in a lane again
        self.unresponsive = False
        self.readable_since = steady()  # it has answered without a gap since
        self.proven = False  # the last request was answered
        self.failures = 0  # requests in a row that were not answered
        self.probe_at = 0.0  # monotonic
        self.probe_wait = PROBE_SECONDS[0]
        self.under_way: dict[Task, float] = {}  # since, monotonic; the oldest first

    @property
    def failing(self) -> bool:
        """Whether its last request was not answered."""
        return bool(self.failures) or self.unresponsive

    @property
    def dependable(self) -> bool:
        """Whether several tasks may run there at once."""
        return self.proven and not self.unresponsive

    @property
    def standing(self) -> _Standing:
        """What it is to be trusted with."""
        if self.dependable:
            return _Standing.DEPENDABLE
        return _Standing.FAILING if self.failing else _Standing.UNPROVEN


class _Standing(Enum):
    DEPENDABLE = "dependable"
    UNPROVEN = "unproven"
    FAILING = "failing"


class _Queue:
    """The tasks of one namespace that wait at one endpoint."""

    __slots__ = ("endpoint", "lane", "namespace", "routine", "urgent")

    def __init__(self, endpoint: StoreEndpoint, namespace: str) -> None:
        self.endpoint = endpoint
        self.namespace = namespace
        self.urgent: deque[Task] = deque()
        self.routine: deque[Task] = deque()
        self.lane: _Lane | None = None  # where it waits to be served; None: it must not be now

    def add(self, task: Task) -> None:
        (self.urgent if task.urgent else self.routine).append(task)

    def remove(self, task: Task) -> None:
        (self.urgent if task.urgent else self.routine).remove(task)

    def pop(self) -> Task:
        """The task whose turn it is."""
        return (self.urgent or self.routine).popleft()


class _Lane:
    """Queues at endpoints of one standing; their namespaces take turns, and within each its endpoints. In every second
    turn, those at endpoints without tasks go first.

    At most as many endpoints have a task, and as many namespaces have no share left, as there are threads: looking
    past those is cheap. Which endpoints have one changes with every task, so the lane does not depend on it.
    """

    def __init__(self, standing: _Standing, *, urgent: bool) -> None:
        self.standing = standing
        self.urgent = urgent
        self._namespaces: OrderedDict[str, OrderedDict[StoreEndpoint, _Queue]] = OrderedDict()
        self._endpoints: dict[StoreEndpoint, OrderedDict[str, _Queue]] = {}  # the same queues
        self._since: dict[str, int] = {}  # by namespace: when it went to the end of `_namespaces`
        self._count = itertools.count()
        self._idle_first = True

    def __bool__(self) -> bool:
        return bool(self._namespaces)

    def take_turn(self, load: _Load) -> _Queue | None:
        """The queue whose turn it is; its namespace goes to the end. None if no task may start."""
        without_share = load.without_share(self.standing)
        if without_share is None:
            return None
        admits_busy = load.admits_busy(self.standing)
        queue = self._first(without_share, idle=True) if self._idle_first or not admits_busy else None
        if queue is None and admits_busy:
            queue = self._first(without_share, idle=False)
        if queue is not None:
            self._idle_first = not self._idle_first
            self._namespaces.move_to_end(queue.namespace)
            self._since[queue.namespace] = next(self._count)
        return queue

    def _first(self, without_share: Set[str], *, idle: bool) -> _Queue | None:
        """The first queue of a namespace that has a share; with `idle`, at an endpoint without tasks.

        Thousands of namespaces may wait at an endpoint that has some, thousands of endpoints be of one namespace: the
        steps are in proportion to the smaller number.
        """
        for namespace, queues in itertools.islice(self._namespaces.items(), len(self._endpoints)):
            if namespace not in without_share:
                for endpoint, queue in queues.items():
                    if not (idle and endpoint.under_way):
                        return queue
        if len(self._namespaces) <= len(self._endpoints):
            return None
        found = [
            next((queue for namespace, queue in queues.items() if namespace not in without_share), None)
            for endpoint, queues in self._endpoints.items()
            if not (idle and endpoint.under_way)
        ]
        return min(filter(None, found), key=lambda queue: self._since[queue.namespace], default=None)

    def add(self, queue: _Queue) -> None:
        if queue.namespace not in self._namespaces:
            self._namespaces[queue.namespace] = OrderedDict()
            self._since[queue.namespace] = next(self._count)
        self._namespaces[queue.namespace][queue.endpoint] = queue
        self._endpoints.setdefault(queue.endpoint, OrderedDict())[queue.namespace] = queue

    def remove(self, queue: _Queue) -> None:
        queues, others = self._namespaces[queue.namespace], self._endpoints[queue.endpoint]
        del queues[queue.endpoint], others[queue.namespace]
        if not queues:
            del self._namespaces[queue.namespace], self._since[queue.namespace]
        if not others:
            del self._endpoints[queue.endpoint]


class _Load:
    """What is under way, by namespace: counted once a dispatch, then kept up to date."""

    def __init__(self, threads: int, endpoints: Iterable[StoreEndpoint]) -> None:
        self._threads = threads
        self._tasks: Counter[str] = Counter()
        self._unproven: Counter[str] = Counter()  # endpoints with a task that are not known to answer
        self._failing: Counter[str] = Counter()  # of those, the ones that did not answer
        for endpoint in endpoints:
            first, *others = endpoint.under_way
            self.add(first)
            self._tasks.update(task.namespace for task in others)

    @property
    def is_full(self) -> bool:
        """Whether every thread has a task."""
        return self._tasks.total() >= self._threads

    def add(self, task: Task) -> None:
        """It starts; an endpoint that is not dependable has no other."""
        self._tasks[task.namespace] += 1
        if not task.endpoint.dependable:
            self._unproven[task.namespace] += 1
            self._failing[task.namespace] += task.endpoint.failing

    def without_share(self, standing: _Standing) -> Set[str] | None:
        """The namespaces that may not start a task at an endpoint of that standing, as they have not taken less than is
        free; None: no namespace may.
        """
        shares = [(self._tasks, self._threads)]
        if standing is _Standing.FAILING:
            shares.append((self._failing, max(1, self._threads // 4)))
        elif standing is _Standing.UNPROVEN:
            shares.append((self._unproven, max(1, self._threads // 2)))
        found: set[str] = set()
        for taken, room in shares:
            free = room - taken.total()
            if free <= 0:
                return None
            found.update(namespace for namespace, count in taken.items() if count >= free)
        return found

    def admits_busy(self, standing: _Standing) -> bool:
        """Whether a task may start at an endpoint that has one; a quarter is left for those that have none."""
        return standing is _Standing.DEPENDABLE and self._tasks.total() < max(1, self._threads * 3 // 4)


class StoreSchedule:
    """Runs tasks when they are due and there is capacity. Every method is called in one event loop."""

    def __init__(
        self,
        work: Callable[[Task], Awaitable[float | None]],
        on_availability: Callable[[StoreEndpoint], None],
        *,
        threads: int,
        requests_per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`work` runs a task and returns the seconds until its next run (None: when asked for).

        `on_availability` is called when an endpoint becomes unresponsive, and when it answers again.
        """
        self._work = work
        self._on_availability = on_availability
        self._threads = threads
        self._rate = requests_per_second
        self._clock = clock
        self._endpoints: dict[str, StoreEndpoint] = {}
        self._working: dict[str, StoreEndpoint] = {}  # those with tasks under way
        self._lanes = [_Lane(standing, urgent=urgent) for urgent in (True, False) for standing in _Standing]
        self._asleep: list[tuple[float, int, StoreEndpoint]] = []  # a heap
        self._heap: list[tuple[float, int, Task]] = []
        self._count = itertools.count()
        self._tokens = requests_per_second
        self._tokens_at = self._tidied_at = clock()
        self._wake = asyncio.Event()
        self._closing = False
        self._loop_task: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="store")
        self._under_way: set[asyncio.Future[None]] = set()

    # ---- endpoints and tasks

    def acquire(self, name: str) -> StoreEndpoint:
        """The endpoint of that name, for one more chain; `release` must follow."""
        endpoint = self._endpoints.setdefault(name, StoreEndpoint(name))
        endpoint.chains += 1
        return endpoint

    def release(self, endpoint: StoreEndpoint) -> None:
        """A chain uses the endpoint no more, and its tasks were dropped; without any chain it is forgotten."""
        endpoint.chains -= 1
        if not endpoint.chains:
            for queue in endpoint.queues.values():
                self._leave_lane(queue)
            endpoint.queues.clear()
        self._drop_unused(endpoint)

    def soon(self, task: Task, *, urgent: bool = False) -> None:
        """Run the task as soon as there is capacity; `urgent`: before routine ones."""
        if task.dropped:
            return
        if task.busy:
            task.rerun = task.rerun or urgent
            return
        task.due = None
        if task.queued and (task.urgent or not urgent):
            return
        endpoint, namespace = task.endpoint, task.namespace
        if namespace not in endpoint.queues:
            endpoint.queues[namespace] = _Queue(endpoint, namespace)
        queue = endpoint.queues[namespace]
        if task.queued:
            queue.remove(task)
        task.queued, task.urgent = True, urgent
        queue.add(task)
        self._place(endpoint)
        self._put(queue)
        self._wake.set()

    def later(self, task: Task, seconds: float) -> None:
        """Run the task after about that time: jitter keeps thousands from running at once."""
        if task.dropped or task.queued or task.busy:
            return
        task.due = self._clock() + seconds * random.uniform(0.85, 1.15)  # noqa: S311
        heapq.heappush(self._heap, (task.due, next(self._count), task))
        if task.due <= self._heap[0][0]:
            self._wake.set()

    def drop(self, task: Task) -> None:
        """Never run the task again; a run under way goes on."""
        task.dropped, task.due = True, None

    def begin(self, task: Task) -> bool:
        """Take an idle task out of the queue, to run it elsewhere; `end` must follow."""
        if task.dropped or task.busy:
            return False
        if task.queued:
            queue = task.endpoint.queues[task.namespace]
            queue.remove(task)
            self._put(queue)
        task.queued, task.due, task.busy = False, None, True
        return True

    def end(self, task: Task, seconds: float | None) -> None:
        """The task has run; next time after so many seconds, unless it was urgently wanted meanwhile."""
        task.busy = False
        if task.rerun:
            task.rerun = False
            self.soon(task, urgent=True)
        elif seconds is not None:
            self.later(task, seconds)

    async def call(
        self,
        endpoint: StoreEndpoint,
        function: Callable[..., T],
        *arguments: object,
        seconds: float | None = None,
    ) -> T:
        """Call `function` in a thread, and record whether the endpoint answered. Raises what `function` does, and
        StoreUnavailable where that takes longer than `seconds` (None: CALL_SECONDS).
        """
        loop, limit = asyncio.get_running_loop(), TimeLimit()
        timer = loop.call_later(CALL_SECONDS if seconds is None else seconds, limit.cut)
        try:
            answer = await loop.run_in_executor(self._pool, limit.run, function, *arguments)
        except asyncio.CancelledError:
            limit.cut()  # or the thread would hold up the end of the process
            raise
        except StoreUnavailable:
            self._unanswered(endpoint)
            raise
        except EndpointRefused:
            raise  # nobody was asked
        except ModelChainError:
            self._answered(endpoint)  # an error, but an answer
            raise
        finally:
            timer.cancel()
        self._answered(endpoint)
        return answer

    # ---- life

    def start(self) -> None:
        """Start dispatching, in the running event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run(), name="store schedule")

    async def close(self) -> None:
        """Stop. Tasks under way get CLOSE_SECONDS."""
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
            try:
                wait = self._dispatch()
            except Exception:  # a defect must not end the reading of all stores
                logger.exception("stores can't be scheduled; again in %.0f s", DISPATCH_RETRY_SECONDS)
                wait = DISPATCH_RETRY_SECONDS
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue

    # ---- which tasks run next

    def _dispatch(self) -> float:
        """Start every task that may start now. Returns the seconds until there may be more."""
        now = self._clock()
        self._tokens = min(self._rate, self._tokens + (now - self._tokens_at) * self._rate)
        self._tokens_at = now
        self._collect_due(now)
        self._detect_unresponsive(now)
        self._wake_up(now)
        load = _Load(self._threads, self._working.values())
        while not load.is_full and (queue := self._next_queue(load)) is not None:
            task, endpoint = queue.pop(), queue.endpoint
            task.queued = False
            self._leave_lane(queue)
            endpoint.queues[queue.namespace] = endpoint.queues.pop(queue.namespace)  # after the others there
            if not task.dropped:
                load.add(task)
                self._begin_work(task, now)
            self._put(queue)
        wait = min([1.0, *(heap[0][0] - now for heap in (self._heap, self._asleep) if heap)])
        if self._tokens < 0 and any(lane for lane in self._lanes if not lane.urgent):
            wait = min(wait, -self._tokens / self._rate)
        return max(0.005, wait)

    def _next_queue(self, load: _Load) -> _Queue | None:
        """The queue whose turn it is; None if no task may start. Urgent ones go first; lanes of other standings take
        turns.
        """
        for number, lane in enumerate(self._lanes):
            if not lane.urgent and self._tokens < 0:
                continue
            queue = lane.take_turn(load)
            if queue is not None:
                self._lanes.append(self._lanes.pop(number))
                self._lanes.sort(key=lambda lane: not lane.urgent)
                return queue
        return None

    # ---- which endpoints may be served

    def _place(self, endpoint: StoreEndpoint) -> None:
        """Put the endpoint's queues into the lanes where they belong now; no work unless its standing has changed."""
        if not endpoint.queues:
            return
        placed: _Standing | None = endpoint.standing
        if not endpoint.dependable and endpoint.probe_at > self._clock():
            placed = None
            if endpoint.asleep_until != endpoint.probe_at:
                endpoint.asleep_until = endpoint.probe_at
                heapq.heappush(self._asleep, (endpoint.probe_at, next(self._count), endpoint))
        if placed is not endpoint.placed:
            endpoint.placed = placed
            for queue in list(endpoint.queues.values()):
                self._put(queue)

    def _put(self, queue: _Queue) -> None:
        """Put a queue into the lane of its endpoint's standing; without tasks it is forgotten."""
        lane, urgent = None, bool(queue.urgent)
        if not (urgent or queue.routine):
            del queue.endpoint.queues[queue.namespace]
        elif (placed := queue.endpoint.placed) is not None:
            lane = next(one for one in self._lanes if one.urgent == urgent and one.standing is placed)
        if lane is not queue.lane:
            self._leave_lane(queue)
            if lane is not None:
                lane.add(queue)
                queue.lane = lane

    def _leave_lane(self, queue: _Queue) -> None:
        if queue.lane is not None:
            queue.lane.remove(queue)
            queue.lane = None

    def _wake_up(self, now: float) -> None:
        """Place the endpoints that may be tried again."""
        while self._asleep and self._asleep[0][0] <= now:
            until, _, endpoint = heapq.heappop(self._asleep)
            if endpoint.asleep_until == until:
                endpoint.asleep_until = 0.0
                self._place(endpoint)

    def _collect_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            due, _, task = heapq.heappop(self._heap)
            if task.due == due:
                self.soon(task)
        if now - self._tidied_at > TIDY_SECONDS:  # entries of dropped tasks, and of times that were changed
            self._tidied_at = now
            self._heap = [entry for entry in self._heap if entry[2].due == entry[0]]
            heapq.heapify(self._heap)

    def _begin_work(self, task: Task, now: float) -> None:
        task.busy = True
        task.endpoint.under_way[task] = now
        self._working[task.endpoint.name] = task.endpoint
        self._tokens = max(self._tokens - REQUESTS_OF_A_TASK, -DEBT_SECONDS * self._rate)

        async def run() -> None:
            seconds: float | None = DEFECT_SECONDS
            try:
                seconds = await self._work(task)
            except Exception:
                logger.exception("%s: reading the store has failed", task.endpoint.name)
            finally:
                task.endpoint.under_way.pop(task, None)
                if not task.endpoint.under_way:
                    self._working.pop(task.endpoint.name, None)
                self.end(task, seconds)
                self._drop_unused(task.endpoint)
                self._wake.set()

        future = asyncio.ensure_future(run())
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    def _drop_unused(self, endpoint: StoreEndpoint) -> None:
        if not endpoint.chains and not endpoint.under_way and self._endpoints.get(endpoint.name) is endpoint:
            del self._endpoints[endpoint.name]

    # ---- whether endpoints answer

    def _detect_unresponsive(self, now: float) -> None:
        for endpoint in list(self._working.values()):
            if now - min(endpoint.under_way.values()) > UNRESPONSIVE_SECONDS:
                self._mark_unresponsive(endpoint)

    def _mark_unresponsive(self, endpoint: StoreEndpoint) -> None:
        if endpoint.unresponsive:
            return
        endpoint.unresponsive = True
        self._place(endpoint)
        logger.warning("%s does not answer; the chains whose store it is wait for it", endpoint.name)
        self._on_availability(endpoint)

    def _unanswered(self, endpoint: StoreEndpoint) -> None:
        endpoint.failures += 1
        endpoint.proven = False
        endpoint.probe_at = self._clock() + endpoint.probe_wait * random.uniform(0.8, 1.2)  # noqa: S311
        endpoint.probe_wait = min(PROBE_SECONDS[1], endpoint.probe_wait * 2)
        self._place(endpoint)
        if endpoint.failures >= FAILURES:
            self._mark_unresponsive(endpoint)

    def _answered(self, endpoint: StoreEndpoint) -> None:
        endpoint.failures, endpoint.proven = 0, True
        endpoint.probe_at, endpoint.probe_wait = 0.0, PROBE_SECONDS[0]
        if endpoint.unresponsive:
            endpoint.unresponsive, endpoint.readable_since = False, steady()
            logger.warning("%s answers again", endpoint.name)
            self._on_availability(endpoint)
        self._place(endpoint)
