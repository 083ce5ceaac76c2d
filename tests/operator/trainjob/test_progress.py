"""What the trainer tells of its progress is what the Kubeflow Trainer's own server takes, and asks for."""

from __future__ import annotations

import subprocess
import urllib.error
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from modelchain.artifacts import Progress
from modelchain_trainer.telemetry.trainjob_status import StatusServer, find_server, trainer_status
from tests.control_plane.api import Object
from tests.control_plane.plane import ControlPlane
from tests.control_plane.trainer import UNSHARED, TrainerStack
from tests.processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trainer")]

TRAINJOB = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
PROGRESS = Progress(
    phase="Training",
    step=9,
    steps=30,
    sequence=4,
    loss={"total": 0.2347},
    metrics={"digits/top1": 0.9},
    eta_seconds=3.5,
    updated_at="2026-11-26T09:00:00.000Z",
)


def has_mounts_of_its_own() -> bool:
    """Whether a process here may have: this takes Linux, and root or user namespaces."""
    try:
        return subprocess.run([*UNSHARED, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def pod_of(plane: ControlPlane, namespace: str, name: str) -> Object:
    """What the pods of a TrainJob will be, from the JobSet that the Trainer makes of it."""

    def found() -> Object:
        jobsets = plane.read("apis/jobset.x-k8s.io/v1alpha2/jobsets", namespace)["items"]
        return next((one for one in jobsets if one["metadata"]["name"] == name), {})

    wait_until(lambda: bool(found()), "the Trainer has made a JobSet", pause=0.3)
    (replicated,) = found()["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


def server_of(plane: ControlPlane, pod: Object, namespace: str, folder: Path, port: int) -> StatusServer:
    """The server that a pod is told of, at its port on this machine, with the files of the pod's volume in `folder`."""
    (container,) = pod["containers"]
    told = find_server({one["name"]: one.get("value", "") for one in container["env"]})
    assert told is not None
    assert urlsplit(told.url).port == port
    (mount,) = [one for one in container["volumeMounts"] if Path(one["mountPath"]) == told.token.parent]
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount["name"]]
    for source in volume["projected"]["sources"]:
        if asked := source.get("serviceAccountToken"):
            (folder / asked["path"]).write_text(token(plane, namespace, asked["audience"]))
        else:
            content = plane.read("api/v1/configmaps", namespace, source["configMap"]["name"])["data"]
            for item in source["configMap"]["items"]:
                (folder / item["path"]).write_text(content[item["key"]])
    here = told.url.replace(urlsplit(told.url).netloc, f"127.0.0.1:{port}")
    return StatusServer(here, folder / told.authority.name, folder / told.token.name)


def token(plane: ControlPlane, namespace: str, audience: str) -> str:
    """Of the namespace's service account, as a kubelet asks for it."""
    return plane.kubectl("create", "token", "default", "-n", namespace, f"--audience={audience}").stdout


def takes(server: StatusServer, progress: Progress) -> bool:
    """Whether it takes the progress; False while it does not listen. Raises HTTPError where it refuses."""
    try:
        server.send(trainer_status(progress))
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError:
        return False
    return True


@pytest.mark.skipif(not has_mounts_of_its_own(), reason="the Trainer's server needs the files of a pod")
def test_the_trainers_own_server_writes_progress_into_the_status_of_the_trainjob(
    stack: TrainerStack, namespace: str, tmp_path: Path
) -> None:
    with stack.with_status_server() as port:
        metadata = {"name": "told", "namespace": namespace}
        job = {
            "spec": {"runtimeRef": {"name": "modelchain"}, "trainer": {"image": "trainer"}, "suspend": True}
        }
        stack.plane.apply({**TRAINJOB, "metadata": metadata, **job})
        server = server_of(stack.plane, pod_of(stack.plane, namespace, "told"), namespace, tmp_path, port)
        wait_until(lambda: takes(server, PROGRESS), "the server answers", pause=0.3)
        taken = stack.plane.read("apis/trainer.kubeflow.org/v1alpha1/trainjobs", namespace, "told")["status"]

        server.token.write_text(token(stack.plane, namespace, "somebody-else"))
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.send(trainer_status(PROGRESS))
    assert refused.value.code == 403
    told = taken["trainerStatus"]
    assert (told["progressPercentage"], told["estimatedRemainingSeconds"]) == (30, 4)
    assert {"name": "loss/total", "value": "0.2347"} in told["metrics"]
