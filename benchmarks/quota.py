"""Many chains under a small quota of the real Kueue: is it kept, is it used, is it shared, and does preemption cost.

    python -m benchmarks.quota --backend TrainJob

Everything is real but the training: etcd, API server, Kueue, the controllers of the kind of job, the operator, and a
process for each pod (`simulated_trainer`). Half of the chains stand in each of two queues, which share the quota of a
cohort fairly; then some of a higher priority come. What is measured is read from watches alone (`quota_slots`):

- most pods at once, which has to be the quota, and as many with those that have been asked to end;
- how long a free slot stays free while chains wait, and in which step;
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
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.quota_slots import QUEUE_ANNOTATION, Watch, quantile, summary
from benchmarks.simulated_jobs import Api
from modelchain.spec import JobBackend
from modelchain_operator.jobs import BACKENDS
from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.kueue import Kueue
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.control_plane.trainer import TrainerStack
from tests.operator.chains import ClusterChain
from tests.operator.kueue.queues import Queues
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

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
    most_admitted: int  # Workloads with a quota at once
    most_at_once: int  # pods that nobody has asked to end
    most_with_ending: int  # and those that were
    free_slot_seconds_p50: float
    free_slot_seconds_p99: float
    steps: dict[str, tuple[float, float]]  # of a free slot: median and 99th percentile, seconds
    shares: dict[str, float]  # of the slots, by queue, while both had chains that wait
    preempted: int  # pods that were ended before their time
    failures: int
    most_attempts: int  # of any stage
    seconds: float  # until all were complete
    processor_seconds: dict[str, float]  # by program
    cores: int  # of the machine
    load: tuple[float, float]  # average of the last minute, before and after: what else the machine did

    def __str__(self) -> str:
        free = f"p50 {self.free_slot_seconds_p50:.2f} s, p99 {self.free_slot_seconds_p99:.2f}"
        shares = ", ".join(f"{queue} {share:.1%}" for queue, share in self.shares.items())
        steps = ", ".join(f"{name} {p50:.2f} / {p99:.2f}" for name, (p50, p99) in self.steps.items())
        spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.processor_seconds.items())
        return "\n".join(
            [
                f"{self.chains} chains of {self.backend}s under a quota of {self.quota}: {self.seconds:.0f} s",
                (
                    f"  most at once             {self.most_admitted} Workloads, {self.most_at_once} pods, "
                    f"{self.most_with_ending} with those that were asked to end"
                ),
                f"  a free slot stays free   {free} s",
                f"    of that, p50 / p99     {steps}",
                f"  shares                   {shares}",
                f"  preempted pods           {self.preempted}",
                f"  failures counted         {self.failures}; attempts of a stage at most {self.most_attempts}",
                f"  processor seconds        {spent}",
                f"  load                     {self.load[0]:.1f} before, {self.load[1]:.1f} after; {self.cores} cores",
            ]
        )


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
    kind = BACKENDS[JobBackend(arguments.backend)].kind
    watch = Watch(Api(plane.url, plane.token), NAMESPACE, kind, QUEUES, arguments.quota)
    spent, load = processor_seconds(), os.getloadavg()[0]
    began = time.monotonic()
    names = [f"{queue}-{index}" for index in range(arguments.chains // 2) for queue in QUEUES]
    plane.apply(*(chain(first, name, arguments.backend, arguments.seconds) for name in names))
    wait_until(lambda: len(watch.complete) >= len(names) // 3, "a third is complete", seconds=3600, pause=1)
    urgent = [f"{QUEUES[0]}-urgent-{index}" for index in range(max(1, arguments.chains // URGENT_SHARE))]
    shared_until = time.monotonic()
    say(f"urgent chains come after {shared_until - began:.0f} s")
    plane.apply(*(chain(first, name, arguments.backend, arguments.seconds, priority) for name in urgent))
    everything = len(names) + len(urgent)
    wait_until(lambda: len(watch.complete) == everything, "all are complete", seconds=3600, pause=1)
    stages = [stage for one in chains(plane) for stage in one["status"]["stages"]]
    slots = watch.slots
    longest = sorted(slots.waits, key=lambda one: -one[1])[:5]
    say("longest waits: " + ", ".join(f"{wait:.1f} s until {at - began:.0f} s" for at, wait in longest))
    waits = [wait for _, wait in slots.waits]
    return Result(
        backend=arguments.backend,
        chains=everything,
        quota=arguments.quota,
        most_admitted=watch.admissions.most,
        most_at_once=slots.most,
        most_with_ending=slots.most_with_ending,
        free_slot_seconds_p50=quantile(waits, 0.5),
        free_slot_seconds_p99=quantile(waits, 0.99),
        steps=summary(watch.admissions.steps),
        shares=slots.shares(shared_until),
        preempted=len(slots.preempted),
        failures=sum(stage["failures"] for stage in stages),
        most_attempts=max(stage["attempt"] for stage in stages),
        seconds=time.monotonic() - began,
        processor_seconds={name: value - spent.get(name, 0.0) for name, value in processor_seconds().items()},
        cores=os.cpu_count() or 1,
        load=(load, os.getloadavg()[0]),
    )


def processor_seconds() -> dict[str, float]:
    """What the programs that we have started, and we ourselves, have used so far. Pods are counted as one, and only
    those that have ended: their parent is told then.
    """
    tick, own = os.sysconf("SC_CLK_TCK"), str(os.getpid())
    found: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            if fields[1] == own:
                found[name] = found.get(name, 0.0) + sum(map(int, fields[11:13])) / tick
    ours = os.times()
    return {
        **found,
        "this benchmark": ours.user + ours.system,
        "pods": ours.children_user + ours.children_system,
    }


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
    first: ClusterChain, name: str, backend: str, seconds: float, priority: str | None = None
) -> dict[str, Any]:
    """A chain of one stage that takes so many seconds, for the queue that its name begins with. Its store is its own,
    so that no other trains it too.
    """
    document = copy.deepcopy(first.document)
    document["metadata"]["name"] = name
    spec, queue = document["spec"], name.partition("-")[0]
    spec["stages"] = spec["stages"][:1]
    spec["store"]["uri"] += f"/{name}"
    container = {
        "name": "pytorch",
        "command": ["python", "-m", "benchmarks.simulated_trainer", str(seconds)],
        "env": [{"name": "PYTHONPATH", "value": str(ROOT)}],
    }
    spec["job"] = {
        "backend": backend,
        "gpusPerNode": 0,
        "queueName": queue,
        "labels": {"kueue.x-k8s.io/priority-class": priority} if priority else {},
        "resources": {"requests": {"cpu": CPU}},
        "podTemplate": {
            "metadata": {"annotations": {QUEUE_ANNOTATION: queue}},
            "spec": {"containers": [container]},
        },
    }
    return document


def chains(plane: ControlPlane, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
    """As the API server has them."""
    return plane.read("apis/modelchain.dev/v1alpha1/modelchains", namespace)["items"]


if __name__ == "__main__":
    main()
