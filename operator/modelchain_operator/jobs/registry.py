"""The kinds of jobs that can train a stage. What the operator watches and lists follows from here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from modelchain.spec import JobBackend, JobSpec
from modelchain_operator.jobs.backend import Backend, kinds_of
from modelchain_operator.jobs.indexed_job import INDEX_ANNOTATION, IndexedJobBackend
from modelchain_operator.jobs.pytorchjob import POSITION_LABELS, PyTorchJobBackend
from modelchain_operator.jobs.trainjob import INDEX_LABEL, TrainJobBackend
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.kinds import Kind

BACKENDS: Mapping[JobBackend, Backend] = MappingProxyType(
    {
        JobBackend.PYTORCH_JOB: PyTorchJobBackend(),
        JobBackend.TRAIN_JOB: TrainJobBackend(),
        JobBackend.JOB: IndexedJobBackend(),
    }
)

# Each once: a Job may be a stage's, or be between another kind and its pods.
JOB_KINDS: tuple[Kind, ...] = tuple(
    dict.fromkeys(kind for backend in BACKENDS.values() for kind in kinds_of(backend))
)

# Of jobs and pods: whose they are, where a pod stands in its job, and which queue holds them.
READ_LABELS = tuple(
    dict.fromkeys(
        (
            labels.CHAIN_UID,
            labels.STAGE,
            labels.ATTEMPT,
            labels.DIGEST,
            labels.QUEUE,
            labels.QUEUE_PRIORITY,
            *POSITION_LABELS,
            INDEX_ANNOTATION,
            INDEX_LABEL,
        )
    )
)

_BY_KIND = {(backend.kind.group, backend.kind.kind): backend for backend in BACKENDS.values()}


def backend_for(spec: JobSpec) -> Backend:
    """The backend of a stage with this block."""
    return BACKENDS[spec.backend or JobBackend.PYTORCH_JOB]


def backend_of(job: Object) -> Backend:
    """The backend of a job, by its kind. KeyError without one."""
    group, _, _ = str(job.get("apiVersion", "")).rpartition("/")
    return _BY_KIND[group, job["kind"]]


def is_job(item: Object) -> bool:
    """Whether an object is of a kind that trains stages."""
    group, _, _ = str(item.get("apiVersion", "")).rpartition("/")
    return (group, item.get("kind")) in _BY_KIND


def slim_spec(kind: Kind, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the spec of a job, or of an object between it and its pods, of which only owners count."""
    backend = _BY_KIND.get((kind.group, kind.kind))
    return backend.slim(spec) if backend is not None else {}
