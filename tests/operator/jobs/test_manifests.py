"""Manifests of jobs, as values."""

# ruff: noqa: S108 - paths in a pod

import copy
import dataclasses
import json
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelchain.resolved import ResolvedStage
from modelchain.spec import JobBackend
from modelchain_operator.acceptance import Accepted, Refused, accept
from modelchain_operator.jobs import BACKENDS, JobDefaults, JobRequest, names
from modelchain_operator.jobs.merge import merge
from modelchain_operator.jobs.request import request_digests
from modelchain_operator.kubernetes.api import Object
from tests.operator.test_acceptance import BODY, body

DIGEST_LENGTH = 16


def request(attempt: int = 1, stage: int = 0, **spec: object) -> JobRequest:
    answer = accept(body(**spec), default_image=None)
    assert isinstance(answer, Accepted), answer
    resolved = answer.chain.stages[stage]
    job = answer.jobs[resolved.name]
    return JobRequest(resolved, job, answer.store, attempt, JobDefaults(image="fallback"))


def test_a_pytorchjob_of_two_nodes() -> None:
    job = {
        "nodes": 2,
        "gpusPerNode": 4,
        "queueName": "research",
        "nodeSelector": {"gpu": "a100"},
        "resources": {"requests": {"cpu": 0.5}, "limits": {"memory": "64Gi"}},
        "activeDeadlineSeconds": 60,
    }
    asked = request(
        2,
        job=job,
        store={"uri": "s3://b/p", "secretRef": {"name": "s3"}, "caBundleRef": {"name": "authority"}},
    )
    (manifest,) = BACKENDS[JobBackend.PYTORCH_JOB].build(asked)
    own = {
        "app.kubernetes.io/managed-by": "modelchain",
        "modelchain.dev/chain-uid": BODY["metadata"]["uid"],
        "modelchain.dev/stage": "s",
        "modelchain.dev/attempt": "2",
        "modelchain.dev/digest": asked.stage.digest[:DIGEST_LENGTH],
    }
    notes = {"modelchain.dev/stage-digest": asked.stage.digest, "modelchain.dev/chain": "team/family"}
    env = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["env"]
    told = ResolvedStage.model_validate_json(env[0]["value"])
    assert told.store.ca_bundle == "/etc/modelchain/ca/ca.crt"
    template = {
        "metadata": {"labels": own, "annotations": notes},
        "spec": {
            "containers": [
                {
                    "name": "pytorch",
                    "image": "registry.example/trainer:1",
                    "command": ["python", "-m", "modelchain_trainer"],
                    "env": [
                        {"name": "MODELCHAIN_STAGE", "value": told.to_json()},
                        {"name": "MODELCHAIN_ATTEMPT", "value": "6a2a2c1e0000-2"},
                        {"name": "HOME", "value": "/tmp"},
                        secret("AWS_ACCESS_KEY_ID"),
                        secret("AWS_SECRET_ACCESS_KEY"),
                        secret("AWS_SESSION_TOKEN", optional=True),
                    ],
                    "ports": [{"name": "pytorchjob-port", "containerPort": names.port(asked.stage, 2)}],
                    "resources": {
                        "requests": {"cpu": "0.5"},
                        "limits": {"nvidia.com/gpu": "4", "memory": "64Gi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                        "runAsNonRoot": True,
                    },
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [
                        {"name": "dshm", "mountPath": "/dev/shm"},
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "ca", "mountPath": "/etc/modelchain/ca"},
                    ],
                }
            ],
            "volumes": [
                {"name": "dshm", "emptyDir": {"medium": "Memory"}},
                {"name": "tmp", "emptyDir": {}},
                {
                    "name": "ca",
                    "configMap": {"name": "authority", "items": [{"key": "ca.crt", "path": "ca.crt"}]},
                },
            ],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "terminationGracePeriodSeconds": 120,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "activeDeadlineSeconds": 3660,
            "nodeSelector": {"gpu": "a100"},
        },
    }
    owner = {"apiVersion": "modelchain.dev/v1alpha1", "kind": "ModelChain", "name": "family"}
    assert manifest == {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": asked.name,
            "namespace": "team",
            "labels": {**own, "kueue.x-k8s.io/queue-name": "research"},
            "annotations": {**notes, "modelchain.dev/request": "-".join(request_digests(asked))},
            "ownerReferences": [
                {**owner, "uid": BODY["metadata"]["uid"], "controller": True, "blockOwnerDeletion": False}
            ],
        },
        "spec": {
            "nprocPerNode": "4",
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": {
                "Master": {"replicas": 1, "restartPolicy": "Never", "template": template},
                "Worker": {"replicas": 1, "restartPolicy": "Never", "template": template},
            },
        },
    }


def test_a_gang_is_asked_for_in_the_training_operators_words() -> None:
    gang = {"queue": "teams", "priorityClass": "high", "minAvailable": 2, "scheduleTimeoutSeconds": 600}
    stages = [{"name": "s", "model": "ViT-S-16", "job": {"schedulingPolicy": gang}}]
    (manifest,) = BACKENDS[JobBackend.PYTORCH_JOB].build(request(stages=stages))
    assert manifest["spec"]["runPolicy"]["schedulingPolicy"] == gang


MULTIKUEUE = {"managedBy": "kueue.x-k8s.io/multikueue"}
LIFE_CYCLES = {
    JobBackend.PYTORCH_JOB: {**MULTIKUEUE, "ttlSecondsAfterFinished": 3600},
    JobBackend.TRAIN_JOB: MULTIKUEUE,
    JobBackend.JOB: {**MULTIKUEUE, "ttlSecondsAfterFinished": 3600},
}


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_the_job_itself_carries_what_queues_and_reapers_read(backend: JobBackend) -> None:
    life_cycle = LIFE_CYCLES[backend]
    job = {
        "backend": backend.value,
        "queueName": "research",
        "labels": {"kueue.x-k8s.io/priority-class": "high"},
        "annotations": {"example.com/cost-centre": "vision team, 42"},
        **life_cycle,
    }
    asked = request(job=job)
    plain = request(job={"backend": backend.value, "queueName": "research"})
    (manifest,), (before,) = (BACKENDS[backend].build(one) for one in (asked, plain))
    metadata, own = manifest["metadata"], before["metadata"]
    assert metadata["labels"] == own["labels"] | job["labels"]
    (request_of, _), annotations = request_digests(asked), {**own["annotations"], **job["annotations"]}
    assert metadata["annotations"] == annotations | {"modelchain.dev/request": ANY}
    assert metadata["annotations"]["modelchain.dev/request"].startswith(request_of)
    policy = manifest["spec"].get("runPolicy", manifest["spec"])
    assert {name: policy[name] for name in life_cycle} == life_cycle
    assert not life_cycle.keys() & before["spec"].get("runPolicy", before["spec"]).keys()
    pods = json.dumps(manifest["spec"])
    assert "kueue.x-k8s.io/priority-class" not in pods
    assert "vision team" not in pods


def secret(name: str, *, optional: bool = False) -> Object:
    reference: Object = {"name": "s3", "key": name} | ({"optional": True} if optional else {})
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def test_an_indexed_job_meets_at_its_first_pod() -> None:
    asked = request(stage=1)
    service, job = BACKENDS[JobBackend.JOB].build(asked)
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (2, 2, 0)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    env = {one["name"]: one.get("value") for one in spec["template"]["spec"]["containers"][0]["env"]}
    assert env["PET_MASTER_ADDR"] == f"{asked.name}-0.{service['metadata']['name']}"
    assert env["PET_NNODES"] == env["PET_NPROC_PER_NODE"] == "2"


def test_attempts_share_a_service_and_nothing_else() -> None:
    one, two = (BACKENDS[JobBackend.JOB].build(request(n, stage=1)) for n in (1, 2))
    assert one[0] == two[0]
    assert one[1]["metadata"]["name"] != two[1]["metadata"]["name"]


def test_a_pod_template_is_merged_but_does_not_say_which_attempt_it_is() -> None:
    container = {
        "name": "pytorch",
        "env": [{"name": "MODELCHAIN_ATTEMPT", "value": "x"}, {"name": "A", "value": "$"}],
    }
    template = {
        "metadata": {"labels": {"team": "vision"}},
        "spec": {"containers": [container, {"name": "sidecar"}], "securityContext": None},
    }
    asked = request()
    asked = dataclasses.replace(asked, spec=asked.spec.model_copy(update={"pod_template": template}))
    (manifest,) = BACKENDS[JobBackend.PYTORCH_JOB].build(asked)
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    assert pod["metadata"]["labels"]["team"] == "vision"
    assert "securityContext" not in pod["spec"]
    assert [one["name"] for one in pod["spec"]["containers"]] == ["pytorch", "sidecar"]
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    assert env["MODELCHAIN_ATTEMPT"] == "6a2a2c1e0000-1"
    assert env["A"] == "$"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"metadata": {"labels": {"modelchain.dev/stage": "x"}}}, "choose another name"),
        ({"spec": {"restartPolicy": "Always"}}, "never restarted in place"),
        (
            {"spec": {"containers": [{"name": "pytorch", "env": [{"name": "RANK"}]}]}},
            "RANK tells the trainer",
        ),
    ],
    ids=["label", "restart-policy", "variable"],
)
def test_a_template_that_would_say_so_is_refused(template: Object, said: str) -> None:
    answer = accept(body(job={"podTemplate": template}), default_image=None)
    assert isinstance(answer, Refused)
    assert said in "".join(answer.problems)


def test_a_dollar_in_a_stage_is_not_expanded_by_kubernetes() -> None:
    data = {**copy.deepcopy(BODY["spec"]["data"]), "shards": ["s3://bucket/$(HOME)$$.tar"]}
    asked = request(data=data)
    (manifest,) = BACKENDS[JobBackend.PYTORCH_JOB].build(asked)
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    value = pod["containers"][0]["env"][0]["value"]
    assert "$" not in value
    assert json.loads(value)["data"]["shards"] == data["shards"]


@pytest.mark.parametrize(
    ("base", "patch", "merged"),
    [
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]},
         {"tolerations": [{"key": "a"}, {"key": "b"}]}),
        (
            {"volumes": [{"name": "tmp", "emptyDir": {}}]},
            {"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}]},
            {"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}]},
        ),
        (
            {"volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]},
            {"volumes": [{"name": "dshm", "emptyDir": {"sizeLimit": "8Gi"}}]},
            {"volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}]},
        ),
        ({"command": ["a"]}, {"command": ["b"]}, {"command": ["b"]}),
    ],
    ids=["null", "tolerations", "other-source", "same-source", "plain-list"],
)  # fmt: skip
def test_templates_merge_as_strategic_patches(base: Object, patch: Object, merged: Object) -> None:
    before = copy.deepcopy((base, patch))
    assert merge(base, patch) == merged
    assert (base, patch) == before


@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True),
    st.from_regex(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", fullmatch=True),
    st.integers(1, 10**9),
)
def test_names_are_labels_with_room_for_the_pods(chain: str, stage: str, attempt: int) -> None:
    asked = request().stage if not _KEPT else _KEPT[0]
    _KEPT[:] = [asked]
    reference = asked.chain.model_copy(update={"name": chain})
    stage_of = asked.model_copy(update={"chain": reference, "name": stage})
    for name in (names.job_name(stage_of.chain, stage_of.name, attempt), names.service_name(stage_of)):
        assert len(f"{name}-worker-4095") <= 63
        assert name[0].isalpha()
        assert name[-1].isalnum()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 20000 <= names.port(stage_of, attempt) < 30000


_KEPT: list[ResolvedStage] = []
