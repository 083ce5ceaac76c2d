"""Which jobs and pods are a chain's: by their controllers, never by a label alone.

Anybody who may create a pod may put any label on it, in any namespace; `kubectl debug --copy-to --keep-labels` copies
ours. So a job counts if it stands in the chain's namespace, the chain is its controller, and it has the very name that
we would have given to that attempt of that stage. All this may be forged by whoever may create jobs there, so an
attempt counts only up to the next one: nobody moves their numbers on by more. A pod counts if such a job is its
controller, or the controller of what controls it: some kinds of jobs make other objects, and those make the pods.
https://kubernetes.io/docs/concepts/overview/working-with-objects/owners-dependents/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelchain.resolved import ChainReference
from modelchain.spec import GROUP, KIND
from modelchain_operator.jobs import names
from modelchain_operator.jobs.backend import Owner
from modelchain_operator.jobs.registry import BACKENDS, backend_of, is_job
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object

MAX_UNRECORDED = 10**6  # of a stage that the chain's status does not know; the status has a 64-bit counter
_MAX_OWNERS = 4  # from a pod to its job


class Place(NamedTuple):
    """What a job is for, and how it is called."""

    stage: str
    attempt: int
    name: str


@dataclass(frozen=True)
class JobTree:
    """The objects of one attempt."""

    place: Place
    job: Object | None  # None: it is gone, and its pods are not
    pods: tuple[Object, ...]
    intermediate: tuple[Object, ...] = ()  # objects between the two

    @property
    def name(self) -> str:
        """Of the job."""
        return self.place.name


def job_trees(
    chain: ChainReference,
    attempts: Mapping[str, int],
    jobs: Iterable[Object],
    pods: Sequence[Object],
    former: Mapping[str, Place] | None = None,
) -> tuple[JobTree, ...]:
    """The attempts of a chain that these objects show, among objects of others.

    `attempts`: by stage, the last attempt that the chain's status has recorded, which it does before there is a job.
    `jobs`: of every kind of `JOB_KINDS`, those between a job and its pods among them.
    `former`: pods, by uid, that were a job's once. Whoever deletes the job and leaves its pods
    (`kubectl delete --cascade=orphan`) takes the owner from them.
    """
    own = _own_jobs(chain, attempts, jobs)
    pods_of, left = _sort_pods(chain, attempts, own, pods, former or {})
    trees = [
        JobTree(place, own.jobs[uid], tuple(pods_of[uid]), tuple(own.between[uid]))
        for uid, place in own.places.items()
    ]
    trees += [JobTree(place, None, tuple(orphans)) for place, orphans in left.items()]
    return tuple(sorted(trees, key=lambda tree: tree.place))


@dataclass(frozen=True)
class _Jobs:
    """The jobs of a chain, by uid, and what stands between them and their pods."""

    places: dict[str, Place]
    jobs: dict[str, Object]
    between: dict[str, list[Object]]
    owners: dict[str, Owner]  # by uid of objects between a job and its pods


def _own_jobs(chain: ChainReference, attempts: Mapping[str, int], jobs: Iterable[Object]) -> _Jobs:
    own = _Jobs({}, {}, {}, {})
    intermediates: list[Object] = []
    for job in jobs:
        uid, owner = job["metadata"]["uid"], controller_of(job)
        if (place := _place_of_job(chain, attempts, job)) is not None:
            own.places[uid], own.jobs[uid], own.between[uid] = place, job, []
        elif owner is not None and _is_in(chain, job):
            own.owners[uid] = owner
            intermediates.append(job)
    for item in intermediates:
        owner = _highest_owner(item, own.owners)
        if owner is not None and owner.uid in own.between:
            own.between[owner.uid].append(item)
    return own


def _sort_pods(
    chain: ChainReference,
    attempts: Mapping[str, int],
    own: _Jobs,
    pods: Sequence[Object],
    former: Mapping[str, Place],
) -> tuple[dict[str, list[Object]], dict[Place, list[Object]]]:
    """The chain's pods, by uid of their job; and by place those whose job is gone."""
    uids = {place: uid for uid, place in own.places.items()}
    found: dict[str, list[Object]] = {uid: [] for uid in own.jobs}
    left: dict[Place, list[Object]] = {}
    for pod in pods:
        place = former.get(pod["metadata"]["uid"])
        owner = _highest_owner(pod, own.owners)
        if owner is None:
            if place is not None:
                left.setdefault(place, []).append(pod)
        elif owner.uid in found:
            if _is_in(chain, pod):
                found[owner.uid].append(pod)
        elif (place := _place_by_owner(chain, attempts, pod, owner)) is not None:
            uid = uids.get(place)
            if uid is not None and not owner.is_a(backend_of(own.jobs[uid]).kind):
                found[uid].append(pod)  # the job's own uid is not known from there
            else:
                left.setdefault(place, []).append(pod)
    return found, left


def controller_of(item: Object) -> Owner | None:
    """The controller of an object; None without one."""
    for owner in item["metadata"].get("ownerReferences") or []:
        if owner.get("controller") is True:
            group = str(owner.get("apiVersion", "")).rpartition("/")[0]
            return Owner(group, str(owner.get("kind", "")), str(owner.get("name", "")), str(owner.get("uid")))
    return None


def _highest_owner(item: Object, owners: Mapping[str, Owner]) -> Owner | None:
    """Who controls a pod or an intermediate object, or what controls that, as far up as is known."""
    owner = controller_of(item)
    for _ in range(_MAX_OWNERS):
        if owner is None or owner.uid not in owners:
            break
        owner = owners[owner.uid]
    return owner


def _place_of_job(chain: ChainReference, attempts: Mapping[str, int], job: Object) -> Place | None:
    owner = controller_of(job)
    if not is_job(job) or owner is None or (owner.group, owner.kind, owner.uid) != (GROUP, KIND, chain.uid):
        return None
    place = _labelled_place(chain, attempts, job)
    return place if place is not None and job["metadata"]["name"] == place.name else None


def _place_by_owner(
    chain: ChainReference, attempts: Mapping[str, int], pod: Object, owner: Owner
) -> Place | None:
    """Of a pod whose job is not seen to own it: the name of the owner has to be one that only this operator's jobs
    have.
    """
    place = _labelled_place(chain, attempts, pod)
    if place is None or not any(one.is_pod_owner(owner, place.name) for one in BACKENDS.values()):
        return None
    return place


def _labelled_place(chain: ChainReference, attempts: Mapping[str, int], item: Object) -> Place | None:
    """What the labels say, if it is possible at all; they count only with an owner."""
    found = item["metadata"].get("labels") or {}
    stage, text = str(found.get(labels.STAGE, "")), str(found.get(labels.ATTEMPT, ""))
    if found.get(labels.CHAIN_UID) != chain.uid or not _is_in(chain, item) or not stage:
        return None
    highest = attempts[stage] + 1 if stage in attempts else MAX_UNRECORDED
    if len(text) > len(str(highest)) or not (text.isascii() and text.isdecimal()):
        return None
    attempt = int(text)
    if not 1 <= attempt <= highest or str(attempt) != text:
        return None
    return Place(stage, attempt, names.job_name(chain, stage, attempt))


def _is_in(chain: ChainReference, item: Object) -> bool:
    return item["metadata"].get("namespace") == chain.namespace
