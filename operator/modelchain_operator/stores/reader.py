"""What the stores say of all chains: read in threads, each stage at its own rate, never on the event loop.

A stage that trains is read every few seconds; one that may start, at intervals that grow while nothing changes; one
that is finished every few minutes, from a random moment on, since thousands of them are found at a restart. One at rest
(it can't start yet, or its chain is suspended) is read before it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from modelchain.chain_record import record_object
from modelchain.clock import steady
from modelchain.errors import ModelChainError
from modelchain.measuring import read_measurement
from modelchain.reconcile.observation import StageFacts, StoreProblem, Unmeasurable
from modelchain.resolved import ChainReference, ResolvedChain, ResolvedStage
from modelchain.stage_probe import StageProbe, StoreSnapshot, problem_of, unresponsive_message
from modelchain.status import ChainStatus, Measurement, without_progress
from modelchain.store import Store, StoreUnavailable
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.stores.access import NoAccess
from modelchain_operator.stores.schedule import (
    CLOSE_SECONDS,
    MEASURING_SECONDS,
    StoreEndpoint,
    StoreSchedule,
    Task,
)

logger = logging.getLogger(__name__)

RUNNING_SECONDS = 5.0  # between reads of a stage that trains
STARTING_SECONDS = 60.0  # of one whose trainer does not run yet and writes nothing
WAITING_SECONDS = 5.0  # of one that may start; 1.5 times as long after each that shows nothing new
LONGEST_WAITING_SECONDS = 60.0
# For each chain that is followed: within it, a finished stage that was never read is read.
FIRST_CHECK_SECONDS = 1.0
AT_REST_SECONDS = 900.0  # of one that can't start and can't be read
LEASED_SECONDS = 15.0  # of one that somebody else trains
# Before a chain is queued again whose store can't be read: first, and longest.
REFUSED_SECONDS = (20.0, 300.0)
RECORD_SECONDS = 60.0  # between records of a chain while only its progress changes
REFUSED_RECORD_SECONDS = 3600.0  # before the next record where the store refused the last


_PRESENT = StageFacts(present=True)


class _Pace(Enum):
    """How a stage stands, and so how often it is read."""

    NEW = "new"  # not known yet
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    AT_REST = "at rest"
    FINISHED = "finished"


class _Source(NamedTuple):
    """Where a chain's artifacts are."""

    store: Store
    endpoint: StoreEndpoint


class _Stage(Task):
    """State of a stage between reads; little, where it is finished."""

    __slots__ = (
        "attempt",
        "chain",
        "changed_at",
        "digest",
        "facts",
        "folder",
        "interval",
        "name",
        "needs",
        "pace",
        "probe",
        "probed_at",
        "read_at",
        "stale_before",
    )

    def __init__(self, chain: _Chain, stage: ResolvedStage, endpoint: StoreEndpoint) -> None:
        super().__init__(endpoint, chain.key.namespace)
        self.chain = chain
        self.name = sys.intern(stage.name)  # thousands of chains use the same names
        self.folder = stage.folder
        self.digest = stage.digest
        self.needs = tuple(sys.intern(other.name) for other in stage.needs)
        self.pace = _Pace.NEW
        self.attempt: int | None = None  # the one that runs
        self.facts: StageFacts | None = None  # None: not read, or finished and there
        self.probed_at = float("-inf")  # monotonic: when the read of the facts began
        self.read_at = float("-inf")  # by `clock.steady`: likewise
        self.stale_before = 0.0  # monotonic: older facts are stale
        self.interval = WAITING_SECONDS
        self.probe: StageProbe | None = None
        self.changed_at: dict[int, float] = {}  # by attempt, seconds since the epoch

    @property
    def known_facts(self) -> StageFacts | None:
        """What the last read showed; None before the first."""
        if self.facts is None and self.pace is _Pace.FINISHED and self.probed_at > 0:
            return _PRESENT
        return self.facts

    @property
    def never_read(self) -> bool:
        """Whether nothing is known of it."""
        return self.probed_at == float("-inf")

    @property
    def outdated(self) -> bool:
        """Whether it has to be read before its facts count."""
        return self.probed_at < self.stale_before


class _Record(Task):
    """The chain's record in the store: what is to be written, and what was."""

    __slots__ = (
        "chain",
        "meaning",
        "pending",
        "refused_at",
        "written_at",
    )

    def __init__(self, chain: _Chain, endpoint: StoreEndpoint) -> None:
        super().__init__(endpoint, chain.key.namespace)
        self.chain = chain
        self.pending: tuple[str, bytes] | None = None
        self.meaning = 0  # hash of the last status less its progress
        self.written_at = float("-inf")  # monotonic
        self.refused_at = float("-inf")


class _Comparison(Task):
    """The evaluations of models trained alone: whether they were read, and what they show."""

    __slots__ = (
        "chain",
        "found",
        "resolved",
    )

    def __init__(self, chain: _Chain, resolved: ResolvedChain, endpoint: StoreEndpoint) -> None:
        super().__init__(endpoint, chain.key.namespace)
        self.chain = chain
        self.resolved = resolved
        self.found: Measurement | Unmeasurable | None = None


class _Chain:
    """A chain that is followed."""

    __slots__ = (
        "comparison",
        "key",
        "notified_at",
        "readable_since",
        "record",
        "retry_seconds",
        "retry_timer",
        "source",
        "stages",
        "uid",
    )

    def __init__(self, key: Key, uid: str, source: _Source | NoAccess) -> None:
        self.key = key
        self.uid = uid
        self.source = source
        self.stages: dict[str, _Stage] = {}
        self.record: _Record | None = None
        self.comparison: _Comparison | None = None
        self.readable_since = steady()
        self.notified_at = float("-inf")  # monotonic: when mere progress was last reported
        self.retry_seconds = REFUSED_SECONDS[0]
        self.retry_timer: asyncio.TimerHandle | None = None

    def reference(self) -> ChainReference:
        """The chain as leases name it."""
        return ChainReference(namespace=self.key.namespace, name=self.key.name, uid=self.uid)


class StoreReader:
    """Reads the stages of many chains. Every method is called in the event loop that `start` is called in."""

    def __init__(
        self,
        on_change: Callable[[Key], None],
        *,
        threads: int = 8,
        requests_per_second: float = 50.0,
        artifact_check_seconds: float = 900.0,
        progress_seconds: float = 15.0,
        on_finished: Callable[[Key], None] | None = None,
        on_refused: Callable[[Store], None] | None = None,
        may_write: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` is called when something about a chain has changed, for mere progress every `progress_seconds`
        at most; `on_finished` (by default the same) when a stage is found complete; `on_refused` when a store refuses
        its credentials. `may_write` is asked before a record is written.
        """
        self.on_change = on_change
        self.on_finished = on_finished or on_change
        self.on_refused = on_refused
        self._may_write = may_write
        self._artifact_check_seconds = artifact_check_seconds
        self._progress_seconds = progress_seconds
        self._clock = clock
        self._chains: dict[Key, _Chain] = {}
        self._schedule = StoreSchedule(
            self._work,
            self._on_availability,
            threads=threads,
            requests_per_second=requests_per_second,
            clock=clock,
        )

    def __len__(self) -> int:
        """Chains that are followed."""
        return len(self._chains)

    def start(self) -> None:
        """Start reading."""
        self._schedule.start()

    async def close(self) -> None:
        """Stop. Pending records, and reads under way, get CLOSE_SECONDS."""
        waiting = [
            self._write(chain.record)
            for chain in self._chains.values()
            if chain.record is not None
            and chain.record.pending is not None
            and not chain.record.endpoint.unresponsive
        ]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), CLOSE_SECONDS)
        await self._schedule.close()

    # ---- what the reconciler calls

    def follow(
        self,
        key: Key,
        chain: ResolvedChain,
        store: Store | NoAccess,
        *,
        running: Mapping[str, int],
        starting: Set[str] = frozenset(),
        finished: Set[str],
        at_rest: Set[str],
        unasked: Set[str] = frozenset(),
    ) -> None:
        """Read these stages of the chain from now on: which attempts are under way (and of which of them no trainer
        runs yet), which stages are finished, and which can't start now; `unasked` are those of the last that nobody
        asks for. Idempotent.
        """
        known = self._chains.get(key)
        if known is None or known.uid != chain.chain.uid or not _is_same(known.source, store):
            known = self._follow_new(key, chain, store, known)
        if isinstance(known.source, NoAccess):
            self._schedule_retry(known)
        self._take_stages(known, chain)
        for stage in known.stages.values():
            attempt = running.get(stage.name)
            if attempt is not None:
                pace = _Pace.STARTING if stage.name in starting else _Pace.RUNNING
            elif stage.name in finished:
                pace = _Pace.FINISHED
            else:
                pace = _Pace.AT_REST if stage.name in at_rest else _Pace.WAITING
            if (pace, attempt) != (stage.pace, stage.attempt):
                self._change_pace(stage, pace, attempt)
            if pace is _Pace.AT_REST and stage.never_read and stage.name not in unasked:
                self._read_at_rest(stage)

    def refresh(self, key: Key, stage: str) -> None:
        """Something has happened to the stage: what is known of it is stale, and it is read at once."""
        chain = self._chains.get(key)
        found = chain.stages.get(stage) if chain is not None else None
        if found is not None:
            found.stale_before = self._clock()
            self._schedule.soon(found, urgent=True)

    def snapshot(self, key: Key) -> StoreSnapshot:
        """What is known of the chain now."""
        chain = self._chains.get(key)
        if chain is None:
            return StoreSnapshot({}, steady(), {})
        changed = {
            (stage.name, attempt): at
            for stage in chain.stages.values()
            for attempt, at in stage.changed_at.items()
        }
        if isinstance(chain.source, NoAccess):
            facts = StageFacts(problem=chain.source.problem, message=chain.source.message)
            return StoreSnapshot(dict.fromkeys(chain.stages, facts), chain.readable_since, changed)
        store, endpoint = chain.source
        known = {
            stage.name: facts
            for stage in chain.stages.values()
            if (facts := stage.known_facts) is not None and not stage.outdated
        }
        if endpoint.unresponsive:
            away = StageFacts(problem=StoreProblem.UNAVAILABLE, message=unresponsive_message(store))
            known = {
                stage.name: facts if facts is not None and facts.problem is not None else away
                for stage in chain.stages.values()
                if stage.pace is not _Pace.FINISHED
                for facts in [known.get(stage.name)]
            }
        read_at = {stage.name: stage.read_at for stage in chain.stages.values()}
        return StoreSnapshot(
            known, max(chain.readable_since, endpoint.readable_since), changed, read_at=read_at
        )

    def record(self, key: Key, chain: ResolvedChain, status: ChainStatus) -> None:
        """The chain's status has changed: write its record (for people, and for `modelchain report`) when the store
        allows. Only the newest is written.
        """
        known = self._chains.get(key)
        if known is None or isinstance(known.source, NoAccess):
            return
        record = known.record
        if record is None:
            record = known.record = _Record(known, known.source.endpoint)
        now = self._clock()
        if now - record.refused_at < REFUSED_RECORD_SECONDS:
            return
        meaning = hash(without_progress(status).model_dump_json())
        if record.meaning == meaning and now - record.written_at < RECORD_SECONDS:
            return
        record.meaning, record.written_at = meaning, now
        record.pending = record_object(chain, status, time.time())
        self._schedule.soon(record)

    def measure(self, key: Key, chain: ResolvedChain) -> Measurement | Unmeasurable | None:
        """What models trained alone show, all of which are complete; None until their evaluations were read, after
        which `on_change` is called.
        """
        known = self._chains.get(key)
        if known is None or isinstance(known.source, NoAccess):
            return None
        comparison = known.comparison
        if comparison is None or comparison.resolved != chain:
            if comparison is not None:
                self._schedule.drop(comparison)
            comparison = known.comparison = _Comparison(known, chain, known.source.endpoint)
            self._schedule.soon(comparison)
        return comparison.found

    def forget(self, key: Key) -> None:
        """The chain is gone."""
        chain = self._chains.pop(key, None)
        if chain is not None:
            self._release(chain)

    # ---- chains and their stages

    def _follow_new(
        self, key: Key, chain: ResolvedChain, store: Store | NoAccess, known: _Chain | None
    ) -> _Chain:
        """Start with a chain that is new, was created again, or has another store."""
        source = (
            store
            if isinstance(store, NoAccess)
            else _Source(store, self._schedule.acquire(_endpoint_of(chain)))
        )
        new = self._chains[key] = _Chain(key, chain.chain.uid, source)
        if known is not None:
            if known.uid == chain.chain.uid:
                self._take_stages(new, chain)
                for stage in new.stages.values():
                    if stage.name in known.stages:  # the progress of its attempts stays known
                        stage.changed_at = known.stages[stage.name].changed_at
            self._release(known)
        return new

    def _schedule_retry(self, chain: _Chain) -> None:
        """Queue the chain again after a while: somebody may fix what keeps its store from being read."""
        if chain.retry_timer is None:
            loop = asyncio.get_running_loop()
            chain.retry_timer = loop.call_later(chain.retry_seconds, self._retry, chain)
            chain.retry_seconds = min(REFUSED_SECONDS[1], 1.5 * chain.retry_seconds)

    def _retry(self, chain: _Chain) -> None:
        chain.retry_timer = None
        if self._chains.get(chain.key) is chain:
            self.on_change(chain.key)

    def _release(self, chain: _Chain) -> None:
        if chain.retry_timer is not None:
            chain.retry_timer.cancel()
        for stage in chain.stages.values():
            self._schedule.drop(stage)
        for task in (chain.record, chain.comparison):
            if task is not None:
                self._schedule.drop(task)
        if isinstance(chain.source, _Source):
            self._schedule.release(chain.source.endpoint)

    def _take_stages(self, chain: _Chain, resolved: ResolvedChain) -> None:
        """Make the stages those of the spec."""
        if [(stage.name, stage.digest) for stage in chain.stages.values()] == [
            (stage.name, stage.digest) for stage in resolved.all_stages
        ]:
            return
        old, chain.stages = chain.stages, {}
        endpoint = chain.source.endpoint if isinstance(chain.source, _Source) else _NO_ENDPOINT
        for stage in resolved.all_stages:
            known = old.pop(stage.name, None)
            if known is not None and (known.digest, known.folder) == (stage.digest, stage.folder):
                chain.stages[stage.name] = known
                continue
            new = chain.stages[stage.name] = _Stage(chain, stage, endpoint)
            if known is not None:
                new.changed_at = known.changed_at
                self._schedule.drop(known)
        for gone in old.values():
            self._schedule.drop(gone)

    def _change_pace(self, stage: _Stage, pace: _Pace, attempt: int | None) -> None:
        was, stage.pace, stage.attempt, stage.interval = stage.pace, pace, attempt, WAITING_SECONDS
        if isinstance(stage.chain.source, NoAccess):
            return
        if pace is _Pace.FINISHED:
            stage.probe = None
            if stage.facts is not None and stage.facts.manifest is not None:
                stage.facts = None
            else:  # another operator saw its end: the facts are from before
                stage.stale_before = self._clock()
        elif was is _Pace.FINISHED or (was is _Pace.AT_REST and attempt is None and self._is_stale(stage)):
            stage.stale_before = self._clock()  # nothing may start on facts that old
        if stage.never_read and pace is _Pace.FINISHED:
            within = min(self._artifact_check_seconds, FIRST_CHECK_SECONDS * len(self._chains))
            self._schedule.later(stage, within * random.random())  # noqa: S311
        elif stage.never_read:
            if pace is not _Pace.AT_REST:
                self._schedule.soon(stage, urgent=True)
        elif stage.outdated or pace is _Pace.RUNNING:
            self._schedule.soon(stage, urgent=stage.outdated)
        elif (seconds := self._interval_of(stage)) is not None:
            self._schedule.later(stage, seconds)

    def _read_at_rest(self, stage: _Stage) -> None:
        """Somebody asks for a stage that can't start: it is read once."""
        if not isinstance(stage.chain.source, NoAccess):
            self._schedule.soon(stage)

    def _is_stale(self, stage: _Stage) -> bool:
        return self._clock() - stage.probed_at > WAITING_SECONDS

    def _interval_of(self, stage: _Stage) -> float | None:
        """Seconds until it is read again; None: when something happens."""
        if stage.pace is _Pace.RUNNING:
            return RUNNING_SECONDS
        if stage.pace is _Pace.FINISHED:
            return self._artifact_check_seconds
        if stage.pace is _Pace.AT_REST:
            return None if stage.facts is None or stage.facts.problem is None else AT_REST_SECONDS
        if stage.facts is not None and stage.facts.problem is StoreProblem.UNAVAILABLE:
            return WAITING_SECONDS
        if stage.pace is _Pace.STARTING:
            return STARTING_SECONDS
        leased = stage.facts is not None and stage.facts.lease is not None and stage.facts.lease.fresh
        return min(stage.interval, LEASED_SECONDS if leased else LONGEST_WAITING_SECONDS)

    # ---- reading and writing

    async def _work(self, task: Task) -> float | None:
        if isinstance(task, _Record):
            return await self._write(task)
        if isinstance(task, _Comparison):
            return await self._measure(task)
        assert isinstance(task, _Stage)
        await self._probe_and_notify(task)
        if task.outdated and not task.dropped:
            task.rerun = True
        return self._interval_of(task)

    async def _probe_and_notify(self, stage: _Stage) -> None:
        """Read the stage, and notify if something has changed."""
        before = stage.facts
        first = stage.outdated
        await self._probe(stage)
        if stage.dropped or (stage.facts == before and not first):
            stage.interval = min(LONGEST_WAITING_SECONDS, stage.interval * 1.5)
            return
        stage.interval = WAITING_SECONDS
        if stage.facts is not None and stage.facts.manifest is not None:
            for each in list(stage.chain.stages.values()):  # that may start now: read before anybody asks
                waits = stage.name in each.needs and each.pace in (_Pace.AT_REST, _Pace.WAITING)
                if waits and self._schedule.begin(each):
                    try:
                        await self._probe(each)
                    finally:
                        self._schedule.end(each, self._interval_of(each))
        self._notify(stage, before, first=first)

    async def _probe(self, stage: _Stage) -> None:
        """Read the stage once, and keep its facts."""
        source = stage.chain.source
        if isinstance(source, NoAccess):
            return
        store, endpoint = source
        probe = stage.probe or StageProbe(store, stage.chain.reference(), stage.folder, stage.digest)
        # Without an attempt that has run or can end, a probe has no state worth keeping.
        keep = stage.pace is not _Pace.FINISHED and (stage.pace is not _Pace.AT_REST or probe.has_history)
        stage.probe = probe if keep else None
        probe.follow(stage.attempt)
        before = stage.facts
        whole = stage.outdated or before is None or before.problem is not None
        began, read_at = self._clock(), steady()
        try:
            facts = await self._schedule.call(endpoint, lambda: probe.read(whole=whole))
        except Exception as error:
            facts = problem_of(error, store, quoting=False)
            if facts.problem is StoreProblem.UNREADABLE:
                logger.exception(
                    "chain %s, stage %s: reading the store has failed", stage.chain.key, stage.name
                )
            if facts.problem in (StoreProblem.FORBIDDEN, StoreProblem.MISCONFIGURED) and not stage.dropped:
                self._schedule_retry(stage.chain)
                if self.on_refused is not None:
                    self.on_refused(store)
            logger.info("chain %s, stage %s: %s", stage.chain.key, stage.name, error)
        if stage.dropped:
            return
        if facts.problem is None:
            stage.chain.retry_seconds = REFUSED_SECONDS[0]
        if (
            before is not None
            and before.problem is StoreProblem.UNAVAILABLE
            and facts.problem is not before.problem
        ):
            stage.chain.readable_since = steady()
        if probe.progress_changed_at:
            stage.changed_at.update(probe.progress_changed_at)
        stage.probed_at, stage.read_at = began, read_at
        # Of a finished stage, only its presence matters.
        stage.facts = None if stage.pace is _Pace.FINISHED and facts.manifest is not None else facts

    def _notify(self, stage: _Stage, before: StageFacts | None, *, first: bool) -> None:
        """Call `on_change` or `on_finished`; for mere progress, not too often."""
        now = self._clock()
        if stage.pace is _Pace.FINISHED and stage.facts is None and before is None:
            return
        if not first and _same_but_progress(before, stage.facts):
            if now - stage.chain.notified_at < self._progress_seconds:
                return
            stage.chain.notified_at = now
        finished = stage.facts is not None and stage.facts.manifest is not None
        (self.on_finished if finished else self.on_change)(stage.chain.key)

    def _on_availability(self, endpoint: StoreEndpoint) -> None:
        """An endpoint has become unresponsive, or answers again: queue the chains whose store it is."""
        for chain in list(self._chains.values()):
            if not (isinstance(chain.source, _Source) and chain.source.endpoint is endpoint):
                continue
            unfinished = [stage for stage in chain.stages.values() if stage.pace is not _Pace.FINISHED]
            for stage in unfinished:
                if stage.facts is not None and stage.facts.problem is StoreProblem.UNAVAILABLE:
                    self._schedule.soon(stage, urgent=stage.pace is not _Pace.AT_REST)
            if unfinished:
                self.on_change(chain.key)

    async def _measure(self, comparison: _Comparison) -> float | None:
        source = comparison.chain.source
        if isinstance(source, NoAccess):
            return None
        try:
            found = await self._schedule.call(
                source.endpoint,
                read_measurement,
                source.store,
                comparison.resolved,
                seconds=MEASURING_SECONDS,
            )
        except StoreUnavailable:
            return WAITING_SECONDS
        except ModelChainError as error:
            found = Unmeasurable(error.public)
        except Exception as error:
            logger.exception("chain %s: the evaluations can't be read", comparison.chain.key)
            found = Unmeasurable(f"reading their evaluations has failed: unforeseen {type(error).__name__}")
        if not comparison.dropped:
            comparison.found = found
            self.on_change(comparison.chain.key)
        return None

    async def _write(self, record: _Record) -> float | None:
        source, pending = record.chain.source, record.pending
        if pending is None or isinstance(source, NoAccess) or not self._may_write():
            return None
        try:
            await self._schedule.call(source.endpoint, source.store.put, *pending)
        except StoreUnavailable:
            return WAITING_SECONDS  # still pending: tried again
        except ModelChainError as error:
            record.refused_at, record.pending = self._clock(), None
            logger.info("the record of chain %s is not written: %s", record.chain.key, error)
            return None
        if record.pending is pending:
            record.pending = None
            return None
        return 0.0


_NO_ENDPOINT = StoreEndpoint("nowhere")  # of stages whose store can't be opened: they are never scheduled


def _is_same(source: _Source | NoAccess, store: Store | NoAccess) -> bool:
    return source == store if isinstance(source, NoAccess) else source.store is store


def _endpoint_of(chain: ResolvedChain) -> str:
    """The name of the endpoint of this chain's store."""
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
