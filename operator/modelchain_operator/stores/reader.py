"""What the stores say of all chains: looked at in threads, each stage at its own pace, never on the event loop.

A stage that trains is looked at every few seconds, one whose turn has come the more rarely the longer nothing
happens to it, one at rest (its turn has not come, its chain is suspended, or it is finished) from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

from modelchain.chain_record import record_object
from modelchain.errors import ModelChainError
from modelchain.measuring import read_measurement
from modelchain.reconcile.observation import StageFacts, StoreProblem, Unmeasurable
from modelchain.resolved import ChainReference, ResolvedChain, ResolvedStage
from modelchain.stage_probe import StageLook, problem_of, silence
from modelchain.status import ChainStatus, Measurement, without_progress
from modelchain.store import Store, StoreUnavailable
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.stores.access import NoAccess
from modelchain_operator.stores.schedule import CLOSE_SECONDS, Place, StoreSchedule, Task

logger = logging.getLogger(__name__)

RUNNING_SECONDS = 5.0  # between looks at a stage that trains
STARTING_SECONDS = 60.0  # at one whose trainer does not run yet: it says nothing
WAITING_SECONDS = 5.0  # at one whose turn has come; half as long again after each that shows nothing new
LONGEST_WAITING_SECONDS = 60.0
AT_REST_SECONDS = 900.0  # at one that can't begin: before it does, it is looked at anew
LEASED_SECONDS = 15.0  # at one that somebody else trains
REFUSED_SECONDS = (
    20.0,
    300.0,
)  # before a chain whose store can't be read has another pass: first, and longest
RECORD_SECONDS = 60.0  # between records of a chain while only its progress changes
REFUSED_RECORD_SECONDS = 3600.0  # before the next record where the store did not let us write one


@dataclass(frozen=True)
class Seen:
    """What the last looks showed of a chain."""

    facts: Mapping[str, StageFacts]  # by stage; one that was not looked at since it had to be is missing
    readable_since: float  # seconds since the epoch: the store has answered without a gap since
    progress_changed_at: Mapping[tuple[str, int], float]  # by stage and attempt, by our clock
    measurement: Measurement | Unmeasurable | None = None  # of models trained alone, where it was asked for
    read_at: Mapping[str, float] = field(default_factory=dict)  # by stage: when the read of its facts began


_PRESENT = StageFacts(present=True)


class _Pace(Enum):
    """Why a stage is looked at."""

    NEW = "new"  # nobody has said yet
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    AT_REST = "at rest"
    FINISHED = "finished"


class _Source(NamedTuple):
    """Where a chain's artifacts are."""

    store: Store
    place: Place


class _Stage(Task):
    """What is remembered of a stage between looks; little, where it is finished."""

    __slots__ = (
        "attempt",
        "chain",
        "changed_at",
        "digest",
        "facts",
        "folder",
        "interval",
        "look",
        "looked_at",
        "name",
        "needs",
        "pace",
        "read_at",
        "wanted_since",
    )

    def __init__(self, chain: _Chain, stage: ResolvedStage, place: Place) -> None:
        super().__init__(place)
        self.chain = chain
        self.name = sys.intern(stage.name)  # thousands of chains call theirs alike
        self.folder = stage.folder
        self.digest = stage.digest
        self.needs = tuple(sys.intern(other.name) for other in stage.needs)
        self.pace = _Pace.NEW
        self.attempt: int | None = None  # the one that runs
        self.facts: StageFacts | None = None  # None: not looked at, or finished and there
        self.looked_at = float("-inf")  # monotonic: when the look began that showed the facts
        self.read_at = float("-inf")  # seconds since the epoch: likewise
        self.wanted_since = 0.0  # monotonic: an older look is not good enough
        self.interval = WAITING_SECONDS
        self.look: StageLook | None = None
        self.changed_at: dict[int, float] = {}  # by attempt, seconds since the epoch

    @property
    def known_facts(self) -> StageFacts | None:
        """What the last look showed; None before the first."""
        if self.facts is None and self.pace is _Pace.FINISHED and self.looked_at > 0:
            return _PRESENT
        return self.facts

    @property
    def outdated(self) -> bool:
        """Whether it has to be looked at before anything can be said of it."""
        return self.looked_at < self.wanted_since


class _Record(Task):
    """The chain's record in the store: what has to be written, and what was."""

    __slots__ = ("chain", "meaning", "pending", "refused_at", "written_at")

    def __init__(self, chain: _Chain, place: Place) -> None:
        super().__init__(place)
        self.chain = chain
        self.pending: tuple[str, bytes] | None = None
        self.meaning = 0  # hash of the last status less its progress
        self.written_at = float("-inf")  # monotonic
        self.refused_at = float("-inf")


class _Comparison(Task):
    """The evaluations of models trained alone: to be read, and what they showed."""

    __slots__ = ("chain", "found", "resolved")

    def __init__(self, chain: _Chain, resolved: ResolvedChain, place: Place) -> None:
        super().__init__(place)
        self.chain = chain
        self.resolved = resolved
        self.found: Measurement | Unmeasurable | None = None


class _Chain:
    """A chain that is followed."""

    __slots__ = (
        "comparison",
        "key",
        "patience",
        "readable_since",
        "record",
        "reminder",
        "source",
        "stages",
        "told_at",
        "uid",
    )

    def __init__(self, key: Key, uid: str, source: _Source | NoAccess) -> None:
        self.key = key
        self.uid = uid
        self.source = source
        self.stages: dict[str, _Stage] = {}
        self.record: _Record | None = None
        self.comparison: _Comparison | None = None
        self.readable_since = time.time()
        self.told_at = float("-inf")  # monotonic: when mere progress was last told
        self.patience = REFUSED_SECONDS[0]
        self.reminder: asyncio.TimerHandle | None = None

    def reference(self) -> ChainReference:
        """The chain as leases name it."""
        return ChainReference(namespace=self.key.namespace, name=self.key.name, uid=self.uid)


class StoreReader:
    """Follows the stages of many chains. Every method is called in the event loop that `start` is called in."""

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
        """`on_change` is called when something is new about a chain, for mere progress every `progress_seconds`
        at most; `on_finished` (by default the same) when a stage is found complete; `on_refused` when a store refuses
        its keys. `may_write` is asked before a record is written.
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
            self._on_silence,
            threads=threads,
            requests_per_second=requests_per_second,
            clock=clock,
        )

    def __len__(self) -> int:
        """Chains that are followed."""
        return len(self._chains)

    def start(self) -> None:
        """Begin to look."""
        self._schedule.start()

    async def close(self) -> None:
        """End. Records that wait, and what is under way, get a few seconds."""
        waiting = [
            self._write(chain.record)
            for chain in self._chains.values()
            if chain.record is not None and chain.record.pending is not None and not chain.record.place.silent
        ]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), CLOSE_SECONDS)
        await self._schedule.close()

    # ---- what the reconciler says and asks

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
    ) -> None:
        """Follow these stages of the chain from now on: which attempts are under way (and of which of them no trainer
        runs yet), which stages are finished, and which can't begin now. Saying the same again changes nothing.
        """
        known = self._chains.get(key)
        if known is None or known.uid != chain.chain.uid or not _is_same(known.source, store):
            known = self._follow_anew(key, chain, store, known)
        if isinstance(known.source, NoAccess):
            self._remind(known)
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

    def look_again(self, key: Key, stage: str) -> None:
        """Something has happened to the stage: what was seen before says nothing any more."""
        chain = self._chains.get(key)
        found = chain.stages.get(stage) if chain is not None else None
        if found is not None:
            found.wanted_since = self._clock()
            self._schedule.soon(found, urgent=True)

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
        if isinstance(chain.source, NoAccess):
            facts = StageFacts(problem=chain.source.problem, message=chain.source.message)
            return Seen(dict.fromkeys(chain.stages, facts), chain.readable_since, changed)
        store, place = chain.source
        known = {
            stage.name: facts
            for stage in chain.stages.values()
            if (facts := stage.known_facts) is not None and not stage.outdated
        }
        if place.silent:
            away = StageFacts(problem=StoreProblem.UNAVAILABLE, message=silence(store))
            known = {
                stage.name: facts if facts is not None and facts.problem is not None else away
                for stage in chain.stages.values()
                if stage.pace is not _Pace.FINISHED
                for facts in [known.get(stage.name)]
            }
        read_at = {stage.name: stage.read_at for stage in chain.stages.values()}
        return Seen(known, max(chain.readable_since, place.readable_since), changed, read_at=read_at)

    def record(self, key: Key, chain: ResolvedChain, status: ChainStatus) -> None:
        """The chain's status has changed: write its record (for people, and for `modelchain report`) when the
        store lets us. Only the newest counts.
        """
        known = self._chains.get(key)
        if known is None or isinstance(known.source, NoAccess):
            return
        record = known.record
        if record is None:
            record = known.record = _Record(known, known.source.place)
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
        which something is new about the chain.
        """
        known = self._chains.get(key)
        if known is None or isinstance(known.source, NoAccess):
            return None
        comparison = known.comparison
        if comparison is None or comparison.resolved != chain:
            if comparison is not None:
                self._schedule.drop(comparison)
            comparison = known.comparison = _Comparison(known, chain, known.source.place)
            self._schedule.soon(comparison)
        return comparison.found

    def forget(self, key: Key) -> None:
        """The chain is gone."""
        chain = self._chains.pop(key, None)
        if chain is not None:
            self._leave(chain)

    # ---- chains and their stages

    def _follow_anew(
        self, key: Key, chain: ResolvedChain, store: Store | NoAccess, known: _Chain | None
    ) -> _Chain:
        """Follow a chain that is another one now, or whose store is."""
        source = (
            store if isinstance(store, NoAccess) else _Source(store, self._schedule.use(_place_of(chain)))
        )
        new = self._chains[key] = _Chain(key, chain.chain.uid, source)
        if known is not None:
            if known.uid == chain.chain.uid:
                self._take_stages(new, chain)
                for stage in new.stages.values():
                    if stage.name in known.stages:  # what its attempts did stays true
                        stage.changed_at = known.stages[stage.name].changed_at
            self._leave(known)
        return new

    def _remind(self, chain: _Chain) -> None:
        """Have a pass of the chain from time to time: somebody may mend what keeps its store from being read."""
        if chain.reminder is None:
            loop = asyncio.get_running_loop()
            chain.reminder = loop.call_later(chain.patience, self._tell_reminded, chain)
            chain.patience = min(REFUSED_SECONDS[1], 1.5 * chain.patience)

    def _tell_reminded(self, chain: _Chain) -> None:
        chain.reminder = None
        if self._chains.get(chain.key) is chain:
            self.on_change(chain.key)

    def _leave(self, chain: _Chain) -> None:
        if chain.reminder is not None:
            chain.reminder.cancel()
        for stage in chain.stages.values():
            self._schedule.drop(stage)
        for task in (chain.record, chain.comparison):
            if task is not None:
                self._schedule.drop(task)
        if isinstance(chain.source, _Source):
            self._schedule.leave(chain.source.place)

    def _take_stages(self, chain: _Chain, resolved: ResolvedChain) -> None:
        """Bring the stages to those of the spec."""
        if [(stage.name, stage.digest) for stage in chain.stages.values()] == [
            (stage.name, stage.digest) for stage in resolved.all_stages
        ]:
            return
        old, chain.stages = chain.stages, {}
        place = chain.source.place if isinstance(chain.source, _Source) else _NOWHERE
        for stage in resolved.all_stages:
            known = old.pop(stage.name, None)
            if known is not None and (known.digest, known.folder) == (stage.digest, stage.folder):
                chain.stages[stage.name] = known
                continue
            new = chain.stages[stage.name] = _Stage(chain, stage, place)
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
            stage.look = None
            if stage.facts is not None and stage.facts.manifest is not None:
                stage.facts = None
            else:  # another operator saw its end: what we saw is from before
                stage.wanted_since = self._clock()
        elif was is _Pace.FINISHED or (was is _Pace.AT_REST and attempt is None and self._is_old(stage)):
            stage.wanted_since = self._clock()  # nothing may begin on what was seen that long ago
        if stage.looked_at == float("-inf"):  # at first sight; only what may go on is urgent
            self._schedule.soon(stage, urgent=pace in (_Pace.STARTING, _Pace.RUNNING, _Pace.WAITING))
        elif stage.outdated or pace is _Pace.RUNNING:
            self._schedule.soon(stage, urgent=stage.outdated)
        else:
            self._schedule.later(stage, self._interval_of(stage))

    def _is_old(self, stage: _Stage) -> bool:
        return self._clock() - stage.looked_at > WAITING_SECONDS

    def _interval_of(self, stage: _Stage) -> float:
        if stage.pace is _Pace.RUNNING:
            return RUNNING_SECONDS
        if stage.pace is _Pace.FINISHED:
            return self._artifact_check_seconds
        if stage.pace is _Pace.AT_REST:
            return AT_REST_SECONDS
        if stage.facts is not None and stage.facts.problem is StoreProblem.UNAVAILABLE:
            return WAITING_SECONDS
        if stage.pace is _Pace.STARTING:
            return STARTING_SECONDS
        leased = stage.facts is not None and stage.facts.lease is not None and stage.facts.lease.fresh
        return min(stage.interval, LEASED_SECONDS if leased else LONGEST_WAITING_SECONDS)

    # ---- looking and writing

    async def _work(self, task: Task) -> float | None:
        if isinstance(task, _Record):
            return await self._write(task)
        if isinstance(task, _Comparison):
            return await self._measure(task)
        assert isinstance(task, _Stage)
        await self._look_at(task)
        if task.outdated and not task.dropped:
            task.again = True
        return self._interval_of(task)

    async def _look_at(self, stage: _Stage) -> None:
        """Look, and say so if there is something new."""
        before = stage.facts
        first = stage.outdated
        await self._look(stage)
        if stage.dropped or (stage.facts == before and not first):
            stage.interval = min(LONGEST_WAITING_SECONDS, stage.interval * 1.5)
            return
        stage.interval = WAITING_SECONDS
        if stage.facts is not None and stage.facts.manifest is not None:
            for each in list(
                stage.chain.stages.values()
            ):  # whose turn comes now: a fresh look before anybody asks
                waits = stage.name in each.needs and each.pace in (_Pace.AT_REST, _Pace.WAITING)
                if waits and self._schedule.begin(each):
                    try:
                        await self._look(each)
                    finally:
                        self._schedule.end(each, self._interval_of(each))
        self._tell(stage, before, first=first)

    async def _look(self, stage: _Stage) -> None:
        """One look; the stage then knows its facts."""
        source = stage.chain.source
        if isinstance(source, NoAccess):
            return
        store, place = source
        look = stage.look or StageLook(store, stage.chain.reference(), stage.folder, stage.digest)
        # A look remembers nothing worth keeping where no attempt has run or can end.
        keep = stage.pace is not _Pace.FINISHED and (stage.pace is not _Pace.AT_REST or look.remembers)
        stage.look = look if keep else None
        look.follow(stage.attempt)
        before = stage.facts
        whole = stage.outdated or before is None or before.problem is not None
        began, read_at = self._clock(), time.time()
        try:
            facts = await self._schedule.call(place, lambda: look.look(whole=whole))
        except Exception as error:
            facts = problem_of(error, store, quoting=False)
            if facts.problem is StoreProblem.UNREADABLE:
                logger.exception(
                    "chain %s, stage %s: reading the store has failed", stage.chain.key, stage.name
                )
            if facts.problem in (StoreProblem.FORBIDDEN, StoreProblem.MISCONFIGURED) and not stage.dropped:
                self._remind(stage.chain)
                if self.on_refused is not None:
                    self.on_refused(store)
            logger.info("chain %s, stage %s: %s", stage.chain.key, stage.name, error)
        if stage.dropped:
            return
        if (
            before is not None
            and before.problem is StoreProblem.UNAVAILABLE
            and facts.problem is not before.problem
        ):
            stage.chain.readable_since = time.time()
        if look.progress_changed_at:
            stage.changed_at.update(look.progress_changed_at)
        stage.looked_at, stage.read_at = began, read_at
        # Of a finished stage, all that matters is that it is there.
        stage.facts = None if stage.pace is _Pace.FINISHED and facts.manifest is not None else facts

    def _tell(self, stage: _Stage, before: StageFacts | None, *, first: bool) -> None:
        """Say that there is something new, of mere progress only from time to time."""
        now = self._clock()
        if stage.pace is _Pace.FINISHED and stage.facts is None and before is None:
            return
        if not first and _same_but_progress(before, stage.facts):
            if now - stage.chain.told_at < self._progress_seconds:
                return
            stage.chain.told_at = now
        finished = stage.facts is not None and stage.facts.manifest is not None
        (self.on_finished if finished else self.on_change)(stage.chain.key)

    def _on_silence(self, place: Place) -> None:
        """A place has fallen silent, or answers again: those who wait for it want to know."""
        for chain in list(self._chains.values()):
            if not (isinstance(chain.source, _Source) and chain.source.place is place):
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
                source.place, read_measurement, source.store, comparison.resolved
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
            await self._schedule.call(source.place, source.store.put, *pending)
        except StoreUnavailable:
            return WAITING_SECONDS  # still the newest: tried again
        except ModelChainError as error:
            record.refused_at, record.pending = self._clock(), None
            logger.info("the record of chain %s is not written: %s", record.chain.key, error)
            return None
        if record.pending is pending:
            record.pending = None
            return None
        return 0.0


_NOWHERE = Place("nowhere")  # of stages whose store can't be read: they are never scheduled


def _is_same(source: _Source | NoAccess, store: Store | NoAccess) -> bool:
    return source == store if isinstance(source, NoAccess) else source.store is store


def _place_of(chain: ResolvedChain) -> str:
    """What answers, or does not, for this chain's store."""
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
