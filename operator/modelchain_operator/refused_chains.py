"""Chains that can't be trained as they are written: reported once, while what runs of them stays under control."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from modelchain.reconcile.observation import Observation
from modelchain.reconcile.refused import decide_refused, under_way
from modelchain.status import ChainStatus
from modelchain_operator.acceptance import Acceptance, Accepted, Refused
from modelchain_operator.jobs import JOB_KINDS
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.live_view import LiveView
from modelchain_operator.observe import ChainMemory, generation_of, snapshot_of, status_of
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
        generation = generation_of(body)
        if memory.still_running is None or memory.still_running[0] != generation:
            jobs = await self.cluster.jobs(JOB_KINDS, body["metadata"]["namespace"], memory.uid)
            trees = snapshot_of(body, jobs, (), memory).trees
            memory.still_running = generation, recovered(body, trees, open_stages)
        running = memory.still_running[1]
        return answer if running is None else replace(running, problems=answer.problems)

    async def report(self, key: Key, body: Object, refused: Refused) -> None:
        """Write what is wrong with the chain into its status, once. Nothing of it runs."""
        self.stores.forget(key)
        after = _refused_status(body, refused)
        if status_of(body) == self.statuses.as_stored(after):
            self.metrics.chain_seen(key, after)
            return
        live = await self.cluster.chain(key)
        gone = live is None or live["metadata"].get("deletionTimestamp") is not None
        if live is None or gone or not isinstance(self.acceptance.validate(live), Refused):
            self.queue.add(key)
            return
        before, after = status_of(live), _refused_status(live, refused)
        if before != self.statuses.as_stored(after):
            await self.statuses.write(key, live, before, after)


def _refused_status(body: Object, refused: Refused) -> ChainStatus:
    observed = Observation(status=status_of(body))
    now, generation = time.time(), generation_of(body)
    return decide_refused(None, observed, refused.problems, generation=generation, now=now).status
