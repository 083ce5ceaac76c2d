"""A stage as a TrainJob: what the Trainer is told, what is patched into the runtime, and what is the runtime's."""

from __future__ import annotations

from typing import Any

import pytest

from modelchain.spec import JobBackend
from modelchain_operator.acceptance import Refused, accept
from modelchain_operator.jobs import BACKENDS
from modelchain_operator.jobs.backend import JobFailure
from modelchain_operator.kubernetes.api import Object
from tests.operator.jobs.test_manifests import body, request

BACKEND = BACKENDS[JobBackend.TRAIN_JOB]


def built(**job: Any) -> Object:
    (manifest,) = BACKEND.build(request(job={"backend": "TrainJob", **job}))
    return manifest


def patch_of(job: Object) -> Object:
    (patch,) = job["spec"]["runtimePatches"]
    return patch["trainingRuntimeSpec"]["template"]


def pods_of(job: Object) -> Object:
    (node,) = patch_of(job)["spec"]["replicatedJobs"]
    return node["template"]["spec"]["template"]


def test_the_trainer_is_told_what_runs_and_how_often() -> None:
    job = built(nodes=4, gpusPerNode=8, processesPerNode=8, resources={"requests": {"cpu": "32"}})
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 8)
    assert trainer["command"] == ["python", "-m", "modelchain_trainer"]
    assert trainer["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": "8"}, "requests": {"cpu": "32"}}
    assert "MODELCHAIN_STAGE" in {one["name"] for one in trainer["env"]}
    assert not [one["name"] for one in trainer["env"] if one["name"].startswith("PET_")], (
        "the Trainer sets them"
    )
    assert job["spec"]["runtimeRef"] == {"name": "modelchain"}
    assert built(runtime="ours")["spec"]["runtimeRef"] == {"name": "ours"}


def test_everything_between_the_job_and_its_pods_carries_the_labels_that_are_watched() -> None:
    job = built()
    own = {
        name: value for name, value in job["metadata"]["labels"].items() if name.startswith("modelchain.dev/")
    }
    (node,) = patch_of(job)["spec"]["replicatedJobs"]
    for metadata in (patch_of(job)["metadata"], node["template"]["metadata"], pods_of(job)["metadata"]):
        assert own.items() <= metadata["labels"].items()
    assert node["name"] == "node"


def test_what_a_patch_can_say_of_the_pods_is_said() -> None:
    job = built(
        nodeSelector={"zone": "a"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        serviceAccountName="trainer",
        terminationGracePeriodSeconds=300,
        podTemplate={
            "metadata": {"annotations": {"kueue.x-k8s.io/podset-required-topology": "rack"}},
            "spec": {
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "containers": [
                    {"name": "pytorch", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
                ],
            },
        },
    )
    pods = pods_of(job)
    assert pods["metadata"]["annotations"]["kueue.x-k8s.io/podset-required-topology"] == "rack"
    spec = pods["spec"]
    assert (spec["nodeSelector"], spec["serviceAccountName"]) == ({"zone": "a"}, "trainer")
    assert spec["terminationGracePeriodSeconds"] == 300
    assert {one["name"] for one in spec["volumes"]} == {"dshm", "tmp", "scratch"}
    (container,) = spec["containers"]
    assert container["name"] == "node"
    assert "/scratch" in {one["mountPath"] for one in container["volumeMounts"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container.keys() == {"name", "volumeMounts", "securityContext"}, "a patch may hold no more"


def test_what_kueue_takes_from_a_job_that_it_lets_go_is_not_patched() -> None:
    """Or the JobSet that the Trainer has made could never be changed into one that runs."""
    assert "terminationGracePeriodSeconds" in pods_of(built())["spec"]
    assert "terminationGracePeriodSeconds" not in pods_of(built(queueName="research"))["spec"]


@pytest.mark.parametrize(
    ("job", "field"),
    [
        ({"priorityClassName": "high"}, "priorityClassName"),
        ({"schedulingPolicy": {"minAvailable": 2}}, "schedulingPolicy"),
        ({"ttlSecondsAfterFinished": 60}, "ttlSecondsAfterFinished"),
        ({"managedBy": "example.com/ours"}, "managedBy"),
        ({"queueName": "research", "terminationGracePeriodSeconds": 60}, "terminationGracePeriodSeconds"),
        (
            {"queueName": "research", "podTemplate": {"spec": {"terminationGracePeriodSeconds": 60}}},
            "podTemplate.spec.terminationGracePeriodSeconds",
        ),
        ({"podTemplate": {"spec": {"hostNetwork": True}}}, "podTemplate.spec.hostNetwork"),
        (
            {"podTemplate": {"spec": {"containers": [{"name": "proxy", "image": "proxy"}]}}},
            "podTemplate.spec.containers (proxy)",
        ),
        (
            {"podTemplate": {"spec": {"containers": [{"name": "pytorch", "stdin": True}]}}},
            "podTemplate.spec.containers (pytorch).stdin",
        ),
    ],
)
def test_what_only_a_runtime_can_say_is_refused_with_the_remedy(job: Object, field: str) -> None:
    answer = accept(body(job={"backend": "TrainJob", **job}), default_image="trainer")
    assert isinstance(answer, Refused)
    assert any(f"job.{field}:" in problem for problem in answer.problems), answer.problems


def status(job: Object, *conditions: Object, **more: Any) -> Object:
    return {**job, "status": {"conditions": list(conditions), **more}}


def test_how_it_fares_is_read_from_the_trainers_conditions() -> None:
    job = built(nodes=2)
    assert BACKEND.read(job).untouched
    complete = status(job, {"type": "Complete", "status": "True", "reason": "AllJobsCompleted"})
    assert BACKEND.read(complete).succeeded
    failed = {"type": "Failed", "status": "True", "reason": "FailedJobs", "message": "jobset failed"}
    assert BACKEND.read(status(job, failed)).failure == JobFailure("FailedJobs", "jobset failed")
    resumed = status(job, {"type": "Suspended", "status": "False", "reason": "Resumed"})
    assert not BACKEND.read(resumed).finished
    assert BACKEND.read(BACKEND.suspended(job)).suspended
    assert not BACKEND.read(job).suspended


def test_a_job_that_another_cluster_runs_counts_its_pods_by_its_own_account() -> None:
    job = built(nodes=2, managedBy="kueue.x-k8s.io/multikueue")
    assert BACKEND.read(job).managed_by == "kueue.x-k8s.io/multikueue"
    assert BACKEND.read(job).ready_pods == 0
    running = status(job, jobsStatus=[{"name": "node", "ready": 1}])
    assert BACKEND.read(running).ready_pods == 2
