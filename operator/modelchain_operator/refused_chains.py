"""Chains that can't be trained as they are written: reported once, while what runs of them stays under control."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from modelchain.clock import clock_step
from modelchain.reconcile.observation import Observation
from modelchain.reconcile.refused import decide_refused, under_way
from modelchain.status import ChainStatus, StageStatus
from modelchain_operator.acceptance import Acceptance, Accepted, Refused
from modelchain_operator.jobs.observed import observe_jobs
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.live_view import LiveView
from modelchain_operator.observe import (
    ChainMemory,
    ClusterSnapshot,
    StillRunning,
    generation_of,
    status_of,
)
from modelchain_operator.recovered_stages import recovered
from modelchain_operator.status_writer import StatusWriter
from modelchain_operator.stores.views import StoreViews
from modelchain_operator.telemetry.metrics import Metrics
from modelchain_operator.work_queue import KeyQueue


@dataclass(frozen=True, kw_only=True)
class RefusedChains:
    """Used in one event loop."""

    acceptance: Acceptance
    cluster: LiveView
    queue: KeyQueue
    stores: StoreViews
    statuses: StatusWriter
    metrics: Metrics

    async def accept(self, body: Object, memory: ChainMemory) -> Accepted | Refused:
        """Whether the chain can be trained as it is written; if not, what of it still runs."""
        answer = self.acceptance.validate(body)
        open_stages = under_way(status_of(body)) if isinstance(answer, Refused) else ()
        if isinstance(answer, Accepted) or not open_stages:
            memory.still_running = None
            return answer
        shown = _jobs_of(self.cluster.cached(body, memory), open_stages)
        known = memory.still_running
        if known is None or known.generation != generation_of(body) or not shown <= known.jobs:
            live = await self.cluster.live(body, memory)  # with pod templates, which the cache does not keep
            known = memory.still_running = StillRunning(
                generation=generation_of(body),
                jobs=shown | _jobs_of(live, open_stages),
                accepted=recovered(body, live.trees, open_stages),
            )
        return answer if known.accepted is None else replace(known.accepted, problems=answer.problems)

    async def report(self, key: Key, body: Object, refused: Refused, memory: ChainMemory) -> None:
        """Write what is wrong with the chain into its status, once. Nothing of it is known to run."""
        self.stores.forget(key)
        after = _refused_status(self.cluster.cached(body, memory), refused, memory)
        if status_of(body) == self.statuses.as_stored(after):
            self.metrics.chain_seen(key, after)
            return
        live = await self.cluster.chain(key)
        gone = live is None or live["metadata"].get("deletionTimestamp") is not None
        if live is None or gone or not isinstance(self.acceptance.validate(live), Refused):
            self.queue.add(key)
            return
        before = status_of(live)
        if under_way(before):  # that a job is gone is said by the API server itself
            snapshot = await self.cluster.live(live, memory)
        else:
            snapshot = ClusterSnapshot(live, before, ())
        after = _refused_status(snapshot, refused, memory)
        if before != self.statuses.as_stored(after):
            await self.statuses.write(key, live, before, after)


def _jobs_of(snapshot: ClusterSnapshot, stages: Iterable[StageStatus]) -> frozenset[str]:
    """The uids of the jobs of the stages' attempts."""
    attempts = {(stage.name, stage.attempt) for stage in stages}
    return frozenset(
        tree.job["metadata"]["uid"]
        for tree in snapshot.trees
        if tree.job is not None and (tree.place.stage, tree.place.attempt) in attempts
    )


def _refused_status(snapshot: ClusterSnapshot, refused: Refused, memory: ChainMemory) -> ChainStatus:
    now = time.time()
    observed = Observation(
        status=snapshot.status, jobs=observe_jobs(snapshot.trees, memory.jobs, now, clock_step=clock_step())
    )
    decision = decide_refused(None, observed, refused.problems, generation=snapshot.generation, now=now)
    return decision.status
