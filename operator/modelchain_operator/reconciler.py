"""One pass over one chain: snapshot, decide, write the status, act.

A pass begins with what is known already; a chain at rest ends there and costs no request. Before anything is done,
or written that later decisions build on, jobs and pods are read from the API server itself, and `decide` runs again on
that: a stale cache, a second operator or a lost event can delay a chain, never make it do the wrong thing. Two things
are done without that read, because the API server takes them only if nobody has changed the chain since: reporting
progress, and starting a stage that never had a job.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from modelchain.reconcile.actions import Decision, StartJob
from modelchain.reconcile.decide import decide
from modelchain.reconcile.refused import decide_refused
from modelchain.status import ChainPhase, ChainStatus
from modelchain_operator.acceptance import Acceptance, Accepted, Refused
from modelchain_operator.chain_limit import ChainLimit
from modelchain_operator.deleted_chains import end_jobs
from modelchain_operator.executor import Executor
from modelchain_operator.informers.cache import Cache
from modelchain_operator.job_writer import JobWriter
from modelchain_operator.kubernetes.api import Conflict, Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.live_view import LiveView
from modelchain_operator.observe import ChainMemory, ClusterSnapshot, observe
from modelchain_operator.pending_diagnosis import PendingDiagnosis
from modelchain_operator.preconditions import due_in, is_still_asked_for, may_act_on_cache
from modelchain_operator.refused_chains import RefusedChains
from modelchain_operator.status_writer import StatusWriter
from modelchain_operator.store_freshness import expire_artifacts, expire_ended, reported_missing
from modelchain_operator.stores.views import StoreViews
from modelchain_operator.telemetry.metrics import Metrics
from modelchain_operator.work_queue import KeyQueue

AT_REST = (ChainPhase.COMPLETE, ChainPhase.FAILED, ChainPhase.SUSPENDED)  # passes are rare then
SNAPSHOT_SECONDS = 2.0  # for which a read of the API server is recent enough to create or delete a job on it
RECHECK_SECONDS = 1.0  # before the next pass after an action, if no watch shows its outcome


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    """Reconciles chains, one pass at a time for each. Used in one event loop."""

    cache: Cache
    queue: KeyQueue
    cluster: LiveView
    stores: StoreViews
    acceptance: Acceptance
    refused: RefusedChains
    diagnosis: PendingDiagnosis
    limit: ChainLimit
    statuses: StatusWriter
    executor: Executor
    job_writer: JobWriter
    metrics: Metrics
    progress_seconds: float  # between writes of a chain where only progress has changed
    memories: dict[Key, ChainMemory] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> None:
        """One pass over a chain. Raises ApiError where the API server could not be asked."""
        body, memory = self._load(key)
        if body is None or memory is None:
            return
        if body["metadata"].get("deletionTimestamp") is not None:
            self.stores.forget(key)
            if await end_jobs(body, memory, self.cluster, self.job_writer):
                self.queue.add_after(key, RECHECK_SECONDS)
            return
        accepted = await self.refused.accept(body, memory)
        if isinstance(accepted, Refused):
            await self.refused.report(key, body, accepted, memory)
            return
        snapshot = self.cluster.cached(body, memory)
        decision = await self._decide(key, snapshot, accepted, memory)
        if decision is None:  # the store was not read yet; the chain is queued when it was
            if body.get("status", {}).get("phase") in (
                None,
                *AT_REST,
            ):  # thousands may wait for that after a restart
                self.acceptance.forget(body)
            return
        if not accepted.problems:
            self.metrics.chain_accepted(key, accepted.chain, accepted.plan)
        probe = any(time.monotonic() >= refusal.ask_at for refusal in memory.refusals.values())
        if not probe and not self._is_due(key, snapshot, decision, memory):
            self._schedule(key, body, decision, memory)
        elif not probe and may_act_on_cache(snapshot, accepted.chain, decision, memory):
            try:
                await self._carry_out(key, snapshot, accepted, decision, memory, seen_at=time.monotonic())
            except Conflict:  # the cache is stale
                await self._carry_out_live(key, memory)
        else:
            await self._carry_out_live(key, memory)

    def _load(self, key: Key) -> tuple[Object | None, ChainMemory | None]:
        """The chain as it is in the cache, and its state between passes; None if it is gone."""
        cached, memory = self.cache.chain(key), self.memories.get(key)
        if cached is None or (memory is not None and memory.uid != cached.uid):
            memory = self._forget(key)
        if cached is None:
            return None, None
        if memory is None:
            memory = self.memories[key] = ChainMemory(uid=cached.uid)
        return cached.body(), memory

    def _forget(self, key: Key) -> None:
        self.memories.pop(key, None)
        self.stores.forget(key)
        self.metrics.chain_gone(key)

    # ---- snapshot and decide

    async def _decide(
        self, key: Key, snapshot: ClusterSnapshot, accepted: Accepted, memory: ChainMemory
    ) -> Decision | None:
        """What to do; None if the store has to be read first, after which the chain is queued again."""
        now, status = time.time(), snapshot.status
        stores = await self.stores.snapshot(key, accepted, status)
        if stores is None or expire_artifacts(key, status, memory, self.stores):
            return None
        observed = observe(snapshot, accepted, stores, memory, not_served=self.cluster.not_served, now=now)
        await self.diagnosis.update(key, snapshot, observed, memory)
        if expire_ended(key, observed, memory, self.stores):
            return None
        # From here on nothing is awaited, so that no two chains take the same place.
        observed = replace(observed, namespace_limit=self.limit.refusal(key, snapshot.body))
        chain, problems = accepted.chain, accepted.problems
        decision = (
            decide_refused(chain, observed, problems, generation=snapshot.generation, now=now)
            if problems
            else decide(chain, observed, now)
        )
        self.limit.decided(key, starts=any(isinstance(action, StartJob) for action in decision.actions))
        for stage in decision.reads:  # the chain is queued again when they were read
            self.stores.refresh(key, stage)
        return decision

    def _is_due(self, key: Key, snapshot: ClusterSnapshot, decision: Decision, memory: ChainMemory) -> bool:
        """Whether there is something to do or to write now. If that is due later, the chain is queued for then."""
        after = self.statuses.as_stored(decision.status)
        wait = due_in(snapshot.status, after, decision, memory, self.progress_seconds)
        if wait:
            self.queue.add_after(key, wait)
        return wait == 0

    # ---- write and act

    async def _carry_out_live(self, key: Key, memory: ChainMemory) -> None:
        """Read from the API server itself, decide on that, write the status, act."""
        body = await self.cluster.chain(key)
        if body is None or body["metadata"].get("deletionTimestamp") is not None:
            self.queue.add(key)
            return
        accepted = await self.refused.accept(body, memory)
        if isinstance(accepted, Refused):
            self.queue.add(key)
            return
        await self.executor.probe_refusals(body, accepted, memory)
        seen_at = time.monotonic()
        snapshot = await self.cluster.live(body, memory, accepted)
        decision = await self._decide(key, snapshot, accepted, memory)
        if decision is not None:
            await self._carry_out(key, snapshot, accepted, decision, memory, seen_at=seen_at)

    async def _carry_out(
        self,
        key: Key,
        snapshot: ClusterSnapshot,
        accepted: Accepted,
        decision: Decision,
        memory: ChainMemory,
        *,
        seen_at: float,
    ) -> None:
        """Write the status; then act, as long as a fresh snapshot still asks for it. Raises Conflict if the chain was
        changed since the decision.
        """
        body = await self._write(key, snapshot, accepted, decision.status, memory)
        acted = False
        for action in decision.actions:
            if acted or time.monotonic() - seen_at > SNAPSHOT_SECONDS:
                seen_at = time.monotonic()
                snapshot = await self.cluster.live(body, memory, accepted)
                again = await self._decide(key, snapshot, accepted, memory)
                if again is None or not is_still_asked_for(action, again):
                    break
            await self.executor.carry_out(key, snapshot, accepted, action, memory)
            acted = True
        if acted:
            self.queue.add_after(key, RECHECK_SECONDS)
        self._schedule(key, body, decision, memory)

    async def _write(
        self,
        key: Key,
        snapshot: ClusterSnapshot,
        accepted: Accepted,
        status: ChainStatus,
        memory: ChainMemory,
    ) -> Object:
        if snapshot.status == self.statuses.as_stored(status):
            return snapshot.body
        written = await self.statuses.write(key, snapshot.body, snapshot.status, status)
        memory.written_at = time.monotonic()
        memory.ending_since = None
        memory.written_version = written["metadata"]["resourceVersion"]
        memory.reported_missing = reported_missing(status)
        if not accepted.problems:  # the record is of the whole chain
            await self.stores.written(key, accepted, status)
        return written

    def _schedule(self, key: Key, body: Object, decision: Decision, memory: ChainMemory) -> None:
        """Nothing more to do now: queue the chain for when something is due by the clock alone."""
        self.metrics.chain_seen(key, decision.status)
        if decision.wake_at is not None:
            self.queue.add_after(key, max(0.05, decision.wake_at - time.time()))
        for refusal in memory.refusals.values():
            self.queue.add_after(key, max(0.05, refusal.ask_at - time.monotonic()))
        if decision.status.phase in AT_REST:
            self.acceptance.forget(body)
