"""What a job is built from, and its metadata."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from modelchain.resolved import ResolvedStage
from modelchain.spec import API_VERSION, KIND, JobSpec, StoreSpec
from modelchain_operator.jobs import names
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object

DIGEST_LABEL_LENGTH = 16


@dataclass(frozen=True)
class JobDefaults:
    """Defaults that the administrator has set for every job."""

    image: str | None = None  # of the trainer, where a chain names none
    image_pull_policy: str | None = None


@dataclass(frozen=True)
class JobRequest:
    """One attempt of one stage, whose job is to be built."""

    stage: ResolvedStage
    spec: JobSpec  # the stage's block over the chain's
    store: StoreSpec  # as the chain has it: which Secret and which ConfigMap
    attempt: int
    defaults: JobDefaults

    @property
    def name(self) -> str:
        """Of the job."""
        return names.job_name(self.stage.chain, self.stage.name, self.attempt)


def job_metadata(request: JobRequest) -> Object:
    """Name, labels, annotations and owner of the job: the job is deleted with the chain."""
    metadata = owned_metadata(request, request.name)
    metadata["labels"] = {**(request.spec.labels or {}), **own_labels(request)}
    own = {**own_annotations(request), labels.REQUEST_ANNOTATION: "-".join(request_digests(request))}
    metadata["annotations"] = {**(request.spec.annotations or {}), **own}
    if request.spec.queue_name:
        metadata["labels"][labels.QUEUE] = request.spec.queue_name
    return metadata


def request_digests(request: JobRequest) -> tuple[str, str]:
    """Of what the chain says that decides the job and no weights; and of the image that its pods get, which the chain
    may leave to the administrator. A job that has others than the chain asks for today is outdated.
    """
    job = request.spec.model_dump(mode="json", exclude_defaults=True, exclude={"start_deadline_seconds"})
    store = request.store.model_dump(mode="json", exclude_defaults=True)
    image = request.stage.image
    return _short_digest([image, job, store]), _short_digest(image or request.defaults.image)


def _short_digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGEST_LABEL_LENGTH]


def owned_metadata(request: JobRequest, name: str) -> Object:
    """Metadata of an object of a stage that is not of one attempt."""
    chain = request.stage.chain
    return {
        "name": name,
        "namespace": chain.namespace,
        "labels": {label: value for label, value in own_labels(request).items() if label != labels.ATTEMPT},
        "annotations": own_annotations(request),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": chain.name,
                "uid": chain.uid,
                "controller": True,
                "blockOwnerDeletion": False,  # true would need rights on finalizers, and delay nothing
            }
        ],
    }


def own_labels(request: JobRequest) -> dict[str, Any]:
    """Labels of the job and of its pods."""
    stage = request.stage
    return {
        "app.kubernetes.io/managed-by": "modelchain",
        labels.CHAIN_UID: stage.chain.uid,
        labels.STAGE: stage.name,
        labels.ATTEMPT: str(request.attempt),
        labels.DIGEST: stage.digest[:DIGEST_LABEL_LENGTH],
    }


def own_annotations(request: JobRequest) -> dict[str, Any]:
    """Annotations of the job and of its pods."""
    return {
        labels.DIGEST_ANNOTATION: request.stage.digest,
        labels.CHAIN_ANNOTATION: request.stage.chain.full_name,
    }


def life_cycle(request: JobRequest) -> Object:
    """Fields that a Job and the run policy of a PyTorchJob have under the same names."""
    spec = request.spec
    fields = {"managedBy": spec.managed_by, "ttlSecondsAfterFinished": spec.ttl_seconds_after_finished}
    return {name: value for name, value in fields.items() if value is not None}
