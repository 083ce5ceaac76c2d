"""Which jobs and pods are a chain's: what its controller owner says, never a label alone.

Anybody who may create a pod may put any label on it, in any namespace; `kubectl debug --copy-to --keep-labels` copies
ours. So a job counts if it stands in the chain's namespace, the chain is its controller, and it has the very name that
we would have given to that attempt of that stage. A pod counts if such a job is its controller.
https://kubernetes.io/docs/concepts/overview/working-with-objects/owners-dependents/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelchain.resolved import ChainReference
from modelchain.spec import GROUP, KIND
from modelchain_operator import labels
from modelchain_operator.jobs import names
from modelchain_operator.kinds import JOB, PYTORCHJOB
from modelchain_operator.kubernetes_api import Object

MAX_ATTEMPT = 10**6  # at one attempt in ten minutes, 19 years; the status has a 64-bit counter
_JOB_KINDS = {kind.kind: kind.api_version.partition("/")[0] for kind in (PYTORCHJOB, JOB)}


class Place(NamedTuple):
    """What a job is for, and how it is called."""

    stage: str
    attempt: int
    name: str


class Owner(NamedTuple):
    """The one object that manages another."""

    group: str
    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class JobTree:
    """The objects of one attempt."""

    place: Place
    job: Object | None  # None: it is gone, and its pods are not
    pods: tuple[Object, ...]

    @property
    def name(self) -> str:
        """Of the job."""
        return self.place.name


def job_trees(
    chain: ChainReference,
    jobs: Iterable[Object],
    pods: Sequence[Object],
    former: Mapping[str, Place] | None = None,
) -> tuple[JobTree, ...]:
    """The attempts of a chain that these objects show, among what may be anybody's.

    `former`: pods, by uid, that were a job's once. Whoever deletes the job and leaves its pods
    (`kubectl delete --cascade=orphan`) takes the owner from them.
    """
    trees: list[JobTree] = []
    by_owner: dict[str, list[Object]] = {}
    for pod in pods:
        owner = controller_of(pod)
        if owner is not None and _is_in(chain, pod):
            by_owner.setdefault(owner.uid, []).append(pod)
    for job in jobs:
        place = _place_of_job(chain, job)
        uid = job["metadata"]["uid"]
        own = by_owner.pop(uid, [])
        if place is not None:
            trees.append(JobTree(place, job, tuple(own)))
    left: dict[Place, list[Object]] = {}
    for pod in (pod for own in by_owner.values() for pod in own):
        if (place := _place_of_lone_pod(chain, pod)) is not None:
            left.setdefault(place, []).append(pod)
    for pod in pods:
        place = (former or {}).get(pod["metadata"]["uid"])
        if place is not None and controller_of(pod) is None:
            left.setdefault(place, []).append(pod)
    trees += [JobTree(place, None, tuple(own)) for place, own in left.items()]
    return tuple(sorted(trees, key=lambda tree: tree.place))


def controller_of(item: Object) -> Owner | None:
    """What manages an object; None if nothing does."""
    for owner in item["metadata"].get("ownerReferences") or []:
        if owner.get("controller") is True:
            group = str(owner.get("apiVersion", "")).partition("/")[0]
            return Owner(group, str(owner.get("kind", "")), str(owner.get("name", "")), str(owner.get("uid")))
    return None


def _place_of_job(chain: ChainReference, job: Object) -> Place | None:
    owner = controller_of(job)
    if owner is None or (owner.group, owner.kind, owner.uid) != (GROUP, KIND, chain.uid):
        return None
    place = _labelled_place(chain, job)
    return place if place is not None and job["metadata"]["name"] == place.name else None


def _place_of_lone_pod(chain: ChainReference, pod: Object) -> Place | None:
    """Of a pod whose job is not there: the name of the job has to be one that only we give."""
    owner, place = controller_of(pod), _labelled_place(chain, pod)
    if owner is None or place is None or _JOB_KINDS.get(owner.kind) != owner.group:
        return None
    return place if owner.name == place.name else None


def _labelled_place(chain: ChainReference, item: Object) -> Place | None:
    """What the labels say, if they say something that can be: it takes an owner to be believed."""
    found = item["metadata"].get("labels") or {}
    stage, text = str(found.get(labels.STAGE, "")), str(found.get(labels.ATTEMPT, ""))
    if found.get(labels.CHAIN_UID) != chain.uid or not _is_in(chain, item) or not stage:
        return None
    if len(text) > len(str(MAX_ATTEMPT)) or not (text.isascii() and text.isdecimal()):
        return None
    attempt = int(text)
    if not 1 <= attempt <= MAX_ATTEMPT or str(attempt) != text:
        return None
    return Place(stage, attempt, names.job_name(chain, stage, attempt))


def _is_in(chain: ChainReference, item: Object) -> bool:
    return item["metadata"].get("namespace") == chain.namespace
