"""A chain with its jobs and pods: from the cache, and from the API server itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from modelchain_operator.acceptance import Accepted
from modelchain_operator.informers.cache import Cache
from modelchain_operator.jobs import JOB_KINDS, kinds_of
from modelchain_operator.kubernetes import kinds
from modelchain_operator.kubernetes.api import KubernetesApi, NotServed, Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import POD, Kind
from modelchain_operator.observe import ChainMemory, ClusterSnapshot, snapshot_of


class LiveView:
    """Takes snapshots of chains. What the API server returns goes into the cache too. Used in one event loop."""

    def __init__(self, api: KubernetesApi, cache: Cache) -> None:
        self._api = api
        self._cache = cache
        self.not_served: set[Kind] = set()  # kinds of jobs whose CRD is not installed

    def cached(self, body: Object, memory: ChainMemory) -> ClusterSnapshot:
        """The chain's jobs and pods as they are in the cache."""
        namespace = body["metadata"]["namespace"]
        jobs = [job for kind in JOB_KINDS for job in self._cache.objects(kind, namespace, memory.uid)]
        return snapshot_of(body, jobs, self._cache.objects(POD, namespace, memory.uid), memory)

    async def chain(self, key: Key) -> Object | None:
        """The chain as it is now; None if it is gone."""
        body = await self._api.get_chain(key.namespace, key.name)
        if body is None:
            self._cache.drop_chain(key)
        else:
            self._cache.show_chain(body)
        return body

    async def live(
        self, body: Object, memory: ChainMemory, accepted: Accepted | None = None
    ) -> ClusterSnapshot:
        """The chain's jobs and pods, read now: of every kind that its stages have or had; of all kinds where it is not
        known which.
        """
        uid, namespace = body["metadata"]["uid"], body["metadata"]["namespace"]
        wanted = set(JOB_KINDS)
        if accepted is not None:
            stages = accepted.chain.all_stages
            wanted = {kind for stage in stages for kind in kinds_of(accepted.backend(stage.name))}
            wanted |= {kind for kind in JOB_KINDS if self._cache.objects(kind, namespace, uid)}
        jobs, pods = await asyncio.gather(
            self.jobs([kind for kind in JOB_KINDS if kind in wanted], namespace, uid),
            self._api.list_pods(namespace, uid),
        )
        for job in jobs:  # or the next pass would decide on less than this one
            self._cache.show(kinds.of(job), job)
        for pod in pods:
            self._cache.show(POD, pod)
        return snapshot_of(body, jobs, pods, memory)

    async def jobs(self, wanted: Iterable[Kind], namespace: str, uid: str) -> list[Object]:
        """The jobs that name a chain, asked for now, with their pod templates."""
        found: list[Object] = []
        for kind in wanted:
            try:
                found += await self._api.list_labelled(kind, namespace, uid)
            except NotServed:
                self.not_served.add(kind)
            else:
                self.not_served.discard(kind)
        return found
