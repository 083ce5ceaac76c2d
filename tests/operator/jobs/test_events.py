"""Why a job does not start, from events as kubelets, the job controller and the training operator post them."""

import pytest

from modelchain_operator.jobs.events import (
    ASKED_PODS,
    UnexplainedJob,
    explain_pending,
    unexplained,
)
from modelchain_operator.jobs.refusals import MAX_REFUSAL
from modelchain_operator.kubernetes.api import Object

JOB, POD = "squares-tiny-0a1b2c3d", "squares-tiny-0a1b2c3d-master-0"


def kubelet(reason: str, message: str, at: str, *, kind: str = "Warning", pod: str = POD) -> Object:
    """Counted up in place: https://pkg.go.dev/k8s.io/client-go/tools/record"""
    return {
        "metadata": {"name": f"{pod}.18eaf024bf56f519", "creationTimestamp": "2026-11-24T09:00:00Z"},
        "involvedObject": {"kind": "Pod", "name": pod, "uid": pod, "resourceVersion": "408"},
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 7,
        "eventTime": None,
        "firstTimestamp": "2026-11-24T09:00:00Z",
        "lastTimestamp": at,
        "source": {"component": "kubelet", "host": "e2e"},
    }


def scheduled(at: str) -> Object:
    """In the shape of events.k8s.io/v1, as the core API shows it."""
    return {
        "metadata": {"name": f"{POD}.18eaf024b35389fc", "creationTimestamp": "2026-11-24T09:10:41Z"},
        "involvedObject": {"kind": "Pod", "name": POD, "uid": POD},
        "action": "Binding",
        "reason": "Scheduled",
        "message": f"Successfully assigned default/{POD} to e2e",
        "type": "Normal",
        "eventTime": at,
        "firstTimestamp": None,
        "lastTimestamp": None,
        "reportingComponent": "default-scheduler",
        "source": {},
    }


def controller(reason: str, message: str, at: str = "2026-11-24T09:10:42Z") -> Object:
    return {
        "involvedObject": {"kind": "PyTorchJob", "name": JOB, "uid": JOB},
        "reason": reason,
        "message": message,
        "type": "Warning" if reason.startswith("Failed") else "Normal",
        "lastTimestamp": at,
    }


QUOTA = (
    'pods "{}" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8'
)
STRICT = (
    'pods "{}" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
    '(container "{}" must set securityContext.allowPrivilegeEscalation=false)'
)
FORBIDDEN = f'Error creating: pods "{POD}-" is forbidden: '
AWAY = 'Internal error occurred: failed calling webhook "mjobset.kb.io": connect: connection refused'
IMMUTABLE = 'admission webhook "vjobset.kb.io" denied the request: spec.replicatedJobs: field is immutable'
MOUNT = 'MountVolume.SetUp failed for volume "ca" : '


@pytest.mark.parametrize(
    ("event", "reason", "told"),
    [
        (
            kubelet("FailedMount", f'{MOUNT}configmap "authority" not found', "2026-11-24T09:11:13Z"),
            "FailedMount",
            (POD, 'configmap "authority" not found', "create it", "spec.store.caBundleRef"),
        ),
        (
            kubelet("FailedMount", f'{MOUNT}secret "absent" not found', "2026-11-24T09:11:13Z"),
            "FailedMount",
            (POD, 'secret "absent" not found', "create it", "spec.job.podTemplate"),
        ),
        (
            kubelet("FailedMount", f"{MOUNT}configmap references non-existent config key: ca.crt", "1"),
            "FailedMount",
            ("non-existent config key: ca.crt", "add that key"),
        ),
        (
            kubelet("FailedMount", f"{MOUNT}hostPath type check failed: /x is not a directory", "1"),
            "FailedMount",
            ("/x is not a directory", "correct the volume in spec.job.podTemplate"),
        ),
        (
            kubelet(
                "FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used', "1"
            ),
            "FailedAttachVolume",
            ("Multi-Attach", "repair the storage"),
        ),
        (
            kubelet(
                "FailedCreatePodSandBox", "Failed to create pod sandbox: cni plugin not initialized", "1"
            ),
            "FailedCreatePodSandBox",
            ("cni plugin not initialized", "network plugin"),
        ),
        (
            {
                **controller("TrainJobResourcesCreationFailed", f"reconciliation failed: {IMMUTABLE}"),
                "type": "Warning",
            },
            "FailedCreate",
            ("vjobset.kb.io", "field is immutable"),
        ),
        (
            controller("FailedCreatePod", f"Error creating: {QUOTA.format(POD)}"),
            "FailedCreate",
            ("exceeded quota: gpus", "raise the ResourceQuota"),
        ),
        (
            controller("FailedCreate", f"Error creating: {STRICT.format(POD, 'pytorch')}"),
            "FailedCreate",
            ("violates PodSecurity", "spec.job.podTemplate"),
        ),
        (
            controller("FailedCreatePod", f"Error creating: {STRICT.format(POD, 'init-pytorch')}"),
            "FailedCreate",
            ("init-pytorch", "give the training operator an init container"),
        ),
        (
            controller("FailedCreate", f"{FORBIDDEN}no PriorityClass with name high was found"),
            "FailedCreate",
            ("no PriorityClass with name high", "create it", "spec.job.priorityClassName"),
        ),
        (
            controller("FailedCreate", f'{FORBIDDEN}error looking up service account a/b: "b" not found'),
            "FailedCreate",
            ("service account a/b", "create it", "spec.job.serviceAccountName"),
        ),
        (
            controller("FailedCreate", f'{FORBIDDEN}pod rejected: RuntimeClass "gvisor" not found'),
            "FailedCreate",
            ('RuntimeClass "gvisor"', "create it", "runtimeClassName in spec.job.podTemplate"),
        ),
        (
            controller("FailedCreate", f"{FORBIDDEN}maximum cpu usage per Container is 2, but limit is 8"),
            "FailedCreate",
            ("maximum cpu usage", "LimitRange", "spec.job.resources"),
        ),
        (
            {
                **controller("TrainJobResourcesCreationFailed", f"reconciliation failed: {AWAY}"),
                "type": "Warning",
            },
            "FailedCreate",
            ("mjobset.kb.io", "start the controller behind that Service"),
        ),
    ],
    ids=[
        "config-map",
        "secret",
        "key",
        "host-path",
        "attach",
        "sandbox",
        "train-job",
        "quota",
        "pod-security",
        "init",
        "priority-class",
        "service-account",
        "runtime-class",
        "limit-range",
        "webhook-away",
    ],
)
def test_what_an_event_tells_comes_with_a_remedy(event: Object, reason: str, told: tuple[str, ...]) -> None:
    said, message = explain_pending([scheduled("2026-11-24T09:10:41.878634Z"), event])
    assert said == reason
    assert [part for part in told if part not in message] == []


@pytest.mark.parametrize(
    "events",
    [
        [],
        [scheduled("2026-11-24T09:10:41.878634Z")],
        [kubelet("Unhealthy", "slow", "9"), kubelet("BackOff", "Back-off pulling image", "9")],
        [controller("FailedCreatePod", f'pods "{POD}" already exists')],
        [
            kubelet("FailedMount", f"{MOUNT}timed out waiting for the condition", "2026-11-24T09:10:42Z"),
            kubelet("Pulling", 'Pulling image "trainer"', "2026-11-24T09:11:14Z", kind="Normal"),
        ],
    ],
    ids=["none", "on-its-way", "told-by-the-status", "exists", "mounted-since"],
)
def test_what_holds_nothing_up_is_not_told(events: list[Object]) -> None:
    assert explain_pending(events) == ("", "")


def test_one_pod_that_has_come_further_hides_no_other() -> None:
    pulling = kubelet("Pulling", "image", "2026-11-24T09:12:00Z", kind="Normal", pod="a")
    stuck = kubelet("FailedMount", f'{MOUNT}secret "x" not found', "2026-11-24T09:11:00Z", pod="b")
    assert explain_pending([stuck, pulling])[1].startswith("b: MountVolume")


def test_the_last_word_counts() -> None:
    older = kubelet("FailedMount", f'{MOUNT}configmap "a" not found', "2026-11-24T09:10:59Z")
    newer = kubelet("FailedMount", f'{MOUNT}configmap "b" not found', "2026-11-24T09:11:00Z")
    series = scheduled("2026-11-24T09:00:00.000000Z") | {
        "reason": "FailedMount",
        "type": "Warning",
        "message": "newest",
        "series": {"count": 3, "lastObservedTime": "2026-11-24T09:11:01.500000Z"},
    }
    assert '"b"' in explain_pending([older, newer])[1]
    assert '"b"' in explain_pending([newer, older])[1]
    assert "newest" in explain_pending([series, newer])[1]


def test_a_long_message_keeps_who_refuses_and_why_and_leaves_room_for_the_remedy() -> None:
    message = f'admission webhook "quota" denied the request: Invalid value: {"x" * 4000}: exceeded quota'
    told = explain_pending([controller("FailedCreate", message)])[1]
    assert told.startswith('admission webhook "quota" denied')
    assert told.endswith("exceeded quota; raise the ResourceQuota, or ask for less in spec.job")
    assert len(told) < MAX_REFUSAL + 200


def job(*, pods: int, deleted: bool = False) -> Object:
    metadata = {"name": JOB, "uid": "job"} | (
        {"deletionTimestamp": "2026-11-24T09:00:00Z"} if deleted else {}
    )
    spec = {"completions": pods}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def pod(number: int, phase: str = "Pending", node: str | None = "a", **status: object) -> Object:
    name = f"{JOB}-{number}"
    return {
        "metadata": {"name": name, "uid": name},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, **status},
    }


def containers(**state: object) -> list[Object]:
    return [{"name": "pytorch", "state": state}]


CREATING = containers(waiting={"reason": "ContainerCreating"})


def test_a_job_that_lacks_pods_is_asked_about_itself() -> None:
    assert unexplained(job(pods=2), [pod(0)]) == UnexplainedJob(lacks_pods=True, uids=("job",))


def test_what_makes_the_pods_of_a_job_is_asked_about_too() -> None:
    inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inner", "uid": "inner"}}
    assert unexplained(job(pods=2), [], [inner]) == UnexplainedJob(lacks_pods=True, uids=("job", "inner"))


def test_few_of_the_pods_that_are_set_up_are_asked_about() -> None:
    pods = [pod(number, containerStatuses=CREATING) for number in reversed(range(9))]
    wanted = tuple(f"{JOB}-{number}" for number in range(ASKED_PODS))
    assert unexplained(job(pods=9), pods) == UnexplainedJob(lacks_pods=False, uids=wanted)


@pytest.mark.parametrize(
    ("of", "there"),
    [
        (job(pods=1), pod(0, "Running", containerStatuses=containers(running={}))),
        (job(pods=1), pod(0, node=None)),
        (job(pods=1), pod(0, containerStatuses=containers(waiting={"reason": "ErrImagePull"}))),
        (
            job(pods=1),
            pod(0, initContainerStatuses=containers(running={}),
                containerStatuses=containers(waiting={"reason": "PodInitializing"})),
        ),
        (job(pods=2, deleted=True), pod(0)),
    ],
    ids=["runs", "no-node", "image", "init-container-runs", "deleted"],
)  # fmt: skip
def test_nobody_is_asked_where_the_status_says_it_all(of: Object, there: Object) -> None:
    assert unexplained(of, [there]) is None
