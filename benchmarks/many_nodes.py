"""Many chains of multi-node stages on many simulated nodes: every job gets all of its pods or none.

    python -m benchmarks.many_nodes
    python -m benchmarks.many_nodes --nodes 8 --chains 6
    python -m benchmarks.many_nodes --nodes 8 --chains 6 --no-queue --patience 120

The API server, kube-scheduler, Kueue, the training operator and the operator are the real ones. Nodes are simulated by
kwok, eight GPUs each; the quota of Kueue is all of them, and a pod takes a whole node. The chains ask together for
more than there is. Once all pods of a job run, its stage is committed after some seconds. What is looked for:

- a job of which some pods run and others do not, for long: with enough of these, no stage would ever end, as without
  a queue (`--no-queue`);
- more GPUs in use than there are, or asked for by the jobs that have been let go: these would wait for each other;
- whether all chains complete.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.simulated_jobs import STRATEGIC_MERGE, Api, Trainer
from modelchain.resolved import ATTEMPT_VARIABLE, STAGE_ENVIRONMENT_VARIABLE, ResolvedStage
from modelchain.store import open_store
from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.kueue import Kueue
from tests.control_plane.plane import ControlPlane
from tests.control_plane.simulated_nodes import GPUS, SimulatedNodes
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

NAMESPACE = "vision"
SIZES = (4, 8, 16)  # nodes of a chain's stages, in turn
JOB_LABEL = "training.kubeflow.org/job-name"
LOOK_SECONDS = 1.0
QUEUES = "kueue.x-k8s.io/v1beta2"

Object = dict[str, Any]


@dataclass
class Result:
    nodes: int
    chains: int
    complete: int
    stages: int
    most_gpus: int  # of pods on nodes, at once
    most_gpus_let_go: int  # of all pods of the jobs that have any and have not ended, at once
    most_jobs: int  # at once
    longest_half_started: float  # seconds in which some pods of a job ran, and not all
    half_started_at_end: int
    failures: int
    most_attempts: int
    seconds: float

    def __str__(self) -> str:
        half = f"{self.longest_half_started:.1f} s at most; at the end {self.half_started_at_end}"
        return "\n".join(
            [
                f"{self.chains} chains of {self.stages} stages in all on {self.nodes} nodes: {self.seconds:.0f} s",
                f"  chains complete     {self.complete}",
                (
                    f"  most at once        {self.most_gpus} of {GPUS * self.nodes} GPUs, {self.most_jobs} jobs; "
                    f"{self.most_gpus_let_go} GPUs asked for by jobs that were let go"
                ),
                f"  half started        {half}",
                f"  failures counted    {self.failures}; attempts of a stage at most {self.most_attempts}",
            ]
        )


@dataclass
class Cluster:
    """What is seen of the pods, and the end of stages all of whose pods run."""

    api: Api
    stage_seconds: float
    most_gpus: int = 0
    most_gpus_let_go: int = 0
    most_jobs: int = 0
    longest_half: float = 0.0
    half: dict[str, float] = field(default_factory=dict)  # by job: since when it is half started
    _whole: dict[str, float] = field(default_factory=dict)  # by job: since when all of its pods run
    _ended: set[str] = field(default_factory=set)

    def look(self) -> None:
        """Once: count, and end what has run for long enough."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?fieldSelector=status.phase!=Succeeded"
        jobs: dict[str, list[Object]] = {}
        for pod in self.api.send("GET", path)["items"]:
            jobs.setdefault(pod["metadata"]["labels"][JOB_LABEL], []).append(pod)
        now, on_nodes, live, let_go = time.monotonic(), 0, 0, 0
        for job, pods in jobs.items():
            phases = Counter(pod["status"]["phase"] for pod in pods)
            bound = sum("nodeName" in pod["spec"] for pod in pods)
            on_nodes, live = on_nodes + bound, live + (bound > 0)
            stage = _stage(pods[0])
            let_go += 0 if job in self._ended else stage.job.nodes
            if 0 < phases["Running"] < stage.job.nodes and job not in self._ended:
                self.half.setdefault(job, now)
                self.longest_half = max(self.longest_half, now - self.half[job])
            else:
                self.half.pop(job, None)
            runs_since = self._whole.setdefault(job, now) if phases["Running"] == stage.job.nodes else now
            if now - runs_since >= self.stage_seconds and job not in self._ended:
                self._ended.add(job)
                self._end(stage, pods)
        self.most_gpus = max(self.most_gpus, GPUS * on_nodes)
        self.most_gpus_let_go = max(self.most_gpus_let_go, GPUS * let_go)
        self.most_jobs = max(self.most_jobs, live)

    def _end(self, stage: ResolvedStage, pods: list[Object]) -> None:
        """Commit the stage, and say of its pods that they have ended well."""
        attempt = _environment(pods[0])[ATTEMPT_VARIABLE]
        trainer = Trainer(open_store(stage.store), stage, f"{attempt}-{secrets.token_hex(4)}")
        trainer.begin()
        trainer.upload()
        trainer.commit()
        trainer.end()
        for pod in pods:
            ended = {"exitCode": 0, "reason": "Completed"}
            statuses = [
                {**one, "ready": False, "state": {"terminated": ended}}
                for one in pod["status"]["containerStatuses"]
            ]
            status = {"phase": "Succeeded", "containerStatuses": statuses}
            with contextlib.suppress(
                RuntimeError
            ):  # the training operator removes workers once the master has ended
                path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}/status"
                self.api.send("PATCH", path, {"status": status}, STRATEGIC_MERGE)


def _environment(pod: Object) -> Mapping[str, str]:
    (container,) = pod["spec"]["containers"]
    return {one["name"]: one.get("value", "") for one in container["env"]}


def _stage(pod: Object) -> ResolvedStage:
    return ResolvedStage.model_validate_json(_environment(pod)[STAGE_ENVIRONMENT_VARIABLE])


def main() -> None:
    arguments = parse_arguments()
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="many-nodes-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"logs are in {folder}", file=sys.stderr, flush=True)
    with environment(folder, arguments.nodes) as (plane, server):
        result = measure(plane, server, folder, arguments)
    print(json.dumps(asdict(result), indent=2) if arguments.output == "json" else f"\n{result}")


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Those of the command line, unless others are given."""
    parser = argparse.ArgumentParser(description="Many chains of multi-node stages on simulated nodes.")
    parser.add_argument("--nodes", type=int, default=200, help="of eight GPUs (default: %(default)s)")
    parser.add_argument("--chains", type=int, default=50, help="of two stages (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="that a stage takes (default: %(default)s)")
    parser.add_argument(
        "--no-queue", action="store_true", help="jobs start at once, as without Kueue: to compare"
    )
    parser.add_argument(
        "--patience", type=float, default=1800, help="then it ends (default: %(default)s seconds)"
    )
    parser.add_argument("--folder", help="for logs and data (default: a new one, which stays)")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    return parser.parse_args(given)


@contextlib.contextmanager
def environment(folder: Path, nodes: int) -> Iterator[tuple[ControlPlane, SeaweedFS]]:
    """The control plane with all controllers, the nodes, the store and the operator."""
    plane, server = ControlPlane(folder / "plane"), SeaweedFS(folder / "seaweedfs")
    with contextlib.ExitStack() as stack:
        stack.callback(plane.stop)
        plane.start()
        install_modelchain(plane)
        kueue = Kueue(plane, frameworks=("batch/job", "kubeflow.org/pytorchjob"))
        stack.callback(kueue.kill)
        kueue.install()
        simulated = SimulatedNodes(plane, nodes)
        stack.callback(simulated.kill)
        simulated.start()
        stack.callback(server.kill)
        server.start()
        os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
        plane.kubectl("create", "namespace", NAMESPACE)
        make_queue(plane, nodes)
        operator = OperatorProcess(plane.kubeconfig, None, folder / "operator.log")
        stack.callback(operator.kill)
        operator.start()
        yield plane, server


def make_queue(plane: ControlPlane, nodes: int) -> None:
    """One queue whose quota is every GPU that there is."""
    flavor = {"name": "nodes", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": str(GPUS * nodes)}]}
    group = {"coveredResources": ["nvidia.com/gpu"], "flavors": [flavor]}
    plane.apply(
        {"apiVersion": QUEUES, "kind": "ResourceFlavor", "metadata": {"name": "nodes"}, "spec": {}},
        {
            "apiVersion": QUEUES,
            "kind": "ClusterQueue",
            "metadata": {"name": "all"},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": QUEUES,
            "kind": "LocalQueue",
            "metadata": {"name": "research", "namespace": NAMESPACE},
            "spec": {"clusterQueue": "all"},
        },
    )


def measure(plane: ControlPlane, server: SeaweedFS, folder: Path, arguments: argparse.Namespace) -> Result:
    first = ClusterChain(plane, server, NAMESPACE, folder, name="first")
    cluster = Cluster(Api(plane.url, plane.token), arguments.seconds)
    documents = [chain(first, number, arguments) for number in range(arguments.chains)]
    began = time.monotonic()
    plane.apply(*documents)

    def done() -> bool:
        cluster.look()
        return all(one.get("status", {}).get("phase") == "Complete" for one in chains(plane))

    with contextlib.suppress(AssertionError):
        wait_until(done, "all chains are complete", seconds=arguments.patience, pause=LOOK_SECONDS)
    seen = chains(plane)
    stages = [stage for one in seen for stage in one["status"]["stages"]]
    return Result(
        nodes=arguments.nodes,
        chains=arguments.chains,
        complete=sum(one["status"]["phase"] == "Complete" for one in seen),
        stages=len(stages),
        most_gpus=cluster.most_gpus,
        most_gpus_let_go=cluster.most_gpus_let_go,
        most_jobs=cluster.most_jobs,
        longest_half_started=cluster.longest_half,
        half_started_at_end=len(cluster.half),
        failures=sum(stage["failures"] for stage in stages),
        most_attempts=max(stage["attempt"] for stage in stages),
        seconds=time.monotonic() - began,
    )


def chain(first: ClusterChain, number: int, arguments: argparse.Namespace) -> Object:
    """A chain with a store of its own; its stages take 4, 8 or 16 nodes, never more than a half of all."""
    document = copy.deepcopy(first.document)
    document["metadata"]["name"] = f"chain-{number}"
    spec = document["spec"]
    spec["store"]["uri"] = f"s3://{BUCKET}/many-nodes/{number}"
    spec["training"]["globalBatchSize"] = GPUS * max(SIZES)
    spec["data"]["samples"] = GPUS * max(SIZES)
    spec["job"] = {
        "gpusPerNode": GPUS,
        "nodes": min(SIZES[number % len(SIZES)], arguments.nodes // 2),
        **({} if arguments.no_queue else {"queueName": "research"}),
    }
    return document


def chains(plane: ControlPlane) -> list[Object]:
    """As the API server has them."""
    return plane.read("apis/modelchain.dev/v1alpha1/modelchains", NAMESPACE)["items"]


if __name__ == "__main__":
    main()
