"""Many chains under a small quota of the real Kueue: is it kept, is it used, is it shared, and does preemption cost.

    python -m benchmarks.quota --backend TrainJob

Everything is real but the training: etcd, API server, Kueue, the controllers of the kind of job, the operator, and a
process for each pod (`simulated_trainer`). Half of the chains stand in each of two queues, which share the quota of a
cohort fairly; then some of a higher priority come. What is measured is read from a watch of the pods alone:

- most pods at once, which has to be the quota;
- how long a free slot stays free while chains wait, from the end of a pod to the making of the next;
- the share that each queue has of the slots, while both have chains that wait;
- failures that preempted stages count, which has to be none.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.simulated_jobs import Api
from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.kueue import Kueue
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.control_plane.trainer import TrainerStack
from tests.operator.chains import ClusterChain
from tests.operator.kueue.queues import Queues
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

ROOT = Path(__file__).parents[1]
NAMESPACE = "vision"
QUEUES = ("red", "blue")
CPU = "100m"  # of a pod: a slot of the quota
FAIR = {"preemptionStrategies": ["LessThanOrEqualToFinalShare", "LessThanInitialShare"]}
URGENT_SHARE = 10  # one urgent chain for so many others


@dataclass(frozen=True)
class Result:
    backend: str
    chains: int
    quota: int
    most_at_once: int
    free_slot_seconds_p50: float
    free_slot_seconds_p99: float
    shares: dict[str, float]  # of the slots, by queue, while both had chains that wait
    preempted: int  # pods that were ended before their time
    failures: int
    most_attempts: int  # of any stage
    seconds: float  # until all were complete

    def __str__(self) -> str:
        free = f"p50 {self.free_slot_seconds_p50:.2f} s, p99 {self.free_slot_seconds_p99:.2f}"
        shares = ", ".join(f"{queue} {share:.1%}" for queue, share in self.shares.items())
        return "\n".join(
            [
                f"{self.chains} chains of {self.backend}s under a quota of {self.quota}: {self.seconds:.0f} s",
                f"  most pods at once        {self.most_at_once}",
                f"  a free slot stays free   {free} s",
                f"  shares                   {shares}",
                f"  preempted pods           {self.preempted}",
                f"  failures counted         {self.failures}; attempts of a stage at most {self.most_attempts}",
            ]
        )


@dataclass
class Slots:
    """Who had a slot, and when, by the pods that a watch shows."""

    live: dict[str, str] = field(default_factory=dict)  # by uid of the pod: its queue
    most: int = 0
    freed: list[float] = field(default_factory=list)  # when slots were freed that nobody has taken yet
    waits: list[tuple[float, float]] = field(
        default_factory=list
    )  # when a slot was taken, how long it was free
    held: list[tuple[float, dict[str, int]]] = field(
        default_factory=list
    )  # from then on, so many of each queue
    preempted: set[str] = field(default_factory=set)
    ending: set[str] = field(default_factory=set)  # names of pods that are deleted, and may live yet
    _gone: set[str] = field(default_factory=set)

    def show(self, kind: str, pod: dict[str, Any], now: float) -> None:
        """An event of the watch."""
        uid, metadata = pod["metadata"]["uid"], pod["metadata"]
        ended = kind == "DELETED" or pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if metadata.get("deletionTimestamp") and not ended:
            self.ending.add(metadata["name"])
        elif ended:
            self.ending.discard(metadata["name"])
        if ended and uid not in self._gone:
            if pod.get("status", {}).get("phase") != "Succeeded":
                self.preempted.add(metadata["name"])
            self._gone.add(uid)
            if self.live.pop(uid, None) is not None:
                self.freed.append(now)
        elif not ended and uid not in self.live and uid not in self._gone:
            self.live[uid] = metadata["annotations"]["benchmark/queue"]
            if len(self.live) > self.most:
                self.most = len(self.live)
                say(f"{self.most} pods at once: {metadata['name']} beside {sorted(self.ending)} that end")
            if self.freed:
                self.waits.append((now, now - self.freed.pop(0)))
        else:
            return
        self.held.append((now, {queue: list(self.live.values()).count(queue) for queue in QUEUES}))

    def shares(self, since: float, until: float) -> dict[str, float]:
        """Of the time that all slots were held in, by queue."""
        total: dict[str, float] = dict.fromkeys(QUEUES, 0.0)
        for (begin, counts), (end, _) in zip(self.held, [*self.held[1:], (until, {})], strict=True):
            seconds = max(0.0, min(end, until) - max(begin, since))
            for queue, count in counts.items():
                total[queue] += count * seconds
        whole = sum(total.values()) or 1.0
        return {queue: seconds / whole for queue, seconds in total.items()}


class Watch:
    """Watches the pods of the namespace, in a thread."""

    def __init__(self, api: Api) -> None:
        self._api, self.slots, self._lock = api, Slots(), threading.Lock()
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        version = api.send("GET", path)["metadata"]["resourceVersion"]
        self._thread = threading.Thread(target=self._run, args=(path, version), daemon=True)
        self._thread.start()

    def _run(self, path: str, version: str) -> None:
        for line in self._api.watch(path, version):
            event = json.loads(line)
            if "modelchain.dev/stage" in event["object"].get("metadata", {}).get("labels", {}):
                with self._lock:
                    self.slots.show(event["type"], event["object"], time.monotonic())


def main() -> None:
    arguments = parse_arguments()
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="quota-"))
    folder.mkdir(parents=True, exist_ok=True)
    with environment(folder) as (plane, server):
        result = measure(plane, server, folder, arguments)
    print(json.dumps(asdict(result), indent=2) if arguments.output == "json" else f"\n{result}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure chains under a quota of Kueue.")
    parser.add_argument("--backend", choices=["PyTorchJob", "TrainJob", "Job"], default="PyTorchJob")
    parser.add_argument("--chains", type=int, default=50, help="of both queues (default: %(default)s)")
    parser.add_argument("--quota", type=int, default=4, help="pods at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=6, help="that a stage takes (default: %(default)s)")
    parser.add_argument("--folder", help="for logs and data (default: a new one, which stays)")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    return parser.parse_args()


@contextlib.contextmanager
def environment(folder: Path) -> Iterator[tuple[ControlPlane, SeaweedFS]]:
    """The control plane with all controllers and queues, the store, the pods' runner and the operator."""
    plane, server = ControlPlane(folder / "plane"), SeaweedFS(folder / "seaweedfs")
    with contextlib.ExitStack() as stack:
        say(f"logs are in {folder}")
        stack.callback(plane.stop)
        plane.start()
        install_modelchain(plane)
        trainer = TrainerStack(plane)
        stack.callback(trainer.kill)
        trainer.install()
        kueue = Kueue(plane, fairSharing=FAIR)
        stack.callback(kueue.kill)
        kueue.install()
        stack.callback(server.kill)
        server.start()
        os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
        plane.kubectl("create", "namespace", NAMESPACE)
        runner = PodRunner(plane, folder / "pods", namespace=NAMESPACE)
        stack.callback(runner.close)
        runner.start()
        operator = OperatorProcess(plane.kubeconfig, None, folder / "operator.log")
        stack.callback(operator.kill)
        operator.start()
        yield plane, server


def measure(plane: ControlPlane, server: SeaweedFS, folder: Path, arguments: argparse.Namespace) -> Result:
    priority = make_queues(plane, arguments.quota)
    first = ClusterChain(plane, server, NAMESPACE, folder, name="first")
    watch = Watch(Api(plane.url, plane.token))
    began = time.monotonic()
    names = [f"{queue}-{index}" for index in range(arguments.chains // 2) for queue in QUEUES]
    plane.apply(*(chain(first, name, arguments) for name in names))
    wait_until(lambda: len(complete(plane)) >= len(names) // 3, "a third is complete", seconds=3600, pause=1)
    urgent = [f"{QUEUES[0]}-urgent-{index}" for index in range(max(1, arguments.chains // URGENT_SHARE))]
    shared_until = time.monotonic()
    say(f"urgent chains come after {shared_until - began:.0f} s")
    plane.apply(*(chain(first, name, arguments, priority) for name in urgent))
    everything = len(names) + len(urgent)
    wait_until(lambda: len(complete(plane)) == everything, "all are complete", seconds=3600, pause=1)
    stages = [stage for one in chains(plane) for stage in one["status"]["stages"]]
    slots = watch.slots
    longest = sorted(slots.waits, key=lambda one: -one[1])[:5]
    say("longest waits: " + ", ".join(f"{wait:.1f} s until {at - began:.0f} s" for at, wait in longest))
    waits = sorted(wait for _, wait in slots.waits)
    return Result(
        backend=arguments.backend,
        chains=everything,
        quota=arguments.quota,
        most_at_once=slots.most,
        free_slot_seconds_p50=waits[len(waits) // 2],
        free_slot_seconds_p99=waits[min(len(waits) - 1, int(len(waits) * 0.99))],
        shares=slots.shares(slots.held[0][0], shared_until),
        preempted=len(slots.preempted),
        failures=sum(stage["failures"] for stage in stages),
        most_attempts=max(stage["attempt"] for stage in stages),
        seconds=time.monotonic() - began,
    )


def make_queues(plane: ControlPlane, quota: int) -> str:
    """Two queues without a quota of their own, in a cohort that has it. Returns the name of a high priority."""
    queues = Queues(plane, NAMESPACE)
    resources = [{"name": "cpu", "nominalQuota": f"{100 * quota}m"}]
    group = {
        "coveredResources": ["cpu"],
        "flavors": [{"name": queues.name("flavor"), "resources": resources}],
    }
    cohort = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Cohort", "metadata": {"name": "models"}}
    plane.apply({**cohort, "spec": {"resourceGroups": [group]}})
    for queue in QUEUES:
        preemption = {"withinClusterQueue": "LowerPriority", "reclaimWithinCohort": "Any"}
        queues.quota("0", queue=queue, cohortName="models", preemption=preemption)
    return queues.priority("urgent", 1000)


def chain(
    first: ClusterChain, name: str, arguments: argparse.Namespace, priority: str | None = None
) -> dict[str, Any]:
    """A chain of one stage, with a store of its own, so that no other trains it too."""
    document = copy.deepcopy(first.document)
    document["metadata"]["name"] = name
    spec, queue = document["spec"], name.partition("-")[0]
    spec["stages"] = spec["stages"][:1]
    spec["store"]["uri"] = f"s3://{BUCKET}/quota/{name}"
    container = {
        "name": "pytorch",
        "command": ["python", "-m", "benchmarks.simulated_trainer", str(arguments.seconds)],
        "env": [{"name": "PYTHONPATH", "value": str(ROOT)}],
    }
    spec["job"] = {
        "backend": arguments.backend,
        "gpusPerNode": 0,
        "queueName": queue,
        "labels": {"kueue.x-k8s.io/priority-class": priority} if priority else {},
        "resources": {"requests": {"cpu": CPU}},
        "podTemplate": {
            "metadata": {"annotations": {"benchmark/queue": queue}},
            "spec": {"containers": [container]},
        },
    }
    return document


def chains(plane: ControlPlane) -> list[dict[str, Any]]:
    """As the API server has them."""
    return json.loads(plane.kubectl("get", "modelchains", "-n", NAMESPACE, "-o", "json").stdout)["items"]


def complete(plane: ControlPlane) -> list[str]:
    """Names of those that are."""
    return [
        one["metadata"]["name"] for one in chains(plane) if one.get("status", {}).get("phase") == "Complete"
    ]


if __name__ == "__main__":
    main()
