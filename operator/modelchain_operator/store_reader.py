"""What the stores say of all chains: looked at in threads, each stage at its own pace, never on the event loop.

A stage that trains is looked at every few seconds, one whose turn has come a little more rarely, one whose
turn has not come or which is finished from time to time. All routine looks share one budget of requests a
second; what somebody waits for (a job has ended, a stage's turn has come) goes before. A store that does not
answer is tried by one look at a time, so that it holds up nobody else.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum

from modelchain.errors import ModelChainError
from modelchain.local.record import record_object
from modelchain.reconcile.observation import StageFacts, StoreTrouble
from modelchain.resolved import ChainReference, ResolvedChain, ResolvedStage
from modelchain.status import ChainStatus, without_progress
from modelchain.store import Store, StoreUnavailable
from modelchain.store_look import StageLook, silence, trouble_of
from modelchain_operator.queue import Key
from modelchain_operator.store_access import NoAccess

logger = logging.getLogger(__name__)

RUNNING_SECONDS = 5.0  # between looks at a stage that trains
WAITING_SECONDS = 5.0  # at one whose turn has come; longer the longer nothing changes
RARE_SECONDS = 60.0  # at one whose turn has not come, and the longest that others wait
LEASED_SECONDS = 15.0  # at one that somebody else trains
SILENT_SECONDS = 6.0  # a look that takes longer means that the store does not answer now
PROBE_SECONDS = (1.0, 15.0)  # between looks at a store that does not answer: first, and longest
FAILURES = 3  # looks in a row that fail before a store is said not to answer
RECORD_SECONDS = 60.0  # between records of a chain while only its progress changes
REFUSED_RECORD_SECONDS = 3600.0  # before a record is tried again that the store did not let us write
CLOSE_SECONDS = 5.0
REQUESTS_OF_A_LOOK = 2.0


@dataclass(frozen=True)
class Seen:
    """What the last looks showed of a chain."""

    facts: Mapping[str, StageFacts]  # by stage; a stage that was not looked at since it had to be is missing
    readable_since: float  # seconds since the epoch: the store has answered without a gap since
    progress_changed_at: Mapping[tuple[str, int], float]  # by stage and attempt, by our clock


class _Pace(Enum):
    """Why a stage is looked at."""

    RUNNING = "running"
    WAITING = "waiting"
    RARE = "rare"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class _Place:
    """A server (or a folder): what is known of whether it answers."""

    name: str
    urgent: deque[_Stage | _Record] = field(default_factory=deque)
    routine: deque[_Stage | _Record] = field(default_factory=deque)
    under_way: dict[int, float] = field(default_factory=dict)  # since, monotonic
    proven: bool = False  # the last look was answered
    failures: int = 0  # looks in a row that were not
    silent: bool = False
    readable_since: float = field(default_factory=time.time)
    probe_at: float = 0.0  # monotonic
    probe_wait: float = PROBE_SECONDS[0]
    followers: set[Key] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class _Stage:
    """What is remembered of a stage between looks; little, where it is finished."""

    chain: _Chain
    name: str
    folder: str
    digest: str
    predecessor: str | None
    pace: _Pace = _Pace.WAITING
    attempt: int | None = None
    facts: StageFacts | None = None
    looked_at: float = 0.0  # monotonic: when the look began that showed the facts
    wanted_since: float = 0.0  # monotonic: an older look is not good enough
    interval: float = WAITING_SECONDS
    due: float | None = None  # monotonic; None: queued, or under way
    queued: bool = False
    busy: bool = False
    look: StageLook | None = None
    changed_at: dict[int, float] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Record:
    """The chain's record in the store: what has to be written, and what was."""

    chain: _Chain
    pending: tuple[str, bytes] | None = None
    queued: bool = False
    busy: bool = False
    written: int | None = None  # hash of the status less its progress
    written_at: float = float("-inf")
    refused_at: float = float("-inf")


@dataclass(eq=False, slots=True)
class _Chain:
    key: Key
    reference: ChainReference
    store: Store | None
    no_access: NoAccess | None
    place: _Place | None
    stages: dict[str, _Stage] = field(default_factory=dict)
    record: _Record | None = None
    readable_since: float = field(default_factory=time.time)
    told_at: float = float("-inf")  # monotonic: when a change of its progress was last told


class StoreReader:
    """Follows the stages of many chains. Every method is called in the event loop that `start` was called in."""

    def __init__(
        self,
        on_change: Callable[[Key], None] = lambda key: None,
        *,
        threads: int = 8,
        requests_per_second: float = 50.0,
        artifact_check_seconds: float = 900.0,
        progress_seconds: float = 15.0,
        on_refused: Callable[[Store], None] = lambda store: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` is called when something is new about a chain, for mere progress every `progress_seconds`
        at most; `on_refused` when a store refuses its keys.
        """
        self.on_change = on_change
        self.on_refused = on_refused
        self._threads = threads
        self._rate = requests_per_second
        self._artifact_check_seconds = artifact_check_seconds
        self._progress_seconds = progress_seconds
        self._clock = clock
        self._chains: dict[Key, _Chain] = {}
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._heap: list[tuple[float, int, _Stage]] = []
        self._count = itertools.count()
        self._tokens = requests_per_second
        self._tokens_at = clock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: set[asyncio.Future[None]] = set()
        self._closing = False

    def __len__(self) -> int:
        """Chains that are followed."""
        return len(self._chains)

    # ---- what the reconciler says and asks

    def follow(
        self,
        key: Key,
        chain: ResolvedChain,
        store: Store | NoAccess,
        *,
        running: Mapping[str, int],
        finished: Set[str],
        not_yet: Set[str],
    ) -> None:
        """Follow these stages of the chain from now on: which attempts run, which stages are finished, and whose
        turn has not come. Saying the same again changes nothing.
        """
        known = self._chains.get(key)
        if known is None or known.reference != chain.chain or (known.store or known.no_access) is not store:
            known = self._begin(key, chain, store, known)
        self._take_stages(known, chain)
        for stage in known.stages.values():
            attempt = running.get(stage.name)
            if attempt is not None:
                pace = _Pace.RUNNING
            elif stage.name in finished:
                pace = _Pace.FINISHED
            else:
                pace = _Pace.RARE if stage.name in not_yet else _Pace.WAITING
            if attempt != stage.attempt or pace is not stage.pace:
                self._change_pace(stage, pace, attempt)
        self._wake.set()

    def look_again(self, key: Key, stage: str) -> None:
        """Something has happened to the stage: what was seen before says nothing any more."""
        chain = self._chains.get(key)
        found = chain.stages.get(stage) if chain is not None else None
        if found is not None:
            found.wanted_since = self._clock()
            self._queue(found, urgent=True)

    def seen(self, key: Key) -> Seen:
        """What is known of the chain now."""
        chain = self._chains.get(key)
        if chain is None:
            return Seen({}, time.time(), {})
        changed = {
            (stage.name, attempt): at
            for stage in chain.stages.values()
            for attempt, at in stage.changed_at.items()
        }
        if chain.no_access is not None:
            facts = StageFacts(trouble=chain.no_access.trouble, message=chain.no_access.message)
            return Seen(dict.fromkeys(chain.stages, facts), chain.readable_since, changed)
        assert chain.place is not None
        assert chain.store is not None
        silent = None
        if chain.place.silent:
            silent = StageFacts(trouble=StoreTrouble.UNAVAILABLE, message=silence(chain.store))
        facts_of = {
            stage.name: silent if silent is not None and stage.facts.trouble is None else stage.facts
            for stage in chain.stages.values()
            if stage.facts is not None and stage.looked_at >= stage.wanted_since
        }
        if silent is not None:  # what was never seen is not seen now either, and this is why
            facts_of = {name: facts_of.get(name, silent) for name in chain.stages}
        since = max(chain.readable_since, chain.place.readable_since)
        return Seen(facts_of, since, changed)

    def record(self, key: Key, chain: ResolvedChain, status: ChainStatus) -> None:
        """The chain's status has changed: write its record (for people, and for `modelchain report`) when the
        store lets us. Only the newest counts.
        """
        known = self._chains.get(key)
        if known is None or known.store is None:
            return
        record = known.record = known.record or _Record(known)
        now = self._clock()
        if now - record.refused_at < REFUSED_RECORD_SECONDS:
            return
        meaning = hash(without_progress(status).model_dump_json())
        if record.written == meaning and now - record.written_at < RECORD_SECONDS:
            return
        record.written, record.written_at = meaning, now
        record.pending = record_object(chain, status, time.time())
        self._queue(record, urgent=False)

    def forget(self, key: Key) -> None:
        """The chain is gone."""
        chain = self._chains.pop(key, None)
        if chain is not None:
            self._leave(chain)

    # ---- life

    def start(self) -> None:
        """Begin to look."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="store")
        self._task = asyncio.get_running_loop().create_task(self._run(), name="store reader")

    async def close(self) -> None:
        """Write the records that wait, for a few seconds at most, and end."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            deadline = self._clock() + CLOSE_SECONDS
            while self._records_wait() and self._clock() < deadline:
                self._pump()
                await asyncio.sleep(0.05)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _records_wait(self) -> bool:
        return any(
            chain.record is not None
            and (chain.record.pending is not None or chain.record.busy)
            and not (chain.place is not None and chain.place.silent)
            for chain in self._chains.values()
        )

    # ---- chains, stages and places

    def _begin(self, key: Key, chain: ResolvedChain, store: Store | NoAccess, known: _Chain | None) -> _Chain:
        """Follow the chain anew: it is another one, or its store is."""
        if known is not None:
            self._leave(known)
        place = None
        if not isinstance(store, NoAccess):
            name = _place_of(chain)
            place = self._places.get(name)
            if place is None:
                place = self._places[name] = _Place(name)
            place.followers.add(key)
        new = self._chains[key] = _Chain(
            key,
            chain.chain,
            None if isinstance(store, NoAccess) else store,
            store if isinstance(store, NoAccess) else None,
            place,
        )
        if known is not None and known.reference.uid == chain.chain.uid:
            for name, stage in known.stages.items():  # what its attempts did stays true
                copy = _Stage(new, name, stage.folder, stage.digest, stage.predecessor)
                copy.changed_at = stage.changed_at
                copy.wanted_since = self._clock()
                new.stages[name] = copy
                self._queue(copy, urgent=True)
        return new

    def _leave(self, chain: _Chain) -> None:
        for stage in chain.stages.values():
            stage.due = None
            stage.wanted_since = float("inf")  # marks it as left: what is still queued is passed over
        if chain.record is not None:
            chain.record.pending = None
        if chain.place is not None:
            self._leave_place(chain.place, chain.key)

    def _leave_place(self, place: _Place, key: Key) -> None:
        place.followers.discard(key)
        if not place.followers and not place.under_way:
            self._places.pop(place.name, None)

    def _take_stages(self, chain: _Chain, resolved: ResolvedChain) -> None:
        """Bring the stages to those of the spec."""
        if [(stage.name, stage.digest) for stage in chain.stages.values()] == [
            (stage.name, stage.digest) for stage in resolved.stages
        ]:
            return
        stages: dict[str, _Stage] = {}
        for stage in resolved.stages:
            old = chain.stages.pop(stage.name, None)
            if old is not None and (old.digest, old.folder) == (stage.digest, stage.folder):
                stages[stage.name] = old
                continue
            if old is not None:
                old.due, old.wanted_since = None, float("inf")
            new = stages[stage.name] = _new_stage(chain, stage)
            if old is not None:
                new.changed_at = old.changed_at
            self._queue(new, urgent=True)
        for gone in chain.stages.values():
            gone.due, gone.wanted_since = None, float("inf")
        chain.stages = stages

    def _change_pace(self, stage: _Stage, pace: _Pace, attempt: int | None) -> None:
        was, stage.pace, stage.attempt, stage.interval = stage.pace, pace, attempt, WAITING_SECONDS
        if pace is _Pace.FINISHED:
            stage.look = None
            if stage.facts is not None and stage.facts.manifest is not None:
                stage.facts = None  # that it is there is all that matters from now on
            if stage.facts is None and stage.looked_at > 0:
                self._schedule(stage)
                return
        elif was is _Pace.RARE and pace is _Pace.WAITING:
            stage.wanted_since = self._clock() if self._is_stale(stage) else stage.wanted_since
        urgent = pace is not _Pace.RARE and (stage.facts is None or stage.wanted_since > stage.looked_at)
        if urgent or pace in (_Pace.RUNNING, _Pace.WAITING):
            self._queue(stage, urgent=urgent)
        else:
            self._schedule(stage)

    def _is_stale(self, stage: _Stage) -> bool:
        """Whether what was seen of a stage whose turn has come is too old to begin its training on."""
        return self._clock() - stage.looked_at > WAITING_SECONDS

    # ---- when to look

    def _interval_of(self, stage: _Stage) -> float:
        if stage.pace is _Pace.RUNNING:
            seconds = RUNNING_SECONDS
        elif stage.pace is _Pace.FINISHED:
            seconds = self._artifact_check_seconds
        elif stage.pace is _Pace.RARE:
            seconds = RARE_SECONDS
        else:
            seconds = stage.interval
            if stage.facts is not None and stage.facts.lease is not None and stage.facts.lease.fresh:
                seconds = min(seconds, LEASED_SECONDS)
        return seconds * random.uniform(0.85, 1.15)  # noqa: S311  so that a thousand chains do not march in step

    def _schedule(self, stage: _Stage) -> None:
        """Look again after the stage's interval."""
        if stage.queued or stage.busy or stage.wanted_since == float("inf"):
            return
        stage.due = self._clock() + self._interval_of(stage)
        heapq.heappush(self._heap, (stage.due, next(self._count), stage))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._chains) * 8:
            self._heap = [entry for entry in self._heap if entry[2].due == entry[0]]
            heapq.heapify(self._heap)

    def _queue(self, task: _Stage | _Record, *, urgent: bool) -> None:
        """Look (or write) as soon as there is room."""
        place = task.chain.place
        if place is None or task.busy:
            return  # a look under way that is not good enough is repeated at its end
        if isinstance(task, _Stage):
            task.due = None
        if task.queued:
            if urgent and task in place.routine:
                place.routine.remove(task)
                place.urgent.append(task)
        else:
            task.queued = True
            (place.urgent if urgent else place.routine).append(task)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            wait = self._pump()
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue

    def _pump(self) -> float:
        """Begin whatever may begin now. Returns the seconds until there may be more."""
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, _, stage = heapq.heappop(self._heap)
            if stage.due == due:
                stage.due = None
                self._queue(stage, urgent=False)
        self._tokens = min(self._rate, self._tokens + (now - self._tokens_at) * self._rate)
        self._tokens_at = now
        wait = 1.0 if self._heap else 5.0
        if self._heap:
            wait = min(wait, max(0.0, self._heap[0][0] - now))
        self._notice_silence(now)
        begun = True
        while begun:
            begun = False
            for name in list(self._places):
                place = self._places.get(name)
                if place is None or not (place.urgent or place.routine):
                    continue
                if not self._has_room(place, now):
                    wait = min(wait, max(0.05, place.probe_at - now))
                    continue
                if not place.urgent and self._tokens < REQUESTS_OF_A_LOOK and not self._closing:
                    wait = min(wait, (REQUESTS_OF_A_LOOK - self._tokens) / self._rate)
                    continue
                task = (place.urgent or place.routine).popleft()
                self._places.move_to_end(name)
                begun = self._begin_task(place, task, now) or begun
        return max(0.005, wait)

    def _has_room(self, place: _Place, now: float) -> bool:
        """Whether one more look at the place may begin. Places that have not answered lately share half of the
        threads, one each.
        """
        total = sum(len(each.under_way) for each in self._places.values())
        if total >= self._threads:
            return False
        if place.proven and not place.silent:
            return len(place.under_way) < max(1, self._threads * 3 // 4)
        if place.under_way or now < place.probe_at:
            return False
        unproven = sum(
            1 for each in self._places.values() if each.under_way and (each.silent or not each.proven)
        )
        return unproven < max(1, self._threads // 2)

    def _notice_silence(self, now: float) -> None:
        for place in self._places.values():
            oldest = min(place.under_way.values(), default=now)
            if now - oldest > SILENT_SECONDS and not place.silent:
                self._fall_silent(place)

    def _fall_silent(self, place: _Place) -> None:
        place.silent = True
        place.probe_wait = PROBE_SECONDS[0]
        logger.warning("%s does not answer; the chains that are kept there wait for it", place.name)
        self._tell_followers(place)

    def _tell_followers(self, place: _Place) -> None:
        for key in list(place.followers):
            chain = self._chains.get(key)
            if chain is not None and any(stage.pace is not _Pace.FINISHED for stage in chain.stages.values()):
                self.on_change(key)

    # ---- looking

    def _begin_task(self, place: _Place, task: _Stage | _Record, now: float) -> bool:
        task.queued = False
        if isinstance(task, _Stage):
            if task.wanted_since == float("inf") or task.chain.store is None:
                return False
            work = self._look_at(place, task, now)
        else:
            if task.pending is None or task.chain.store is None:
                return False
            work = self._write(place, task)
        task.busy = True
        number = next(self._count)
        place.under_way[number] = now
        self._tokens -= REQUESTS_OF_A_LOOK

        async def run() -> None:
            try:
                await work
            finally:
                place.under_way.pop(number, None)
                task.busy = False
                if isinstance(task, _Stage):
                    if task.looked_at < task.wanted_since < float("inf"):
                        self._queue(task, urgent=not place.silent)
                    else:
                        self._schedule(task)
                elif task.pending is not None:
                    self._queue(task, urgent=False)
                if not place.followers and not place.under_way:
                    self._places.pop(place.name, None)
                self._wake.set()

        future = asyncio.ensure_future(run())
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return True

    async def _look_at(self, place: _Place, stage: _Stage, began: float) -> None:
        chain = stage.chain
        store = chain.store
        assert store is not None
        look = stage.look
        if look is None:
            look = StageLook(store, chain.reference, stage.folder, stage.digest)
            if stage.pace is not _Pace.FINISHED:
                stage.look = look
        look.follow(stage.attempt)
        before = stage.facts
        whole = before is None or before.trouble is not None or stage.looked_at < stage.wanted_since
        facts = await self._in_thread(place, store, lambda: look.look(whole=whole))
        if stage.wanted_since == float("inf"):
            return
        if facts.trouble is StoreTrouble.FORBIDDEN:
            self.on_refused(store)
        if (
            before is not None
            and before.trouble is StoreTrouble.UNAVAILABLE
            and facts.trouble is not before.trouble
        ):
            chain.readable_since = time.time()
        if look.progress_changed_at:
            stage.changed_at = dict(look.progress_changed_at)
        first = stage.looked_at < stage.wanted_since or stage.looked_at == 0.0
        stage.looked_at = began
        stage.facts = facts
        if stage.pace is _Pace.FINISHED and facts.manifest is not None:
            stage.facts = None  # that it is there is all that matters
            first = False
        if first or stage.facts != before:
            stage.interval = WAITING_SECONDS
            if facts.manifest is not None and (before is None or before.manifest is None):
                await self._look_at_followers(place, stage)
            self._tell(stage, before, first=first)
        else:
            stage.interval = min(RARE_SECONDS, stage.interval * 1.5)

    async def _look_at_followers(self, place: _Place, stage: _Stage) -> None:
        """The stage is complete: have a fresh look at those whose turn comes, before anybody asks."""
        for each in stage.chain.stages.values():
            if (
                each.predecessor == stage.name
                and each.pace is not _Pace.FINISHED
                and not each.busy
                and each.queued is False
            ):
                store = stage.chain.store
                assert store is not None
                each.busy = True
                began = self._clock()
                try:
                    look = each.look = each.look or StageLook(
                        store, stage.chain.reference, each.folder, each.digest
                    )
                    facts = await self._in_thread(place, store, lambda look=look: look.look(whole=True))
                    each.facts, each.looked_at = facts, began
                finally:
                    each.busy = False
                    self._schedule(each)

    async def _in_thread(self, place: _Place, store: Store, look: Callable[[], StageFacts]) -> StageFacts:
        assert self._pool is not None
        try:
            facts = await asyncio.get_running_loop().run_in_executor(self._pool, look)
        except StoreUnavailable as error:
            logger.info("%s", error)
            self._unanswered(place)
            return trouble_of(error, store)
        except ModelChainError as error:
            facts = trouble_of(error, store)
        except Exception:
            logger.exception("%s: looking at the store has failed", store.uri)
            return StageFacts(
                trouble=StoreTrouble.UNAVAILABLE, message=f"{store.uri} can't be read: see the operator's log"
            )
        self._answered(place)
        return facts

    def _answered(self, place: _Place) -> None:
        place.failures, place.proven, place.probe_at = 0, True, 0.0
        place.probe_wait = PROBE_SECONDS[0]
        if place.silent:
            place.silent = False
            place.readable_since = time.time()
            logger.warning("%s answers again", place.name)
            self._tell_followers(place)

    def _unanswered(self, place: _Place) -> None:
        place.failures += 1
        place.proven = False
        place.probe_at = self._clock() + place.probe_wait * random.uniform(0.8, 1.2)  # noqa: S311
        place.probe_wait = min(PROBE_SECONDS[1], place.probe_wait * 2)
        if place.failures >= FAILURES and not place.silent:
            self._fall_silent(place)

    def _tell(self, stage: _Stage, before: StageFacts | None, *, first: bool) -> None:
        """Say that there is something new, of mere progress only from time to time."""
        now = self._clock()
        if not first and _same_but_progress(before, stage.facts):
            if now - stage.chain.told_at < self._progress_seconds:
                return
            stage.chain.told_at = now
        self.on_change(stage.chain.key)

    async def _write(self, place: _Place, record: _Record) -> None:
        store, pending = record.chain.store, record.pending
        assert store is not None
        assert pending is not None
        assert self._pool is not None
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, store.put, *pending)
        except StoreUnavailable:
            self._unanswered(place)
            return  # still the newest: it is tried again
        except ModelChainError as error:
            record.refused_at = self._clock()
            record.pending = None
            logger.info("the record of chain %s is not written: %s", record.chain.key, error)
            return
        self._answered(place)
        if record.pending is pending:
            record.pending = None


def _new_stage(chain: _Chain, stage: ResolvedStage) -> _Stage:
    predecessor = stage.predecessor.name if stage.predecessor is not None else None
    return _Stage(chain, stage.name, stage.folder, stage.digest, predecessor)


def _place_of(chain: ResolvedChain) -> str:
    """What answers, or does not, for this store."""
    store = chain.store
    if not store.uri.startswith("s3://"):
        return store.uri
    return store.endpoint_url or f"AWS S3 {store.region or ''}".rstrip()


def _same_but_progress(one: StageFacts | None, other: StageFacts | None) -> bool:
    if one is None or other is None or one.progress is None or other.progress is None:
        return one == other
    if one.progress.phase != other.progress.phase:
        return False
    return replace(one, progress=None) == replace(other, progress=None)
