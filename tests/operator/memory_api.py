"""An API server in memory, for worlds by the thousand: versions, conflicts, names, owners, namespaces that vanish.

It answers `KubernetesApi`'s methods as tests/operator/kubernetes/test_api.py shows that the real one does.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Conflict, Forbidden, KubernetesApi, NotServed, Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.kubernetes.kinds import CHAIN, JOB, POD, Kind

SERVED = (CHAIN, JOB, POD)


class MemoryApi(KubernetesApi):
    """Objects by kind, namespace and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, str, str], Object] = {}
        self.gone: set[str] = set()  # namespaces that are no more
        self.made: Counter[str] = Counter()  # jobs that the operator has made, by name
        self.asked: Counter[str] = Counter()  # requests of the operator, by verb; without those about Events
        self.deleted: list[Object] = []  # what the operator has deleted
        self.changes: list[tuple[Kind, Object, bool]] = []  # for watches: kind, object, whether it is deleted
        self.on_create: Callable[[Object], None] = lambda _: None
        self.before_write: Callable[[], Awaitable[None]] | None = (
            None  # awaited once, by the next status write
        )
        self._version = 0

    # ---- what others do

    def put(self, kind: Kind, item: Object) -> Object:
        """Make or change an object, as its owner or a controller does."""
        self._version += 1
        metadata = item["metadata"]
        metadata["resourceVersion"] = str(self._version)
        metadata.setdefault("uid", f"uid-{self._version}")
        metadata.setdefault("creationTimestamp", "2026-11-20T00:00:00Z")
        item = {"apiVersion": kind.api_version, "kind": kind.kind, **item}
        self.objects[kind, metadata["namespace"], metadata["name"]] = item
        self.changes.append((kind, copy.deepcopy(item), False))
        return item

    def take(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Delete an object, and its pods if it is a job."""
        item = self.objects.pop((kind, namespace, name), None)
        if item is None:
            return None
        self.changes.append((kind, copy.deepcopy(item), True))
        if kind == JOB:
            for pod in self.pods_of(item):
                pod["metadata"]["deletionTimestamp"] = "2026-11-20T00:00:00Z"
                self.put(POD, pod)
        return item

    def vanish(self, namespace: str) -> None:
        """The namespace is deleted with all that is in it, and the operator's rights there."""
        for kind, where, name in list(self.objects):
            if where == namespace:
                self.take(kind, where, name)
        for where, name in [(where, name) for kind, where, name in self.objects if kind == POD]:
            if where == namespace:
                del self.objects[POD, where, name]
        self.gone.add(namespace)

    def all(self, kind: Kind) -> list[Object]:
        """Everything of a kind."""
        return [item for (of, _, _), item in self.objects.items() if of == kind]

    def pods_of(self, job: Object) -> Iterator[Object]:
        """The pods that a job controls."""
        uid = job["metadata"]["uid"]
        for pod in self.all(POD):
            owners = pod["metadata"].get("ownerReferences") or []
            if any(one.get("controller") and one["uid"] == uid for one in owners):
                yield pod

    # ---- what the operator asks

    async def get_chain(self, namespace: str, name: str) -> Object | None:
        return await self.get(CHAIN, namespace, name)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self.asked["get"] += 1
        self._check(kind, namespace)
        return copy.deepcopy(self.objects.get((kind, namespace, name)))

    async def write_status(self, chain: Object, status: Object) -> Object:
        self.asked["update"] += 1
        if self.before_write is not None:
            meanwhile, self.before_write = self.before_write, None
            await meanwhile()
        metadata = chain["metadata"]
        self._check(CHAIN, metadata["namespace"])
        there = self.objects.get((CHAIN, metadata["namespace"], metadata["name"]))
        version = metadata.get("resourceVersion")  # without one, the server writes over whatever is there
        if there is None or version not in (None, there["metadata"]["resourceVersion"]):
            raise Conflict("it was changed", status=409)
        return copy.deepcopy(self.put(CHAIN, {**there, "status": copy.deepcopy(status)}))

    async def list_labelled(self, kind: Kind, namespace: str | None, chain_uid: str | None) -> list[Object]:
        self.asked["list"] += 1
        self._check(kind, namespace)
        return [
            copy.deepcopy(item)
            for item in self.all(kind)
            if item["metadata"]["namespace"] == namespace
            and (item["metadata"].get("labels") or {}).get(labels.CHAIN_UID) == chain_uid
        ]

    async def create(self, kind: Kind, manifest: Object, *, dry_run: bool = False) -> Object:
        self.asked["create"] += 1
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        self._check(kind, namespace)
        if (kind, namespace, name) in self.objects:
            raise Conflict("it exists", status=409)
        if dry_run:
            return manifest
        self.on_create(manifest)
        self.made[name] += 1
        return copy.deepcopy(self.put(kind, copy.deepcopy(manifest)))

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        uid: str,
        *,
        grace_seconds: int | None = None,  # noqa: ARG002  the operator gives none
    ) -> None:
        self._check(kind, namespace)
        there = self.objects.get((kind, namespace, name))
        if there is None or there["metadata"]["uid"] != uid:
            return
        self.deleted.append(there)
        if kind == POD:
            there["metadata"]["deletionTimestamp"] = "2026-11-20T00:00:00Z"
            self.put(POD, there)
        else:
            self.take(kind, namespace, name)

    async def list_events(self, namespace: str, object_uid: str) -> list[Object]:  # noqa: ARG002  there are none
        return []

    async def create_event(self, event: Object) -> None:
        self._check(CHAIN, event["metadata"]["namespace"])

    def _check(self, kind: Kind, namespace: str | None) -> None:
        if kind not in SERVED:
            raise NotServed(f"{kind.kind} is not served", status=404)
        if namespace in self.gone:
            raise Forbidden(f"namespace {namespace} is gone", status=403)


def key_of(item: Object) -> Key:
    """The name of a chain."""
    return Key(item["metadata"]["namespace"], item["metadata"]["name"])
