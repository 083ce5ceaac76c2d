"""Chains for a cluster: tiny models, shards and weights in the tests' S3 server, keys in a Secret."""

from __future__ import annotations

import base64
import copy
import json
import time
from pathlib import Path
from typing import Any

from modelchain.resolve import resolve
from modelchain.resolved import ResolvedChain
from modelchain.store import Store, open_store
from modelchain.validation import check_object
from tests.control_plane.plane import ControlPlane
from tests.faults import document
from tests.processes import PATIENCE_SECONDS, wait_until
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS
from tests.squares import write_squares

SECRET_NAME = "s3"  # noqa: S105
EPOCHS = 12  # of eight steps: more than a stage takes until it is held behind its first checkpoint
# Where the API server has what belongs to a chain. Reading it there and not through kubectl leaves the processor, while
# a test waits, to what it waits for.
RESOURCES = {
    "pods": "api/v1/pods",
    "jobs": "apis/batch/v1/jobs",
    "pytorchjobs": "apis/kubeflow.org/v1/pytorchjobs",
    "trainjobs": "apis/trainer.kubeflow.org/v1alpha1/trainjobs",
    "jobsets": "apis/jobset.x-k8s.io/v1alpha2/jobsets",
}
Object = dict[str, Any]


class ClusterChain:
    """One ModelChain in a namespace of its own, as its user sees it: through the API server and the store."""

    def __init__(
        self,
        plane: ControlPlane,
        server: SeaweedFS,
        namespace: str,
        folder: Path,
        *,
        name: str = "squares",
        prefix: str | None = None,
    ) -> None:
        self.plane, self.server, self.namespace, self.name = plane, server, namespace, name
        self.prefix = prefix or f"operator/{namespace}"
        self.access = server.access(self.prefix)
        pattern = self._upload_shards(folder)
        self.document = self._document(pattern)
        self._create_secret()

    @property
    def store(self) -> Store:
        """The chain's store."""
        return open_store(self.access)

    def apply(self, document: Object | None = None, **spec: Any) -> None:
        """`kubectl apply` the chain, with some fields of its spec replaced from now on."""
        if document is not None:
            self.document = document
        self.document = copy.deepcopy(self.document)
        self.document["spec"].update(spec)
        self.plane.kubectl("apply", "-f", "-", text=json.dumps(self.document))

    def read(self) -> Object:
        """The chain as the API server has it."""
        return self.plane.read("apis/modelchain.dev/v1alpha1/modelchains", self.namespace, self.name)

    def status(self) -> Object:
        """Its status; empty before the first."""
        return self.read().get("status") or {}

    def stage(self, name: str) -> Object:
        """The status of a stage; empty before the first."""
        return next((one for one in self.status().get("stages", []) if one["name"] == name), {})

    def condition(self, kind: str) -> Object:
        """A condition; empty before it is said."""
        return next((one for one in self.status().get("conditions", []) if one["type"] == kind), {})

    def wait(self, condition: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        """`kubectl wait --for=condition=...`; says what the chain looks like if that is in vain."""
        done = self.plane.kubectl(
            "wait",
            f"--for=condition={condition}",
            f"modelchain/{self.name}",
            "-n",
            self.namespace,
            f"--timeout={seconds:.0f}s",
            check=False,
            timeout=seconds + 30,
        )
        if done.returncode:
            text = self.plane.kubectl("describe", "modelchain", self.name, "-n", self.namespace).stdout
            raise AssertionError(f"{done.stderr}\n{text}")

    def wait_for_phase(self, stage: str, *phases: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until a stage is in one of these phases."""
        wait_until(
            lambda: self.stage(stage).get("phase") in phases,
            f"stage {stage} is {' or '.join(phases)}: {json.dumps(self.status(), indent=1)}",
            seconds=seconds,
            pause=0.3,
        )

    def wait_for_step(self, stage: str, step: int, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the status shows that the stage has come so far."""
        wait_until(
            lambda: (self.stage(stage).get("step") or 0) >= step,
            f"stage {stage} is at step {step}",
            seconds=seconds,
            pause=0.2,
        )

    def jobs(self, kind: str = "pytorchjobs") -> list[Object]:
        """The chain's jobs, oldest first."""
        items = self._list(kind)
        return sorted(items, key=lambda item: int(item["metadata"]["labels"]["modelchain.dev/attempt"]))

    def pods(self) -> list[Object]:
        """The chain's pods."""
        return self._list("pods")

    def events(self) -> list[Object]:
        """Kubernetes Events about the chain, oldest first."""
        selector = f"involvedObject.kind=ModelChain,involvedObject.name={self.name}"
        items = self.plane.read("api/v1/events", self.namespace, fieldSelector=selector)["items"]
        return sorted(items, key=lambda item: item["firstTimestamp"])

    def wait_until_told(self, *texts: str) -> None:
        """Until Events say each of these, as reason or in their message. They are sent after the status is written."""

        def told(text: str) -> bool:
            return any(text == one["reason"] or text in one["message"] for one in self.events())

        wait_until(lambda: all(map(told, texts)), f"Events tell of {', '.join(texts)}", pause=0.3)

    def resolved(self) -> ResolvedChain:
        """The chain as the API server has it, resolved."""
        checked = check_object("", {k: v for k, v in self.read().items() if k != "status"})
        assert checked.chain is not None, checked.problems
        return resolve(checked.chain)

    def wait_at_rest(self, seconds: float) -> None:
        """Wait until nobody has written the chain for so long: the last write of a change may come late, and one who
        writes again and again never rests.
        """
        written, since = "", time.monotonic()

        def rests() -> bool:
            nonlocal written, since
            version, now = self.read()["metadata"]["resourceVersion"], time.monotonic()
            if version != written:
                written, since = version, now
            return now - since >= seconds

        wait_until(rests, f"nobody writes the chain for {seconds} s", pause=0.2)

    def _document(self, pattern: str) -> Object:
        chain = document(self.access)
        spec = chain["spec"]
        spec["store"]["secretRef"] = {"name": SECRET_NAME}
        spec["data"]["shards"] = [pattern]
        spec["evaluation"][0]["data"]["shards"] = [pattern]
        spec["training"]["epochs"] = EPOCHS
        spec["image"] = "modelchain-trainer:test"
        spec["job"] = {
            "gpusPerNode": 0,
            "terminationGracePeriodSeconds": 20,
            "resources": {"requests": {"cpu": "100m"}},
        }
        spec["retry"] = {"limit": 3, "backoffSeconds": 0, "leaseSeconds": 5}
        chain["metadata"] = {"name": self.name, "namespace": self.namespace}
        return chain

    def _upload_shards(self, folder: Path) -> str:
        write_squares(folder / "squares", captions={"txt": "a {colour} square, number {number}"})
        data = open_store(self.server.access("data/squares"))
        for shard in sorted((folder / "squares").glob("*.tar")):
            data.put(shard.name, shard.read_bytes())
        return f"s3://{BUCKET}/data/squares/{{000..001}}.tar"

    def _create_secret(self) -> None:
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        self.plane.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET_NAME, "namespace": self.namespace},
                "data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()},
            }
        )

    def _list(self, kind: str) -> list[Object]:
        uid = self.read()["metadata"]["uid"]
        selector = f"modelchain.dev/chain-uid={uid}"
        return self.plane.read(RESOURCES[kind], self.namespace, labelSelector=selector)["items"]
