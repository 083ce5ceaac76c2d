"""Creates and deletes the jobs of chains, as the actions of `decide` ask; idempotent."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from modelchain.reconcile.actions import RemoveJob, StartJob, StopJob
from modelchain_operator.acceptance import Accepted
from modelchain_operator.jobs import Backend, JobDefaults, JobRequest
from modelchain_operator.jobs.refusals import WEBHOOK_AWAY, find_remedy, with_remedy
from modelchain_operator.jobs.trees import controller_of
from modelchain_operator.kubernetes import kinds, labels
from modelchain_operator.kubernetes.api import ApiError, Conflict, Invalid, KubernetesApi, Object
from modelchain_operator.kubernetes.kinds import POD, Kind
from modelchain_operator.kueue.preflight import QueueUnavailable, prepare_for_queue
from modelchain_operator.observe import ClusterSnapshot

logger = logging.getLogger(__name__)

FORBIDDEN = 403
# As the API server says it of fields that it does not know.
UNKNOWN_FIELD = "strict decoding error: unknown field"


class JobRefused(Exception):  # noqa: N818  an answer, not an error
    """The API server does not admit this job. The message says why and what to do."""


class JobWriter:
    """Creates and deletes the jobs of chains."""

    def __init__(self, api: KubernetesApi, defaults: JobDefaults) -> None:
        self._api = api
        self._defaults = defaults

    async def start(
        self, accepted: Accepted, action: StartJob, *, dry_run: bool = False
    ) -> list[tuple[Kind, Object]]:
        """Create the attempt's job, and what it needs. Returns what was created.

        Raises JobRefused if the API server does not admit it, ApiError if it can't be reached.
        """
        request = JobRequest(
            stage=accepted.chain.stage(action.stage),
            spec=accepted.jobs[action.stage],
            store=accepted.store,
            attempt=action.attempt,
            defaults=self._defaults,
        )
        made: list[tuple[Kind, Object]] = []
        backend = accepted.backend(action.stage)
        try:
            manifests = backend.build(request)
        except Exception as error:
            logger.exception("the job of %s can't be built", request.name)
            text = f"no job can be made of spec.job ({type(error).__name__}: {error}); correct it"
            raise JobRefused(text) from None
        *others, job = manifests
        with _refusals(backend):
            job = await prepare_for_queue(self._api, request, kinds.of(job), job)
        for manifest in (*others, job):
            kind = kinds.of(manifest)
            try:
                with _refusals(backend):
                    made.append((kind, await self._api.create(kind, manifest, dry_run=dry_run)))
            except Conflict:
                await self._require_own(kind, manifest)
        return made

    async def stop(self, action: StopJob, snapshot: ClusterSnapshot) -> None:
        """Delete a live job: its pods get SIGTERM and their grace period, so that the trainer can write a
        checkpoint.
        """
        logger.info("stopping %s: %s", action.job.name, action.reason)
        for kind, item in _objects(action.job.name, snapshot):
            await self._delete(kind, item)

    async def remove(self, action: RemoveJob, snapshot: ClusterSnapshot) -> None:
        """Delete what is left of a job that has ended."""
        for kind, item in _objects(action.job.name, snapshot):
            await self._delete(kind, item)

    async def _delete(self, kind: Kind, item: Object) -> None:
        metadata = item["metadata"]
        if metadata.get("deletionTimestamp") is None:
            await self._api.delete(kind, metadata["namespace"], metadata["name"], metadata["uid"])

    async def _require_own(self, kind: Kind, manifest: Object) -> None:
        """Raises JobRefused if the object of that name is not the one to be created."""
        wanted = manifest["metadata"]
        there = await self._api.get(kind, wanted["namespace"], wanted["name"])
        if there is None:
            raise Conflict(f"{kind.kind} {wanted['name']} appeared and is gone again", status=409)
        metadata = there["metadata"]
        owner = controller_of(there)
        same = (metadata.get("annotations") or {}).get(labels.DIGEST_ANNOTATION) == wanted["annotations"][
            labels.DIGEST_ANNOTATION
        ]
        if owner is not None and owner == controller_of(manifest) and same:
            return
        name = f"{wanted['namespace']}/{wanted['name']}"
        raise JobRefused(
            f"{kind.kind} {name} exists already and is not this stage's: delete it "
            f"(kubectl -n {wanted['namespace']} delete {kind.plural} {wanted['name']})"
        )


@contextmanager
def _refusals(backend: Backend) -> Iterator[None]:
    """Raises errors that refuse the job as JobRefused. Conflict, and errors that are not about the job, pass."""
    try:
        yield
    except QueueUnavailable as error:
        raise JobRefused(str(error)) from None
    except ApiError as error:
        if isinstance(error, Conflict) or (remedy := _remedy(backend, error)) is None:
            raise
        raise JobRefused(with_remedy(str(error), remedy)) from None


def _remedy(backend: Backend, error: ApiError) -> str | None:
    """What to do about a refusal, empty if it says so itself; None if it is none."""
    text = str(error)
    if WEBHOOK_AWAY in text:
        return find_remedy(text)
    if isinstance(error, Invalid) and UNKNOWN_FIELD in text:
        return (
            f"the cluster's {backend.kind.kind} is older than that: install {backend.requirement}; or it stands in "
            "spec.job.podTemplate, and is to be corrected there"
        )
    hints = (hint for words, hint in backend.refusal_hints.items() if words.lower() in text.lower())
    hint = next(hints, "") or find_remedy(text)
    if isinstance(error, Invalid):
        return hint or "correct spec.job of the chain"
    return hint if error.status == FORBIDDEN else None


def _objects(name: str, snapshot: ClusterSnapshot) -> list[tuple[Kind, Object]]:
    """The job of that name; its pods, if the job itself is gone."""
    found: list[tuple[Kind, Object]] = []
    for tree in snapshot.trees:
        if tree.name == name and tree.job is not None:
            found.append((kinds.of(tree.job), tree.job))
        elif tree.name == name:
            found += [(POD, pod) for pod in tree.pods]
    return found
