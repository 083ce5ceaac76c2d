"""The interface of a kind of job: a backend builds the job of an attempt, and reads it back.

Everything specific to a kind is in its backend: the shape of its spec and status, who creates its pods, and what to do
where nobody does. Everything else sees `JobState`. To add a kind: one file here, its entry in `registry`, its test,
and the operator's rights on it in the chart.

Modelled on Kueue's GenericJob: https://pkg.go.dev/sigs.k8s.io/kueue/pkg/controller/jobframework#GenericJob
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from modelchain.spec import JobSpec
from modelchain_operator.jobs.conditions import condition, is_true
from modelchain_operator.jobs.request import JobRequest
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import integer, string
from modelchain_operator.kubernetes.kinds import Kind


class Owner(NamedTuple):
    """The controller of an object (its ownerReference with `controller: true`)."""

    group: str
    kind: str
    name: str
    uid: str

    def is_a(self, kind: Kind) -> bool:
        """Whether it is of that kind, of whatever version."""
        return (self.group, self.kind) == (kind.group, kind.kind)


@dataclass(frozen=True)
class JobFailure:
    """What a job's own status says of its failure."""

    reason: str  # CamelCase
    message: str


@dataclass(frozen=True)
class JobState:
    """What a job's own object says, in terms that all kinds share. Its pods say the rest."""

    wanted_pods: int
    suspended: bool = False  # a queue holds it: its pods are deleted together, and created again together
    succeeded: bool = False  # its controller has declared it so
    failure: JobFailure | None = None  # its controller has declared it failed
    ending: bool = False  # its controller has decided how it ends, and ends its pods
    # The controller that runs it elsewhere, with pods that this cluster does not have; empty: none. So does the manager
    # cluster of MultiKueue: https://kueue.sigs.k8s.io/docs/concepts/multikueue/
    managed_by: str = ""
    ready_pods: int = 0  # as the job counts them; only used where `managed_by` is set
    untouched: bool = False  # no controller has written to its status yet

    @property
    def finished(self) -> bool:
        """Whether its controller has declared its end."""
        return self.succeeded or self.failure is not None


@dataclass(frozen=True)
class Unsupported:
    """A field of `spec.job` that a kind of job can't carry out."""

    field: str  # as written
    message: str
    remedy: str


class Backend(Protocol):
    """A kind of job that trains a stage."""

    name: str  # as spec.job.backend has it
    kind: Kind  # of the job
    # Kinds between the job and its pods, top down: a TrainJob makes a JobSet, which makes Jobs. Watched and
    # listed as the job is, by the chain's label.
    intermediate: tuple[Kind, ...]
    requirement: str  # what has to be installed for these kinds, from which version on, and how
    install_hint: str  # what to do where the API server does not know one of these kinds
    # What to do where the kind's own webhook refuses a job, by words of the refusal.
    refusal_hints: Mapping[str, str]
    controller_hint: str  # what to check where nobody creates pods for a job

    def unsupported(self, spec: JobSpec) -> Iterable[Unsupported]:
        """What a chain asks for that this kind of job can't do."""
        ...

    def build(self, request: JobRequest) -> tuple[Object, ...]:
        """The manifests, in the order in which they must be made: the job is the last."""
        ...

    def suspended(self, job: Object) -> Object:
        """The job of `build`, suspended: a queue will resume it."""
        ...

    def read(self, job: Object) -> JobState:
        """The state of a job, which may be slim (`slim`), and somebody else's: whatever its spec and status hold."""
        ...

    def pod_templates(self, job: Object) -> Iterable[Mapping[str, Any]]:
        """The templates of its pods. Not of a slim job."""
        ...

    def slim(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Of a job's spec, what `read` needs: hundreds of them are kept in memory."""
        ...

    def position(self, pod: Object) -> str:
        """A pod's position in its job: its replacement has the same. Empty: unknown."""
        ...

    def is_pod_owner(self, owner: Owner, job_name: str) -> bool:
        """Whether an owner of pods, of which only this reference is known, belongs to the job of that name."""
        ...


def declared_failure(job: Object) -> JobFailure | None:
    """By the condition Failed, which controllers of jobs set; None if it does not hold."""
    if not is_true(job, "Failed"):
        return None
    failed = condition(job, "Failed") or {}
    return JobFailure(string(failed.get("reason")), string(failed.get("message")))


def pod_count(value: object) -> int:
    """How many pods a field asks for: one where it says nothing sensible. No job is done by having no pods."""
    return max(1, integer(value) or 1)


def kinds_of(backend: Backend) -> tuple[Kind, ...]:
    """The job's kind, and those between it and its pods."""
    return (backend.kind, *backend.intermediate)


def suspended_by_spec(job: Object) -> Object:
    """The job, suspended as a Job and a TrainJob are: by `spec.suspend`."""
    return {**job, "spec": {**job["spec"], "suspend": True}}
