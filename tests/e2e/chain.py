"""The quickstart chain on the cluster: examples/digits.yaml with its data and artifacts in S3."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from modelchain.artifacts import WEIGHTS, TrainLine, attempt_prefix
from modelchain.cluster_labels import ATTEMPT, CHAIN_UID, STAGE
from modelchain.commit import StoredCheckpoint, list_checkpoints, verify_stage
from modelchain.resolve import resolve
from modelchain.resolved import ResolvedStage
from modelchain.validation import check_object
from modelchain.yaml_reader import read_documents
from modelchain_trainer.telemetry.metrics_log import decode_lines
from tests.e2e.cluster import Object, image_trouble, kubectl, read, wait_until
from tests.e2e.settings import Failed
from tests.e2e.store import S3, SECRET_NAME

QUICKSTART = Path(__file__).parents[2] / "examples" / "digits.yaml"
DATA = "data"  # folder of the shards, in the store of the run
STAGE_SECONDS = 900.0
NEXT_ATTEMPT_SECONDS = 180.0


@dataclass(frozen=True)
class Deletion:
    """A pod that was deleted in mid-training, and what its attempt left."""

    pod: str
    stage: str
    attempt: int
    checkpoint: int  # step of its newest checkpoint
    token: str  # of the launch that wrote it: the training operator may make a pod again within an attempt


@dataclass(frozen=True)
class Job:
    """The job that trains a stage."""

    name: str
    uid: str
    attempt: int


class Chain:
    """One ModelChain, through kubectl and its store."""

    def __init__(self, s3: S3, namespace: str, *, name: str, nodes: int, backend: str) -> None:
        self.name, self.namespace, self.nodes = name, namespace, nodes
        self.store = s3.open(name)
        self._document = _document(s3, name=name, namespace=namespace, nodes=nodes, backend=backend)
        self._uid = ""

    def apply(self) -> None:
        """`kubectl apply`."""
        kubectl("apply", "-f", "-", text=json.dumps(self._document))
        self._uid = self.read()["metadata"]["uid"]

    def read(self) -> Object:
        """The chain as the API server has it."""
        return read("modelchain", self.name, "-n", self.namespace)

    def stage(self, name: str) -> dict[str, Any]:
        """The status of a stage; empty before the first."""
        stages = self.read().get("status", {}).get("stages", [])
        return next((stage for stage in stages if stage["name"] == name), {})

    def job(self, stage: str) -> Job:
        """The job of a stage's last attempt."""
        status = self.stage(stage)
        job = read(self._document["spec"]["job"]["backend"], status["job"], "-n", self.namespace)
        return Job(status["job"], job["metadata"]["uid"], status["attempt"])

    def delete_pod(self, stage: str, *, node: int, grace: bool) -> Deletion:
        """Delete a pod of the stage in mid-training, and see that another attempt begins that counts as no failure.

        With grace once the stage has made some steps, without it once there is a checkpoint as well.
        """
        self._wait(lambda: self._in_mid_training(stage, checkpoint=not grace), f"{stage} is in mid-training")
        attempt = self.stage(stage)["attempt"]
        pod = self._pods(stage, attempt)[node]
        force = [] if grace else ["--grace-period=0", "--force"]
        kubectl("delete", "pod", pod, "-n", self.namespace, "--wait=false", *force)
        self._wait(
            lambda: self._settled(stage) >= attempt, f"the end of {pod} is seen", seconds=NEXT_ATTEMPT_SECONDS
        )
        ended = self.stage(stage)["lastEnded"]
        if ended["counted"] or self.stage(stage)["failures"]:
            raise Failed(f"stage {stage}: that {pod} was deleted counts as a failure: {ended}")
        self._wait(
            lambda: self.stage(stage)["attempt"] > attempt,
            f"{stage} is tried again",
            seconds=NEXT_ATTEMPT_SECONDS,
        )
        checkpoint = self._newest_checkpoint(stage, attempt)
        if checkpoint is None:
            raise Failed(f"stage {stage}: attempt {attempt}, whose {pod} was deleted, has left no checkpoint")
        return Deletion(pod, stage, attempt, checkpoint.step, checkpoint.token)

    def wait_for_step(self, stage: str, step: int) -> None:
        """Wait until the stage is in mid-training."""
        self._wait(lambda: self._step(stage) >= step, f"{stage} is at step {step}")

    def wait_complete(self) -> None:
        """Wait for the condition Complete."""
        seconds = STAGE_SECONDS * len(self._document["spec"]["stages"])
        self._wait(lambda: self._condition("Complete"), f"chain {self.name} is complete", seconds=seconds)

    def check_went_on(self, deletion: Deletion) -> None:
        """The finished attempt has the steps up to the checkpoint from the attempt whose pod was deleted."""
        stage = self._resolved(deletion.stage)
        manifest = verify_stage(self.store, stage.folder, stage.digest)
        if manifest is None:
            raise Failed(f"stage {stage.name}: its manifest does not verify")
        before = self._history(stage, deletion.token, deletion.checkpoint)
        if not before or before != self._history(stage, manifest.attempt, deletion.checkpoint):
            raise Failed(
                f"stage {stage.name}: attempt {manifest.attempt} did not go on from step {deletion.checkpoint} "
                f"of attempt {deletion.attempt}, but trained again what that had trained"
            )

    def check_complete(self) -> dict[str, float]:
        """The chain is complete and so are its artifacts; returns each stage's accuracy."""
        status = self.read()["status"]
        if status["phase"] != "Complete":
            raise Failed(f"chain {self.name} is {status['phase']}: {status.get('message')}")
        accuracy = {}
        for name in (stage["name"] for stage in self._document["spec"]["stages"]):
            stage = self._resolved(name)
            manifest = verify_stage(self.store, stage.folder, stage.digest)
            if manifest is None or not any(entry.path.endswith(WEIGHTS) for entry in manifest.files):
                raise Failed(
                    f"{self.store.uri_of(stage.folder)}: the artifacts of stage {name} are not there"
                )
            accuracy[name] = manifest.metrics["digits/top1"]
        return accuracy

    def _wait(self, holds: Callable[[], bool], what: str, *, seconds: float = STAGE_SECONDS) -> None:
        wait_until(holds, what, seconds=seconds, unless=self._problem)

    def _problem(self) -> str | None:
        status = self.read().get("status", {})
        if status.get("phase") == "Failed":
            return f"the chain has failed: {status.get('message')}"
        return image_trouble(self.namespace)

    def _condition(self, kind: str) -> bool:
        conditions = self.read().get("status", {}).get("conditions", [])
        return any(one["type"] == kind and one["status"] == "True" for one in conditions)

    def _step(self, stage: str) -> int:
        return self.stage(stage).get("step") or 0

    def _settled(self, stage: str) -> int:
        return (self.stage(stage).get("lastEnded") or {}).get("attempt", 0)

    def _in_mid_training(self, stage: str, *, checkpoint: bool) -> bool:
        status = self.stage(stage)
        if status.get("phase") == "Complete":
            raise Failed(f"stage {stage} was complete before a pod of it could be deleted")
        enough = (status.get("checkpointStep") or 0) if checkpoint else (status.get("step") or 0)
        return status.get("phase") == "Running" and enough >= 20

    def _pods(self, stage: str, attempt: int) -> list[str]:
        """Names of the pods of an attempt, the master first."""
        labels = f"{CHAIN_UID}={self._uid},{STAGE}={stage},{ATTEMPT}={attempt}"
        pods = read("pods", "-n", self.namespace, "-l", labels)["items"]
        names = sorted(pod["metadata"]["name"] for pod in pods)
        if len(names) != self.nodes:
            raise Failed(f"stage {stage} has {len(names)} pods instead of {self.nodes}: {names}")
        return names

    def _resolved(self, stage: str) -> ResolvedStage:
        checked = check_object("", {key: value for key, value in self.read().items() if key != "status"})
        if checked.chain is None:
            raise Failed(f"the API server took a chain that is not valid: {checked.problems}")
        return next(one for one in resolve(checked.chain).stages if one.name == stage)

    def _newest_checkpoint(self, name: str, attempt: int) -> StoredCheckpoint | None:
        stage, prefix = self._resolved(name), f"{attempt_prefix(self._uid, attempt)}-"
        stored = list_checkpoints(self.store, stage.folder)
        return next((one for one in stored if one.finished and one.token.startswith(prefix)), None)

    def _history(self, stage: ResolvedStage, token: str, last_step: int) -> dict[int, float]:
        """When each step was trained that an attempt has logged, up to one."""
        prefix = f"{stage.folder}/attempts/{token}/metrics-"
        files = [self.store.get(info.key)[0] for info in self.store.list(prefix)]
        lines = [line for file in files for line in decode_lines(file, last_step)]
        return {line.step: line.wall_time for line in lines if isinstance(line, TrainLine)}


def _document(s3: S3, *, name: str, namespace: str, nodes: int, backend: str) -> Object:
    (quickstart,) = read_documents(QUICKSTART.read_text())
    document = cast("Object", quickstart.value)
    document["metadata"] = {"name": name, "namespace": namespace}
    spec = document["spec"]
    spec["store"] = {"uri": s3.within(name), "secretRef": {"name": SECRET_NAME}}
    if s3.endpoint:
        spec["store"]["endpointUrl"] = s3.endpoint
    for data in (spec["data"], *(one["data"] for one in spec["evaluation"])):
        data["shards"] = [f"{s3.within(DATA)}/{Path(shard).name}" for shard in data["shards"]]
    spec["job"] |= {"backend": backend, "nodes": nodes}
    spec["retry"] = {"backoffSeconds": 1, "leaseSeconds": 10}
    # The first stage has no checkpoint but the one that SIGTERM asks for, the second many to go on from after SIGKILL.
    first, second, *_ = spec["stages"]
    first["training"]["checkpointEverySteps"] = 100_000
    second["training"]["checkpointEverySteps"] = 10
    return document
