"""The operator with many chains: how soon the next stage starts, what it asks of the API server and of
the store, what it needs in memory.

    python -m benchmarks.operator_scale                         500 live chains, 1,000 idle ones; about 15 minutes
    python -m benchmarks.operator_scale --live 20 --idle 40 --window 20

etcd, kube-apiserver, SeaweedFS and the operator are the real ones, each a process of this machine; the operator
has a service account with no more rights than docs/operator.md lists. Nothing trains: `simulated_jobs` changes the
jobs and pods as the training operator and kubelets would, and writes into the store what a trainer writes.

1. Idle chains alone: one is trained, half of the others are copies of it, hence complete at once, the other half
   is suspended. Once all is quiet, writes to the API server are counted by the server's audit log.
2. Live chains beside them, each in a stage that trains and tells so every few seconds.
3. Stages finish one by one, at random times. The latency goes from the manifest in the store to the moment when
   a watch shows the next job, so it holds all that lies between: the end of the trainer, its pod and its job.
4. All chains finish a stage together.
5. All chains are complete, and all is quiet again.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.simulated_jobs import THREADS, Api, JobController, SimulatedJob
from modelchain.resolved import ResolvedStore
from modelchain.store import open_store
from modelchain_operator import gc_tuning
from modelchain_operator.settings import Settings
from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.plane import ControlPlane
from tests.faults import document, model
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

Object = dict[str, Any]

STAGES = ("tiny", "small", "base")
SECRET = "s3"  # noqa: S105  a name
OPERATOR_NAMESPACE, OPERATOR = "modelchain-system", "modelchain-operator"
OPERATOR_USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}"
CHAINS = "/apis/modelchain.dev/v1alpha1"
MEBIBYTE = 2**20
REST_SECONDS = 60.0  # without a write, before all counts as quiet
PATIENCE_SECONDS = 1800.0

READ = ["get", "list", "watch"]
RULES = [
    {"apiGroups": ["modelchain.dev"], "resources": ["modelchains"], "verbs": READ},
    {"apiGroups": ["modelchain.dev"], "resources": ["modelchains/status"], "verbs": ["update"]},
    {"apiGroups": ["kubeflow.org"], "resources": ["pytorchjobs"], "verbs": [*READ, "create", "delete"]},
    {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": [*READ, "create", "delete"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "create"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "delete"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list", "create"]},
    {"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["get"]},
    {
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions"],
        "verbs": ["list", "watch"],
    },
]
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "users": [OPERATOR_USER],
            "verbs": ["create", "update", "patch", "delete", "deletecollection"],
        },
        {"level": "None"},
    ],
}


@dataclass(frozen=True)
class Usage:
    """What the operator has used up, at one moment."""

    at: float  # monotonic seconds
    cpu_seconds: float
    api_requests: float
    api_writes: int  # by the server's audit log
    store_requests: float


@dataclass(frozen=True)
class Window:
    """What the operator used within some time, a minute."""

    seconds: float
    cpu_share: float  # of one core
    api_requests: float
    api_writes: float
    store_requests: float
    memory_bytes: int  # resident, at its end


@dataclass(frozen=True)
class Result:
    machine: str
    idle: int
    live: int
    heartbeat_seconds: float
    at_rest: Window
    training: Window
    latencies: list[float]  # seconds, of stages that finish one by one
    burst: int
    burst_seconds: float  # from the first manifest to the last job
    burst_commit_seconds: float  # from the first manifest to the last
    burst_latencies: list[float]
    at_rest_again: Window
    peak_bytes: int

    def __str__(self) -> str:
        p50, p99 = quantile(self.latencies, 0.5), quantile(self.latencies, 0.99)
        rows = [
            ("stage done -> next job, p50", f"{p50:.2f} s", ""),
            (f"stage done -> next job, p99 of {len(self.latencies)}", f"{p99:.2f} s", "under 2 s"),
            (
                f"{self.burst} stages done together, transitions/s",
                f"{self.burst / self.burst_seconds:.1f}",
                "at least 20",
            ),
            ("  manifests written/s meanwhile", f"{self.burst / self.burst_commit_seconds:.1f}", ""),
            ("  stage done -> next job, p50", f"{quantile(self.burst_latencies, 0.5):.1f} s", ""),
            (f"API writes a minute, {self.idle} idle", f"{self.at_rest.api_writes:.0f}", "none"),
            (
                f"API writes a minute, {self.idle + self.live} idle",
                f"{self.at_rest_again.api_writes:.0f}",
                "none",
            ),
            (f"memory, {self.idle} idle", mebibytes(self.at_rest.memory_bytes), "under 128 MiB"),
            (f"memory, {self.idle + self.live} idle", mebibytes(self.at_rest_again.memory_bytes), ""),
            ("memory, peak", mebibytes(self.peak_bytes), ""),
            (
                "S3 requests a minute and idle chain",
                f"{self.at_rest.store_requests / max(1, self.idle):.2f}",
                "",
            ),
            (
                "S3 requests a minute and live chain",
                f"{(self.training.store_requests - self.at_rest.store_requests) / self.live:.2f}",
                "",
            ),
            ("API requests a second, live chains train", f"{self.training.api_requests / 60:.1f}", ""),
            ("CPU, live chains train", f"{100 * self.training.cpu_share:.0f} % of a core", ""),
            ("CPU at rest", f"{100 * self.at_rest.cpu_share:.1f} % of a core", ""),
        ]
        wide, narrow = max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)
        title = f"{self.live} live chains (a heartbeat every {self.heartbeat_seconds:g} s) beside {self.idle} idle ones"
        return "\n".join(
            [
                self.machine,
                title,
                *(f"  {name:<{wide}}  {value:>{narrow}}  {goal}".rstrip() for name, value, goal in rows),
            ]
        )


def main() -> None:
    arguments = parse_arguments()
    gc_tuning.collect_rarely()  # what the simulation takes of the processor is missing to what is measured
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="operator-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    with environment(folder, arguments) as bench:
        result = bench.run(arguments)
    print(json.dumps(asdict(result), indent=2) if arguments.output == "json" else f"\n{result}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the operator with many chains.")
    parser.add_argument("--live", type=int, default=500, help="chains that train (default: %(default)s)")
    parser.add_argument(
        "--idle", type=int, default=1000, help="complete or suspended ones (default: %(default)s)"
    )
    parser.add_argument(
        "--heartbeat-seconds", type=float, default=10, help="of a trainer (default: %(default)s)"
    )
    parser.add_argument(
        "--pod-start-seconds", type=float, default=10, help="from a job to its trainer (default: %(default)s)"
    )
    parser.add_argument(
        "--singles", type=int, help="stages that finish one by one (default: of half of the live chains)"
    )
    parser.add_argument(
        "--singles-per-second", type=float, default=3, help="on average (default: %(default)s)"
    )
    parser.add_argument(
        "--window", type=float, default=60, help="seconds for which is counted (default: %(default)s)"
    )
    parser.add_argument(
        "--namespaces",
        type=int,
        default=10,
        help="over which they are spread, each with a Secret (default: %(default)s)",
    )
    parser.add_argument("--folder", help="for logs and data (default: a new one, which stays)")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    arguments = parser.parse_args()
    if arguments.singles is None:
        arguments.singles = max(1, arguments.live // 2)
    if not 1 <= arguments.singles <= arguments.live or arguments.idle < 1 or arguments.namespaces < 1:
        parser.error(
            "--live, --idle, --namespaces and --singles are at least 1, and --singles at most --live"
        )
    return arguments


@contextlib.contextmanager
def environment(folder: Path, arguments: argparse.Namespace) -> Iterator[Bench]:
    """The control plane, the store, the simulated jobs and the operator."""
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    audit_log = folder / "audit.log"
    plane = ControlPlane(
        folder / "plane",
        kubeflow=False,
        apiserver_options=[f"--audit-policy-file={policy}", f"--audit-log-path={audit_log}"],
    )
    with contextlib.ExitStack() as stack:
        say(f"logs are in {folder}")
        stack.callback(plane.stop)
        plane.start()
        install_modelchain(plane)
        plane.install_training_crds()
        server = SeaweedFS(folder / "seaweedfs")
        stack.callback(server.kill)
        server.start()
        os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
        access = server.access("operator-scale")
        api = Api(plane.url, plane.token)
        make_namespaces(plane, arguments.namespaces)
        controller = JobController(
            api,
            open_store(access),
            heartbeat_seconds=arguments.heartbeat_seconds,
            pod_start_seconds=arguments.pod_start_seconds,
        )
        stack.callback(controller.close)
        controller.start()
        pace = (
            f"--progress-seconds={Settings().progress_seconds:g}"  # as administrators have it, not as tests
        )
        operator = OperatorProcess(make_account(plane), None, folder / "operator.log", pace)
        stack.callback(operator.kill)
        operator.start()
        yield Bench(api, controller, operator, access, audit_log, arguments.namespaces)


def make_namespaces(plane: ControlPlane, count: int) -> None:
    """Where the chains live, each with the keys of the store."""
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
    names = [f"team-{number}" for number in range(count)]
    plane.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    plane.apply(
        *(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET, "namespace": name},
                "data": data,
            }
            for name in names
        )
    )
    for name in names:
        wait_until(
            lambda name=name: plane.kubectl("get", "sa", "default", "-n", name, check=False).returncode == 0,
            f"{name} has a service account for pods",
            seconds=60,
            pause=0.5,
        )


def make_account(plane: ControlPlane) -> Path:
    """The operator's service account and its rights. Returns its kubeconfig."""
    rbac = "rbac.authorization.k8s.io"
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}})
    plane.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": OPERATOR, "namespace": OPERATOR_NAMESPACE},
        },
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": OPERATOR}, "rules": RULES},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": OPERATOR},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": OPERATOR},
            "subjects": [{"kind": "ServiceAccount", "name": OPERATOR, "namespace": OPERATOR_NAMESPACE}],
        },
    )
    made = plane.kubectl("create", "token", OPERATOR, "-n", OPERATOR_NAMESPACE, "--duration=24h")
    return plane.kubeconfig_for(plane.folder / "operator.kubeconfig", made.stdout.strip())


@dataclass
class Bench:
    """Chains, and what the operator makes of them."""

    api: Api
    controller: JobController
    operator: OperatorProcess
    access: ResolvedStore
    audit_log: Path
    namespaces: int
    chains: int = field(default=0)

    def run(self, arguments: argparse.Namespace) -> Result:
        """Measure everything, in the order of the module's text."""
        live, idle = arguments.live, arguments.idle
        say(f"1. {idle} idle chains")
        self.make_idle(idle)
        at_rest = self.quiet_window(arguments.window)
        say(f"   {at_rest}")

        say(f"2. {live} live chains")
        self.make_chains([self.chain(f"live-{n}", seed=n + 1) for n in range(live)])
        self.wait_until_training(live)
        time.sleep(2 * Settings().progress_seconds)
        training = self.window(arguments.window)
        say(f"   {training}")

        say(f"3. {arguments.singles} stages finish one by one")
        singles = self.finish_one_by_one(arguments.singles, arguments.singles_per_second)
        latencies = self.latencies(singles)
        self.wait_until_training(live)

        say(f"4. {live} stages finish together")
        burst = self.controller.running()
        self.finish_together(burst)
        burst_latencies = self.latencies(burst)
        committed = [job.committed_at or 0.0 for job in burst]
        created = [self.successor(job).created_at for job in burst]
        self.wait_until_training(live)

        say("5. all chains come to their end")
        self.finish_all(live)
        at_rest_again = self.quiet_window(arguments.window)
        say(f"   {at_rest_again}")
        return Result(
            machine=machine(),
            idle=idle,
            live=live,
            heartbeat_seconds=arguments.heartbeat_seconds,
            at_rest=at_rest,
            training=training,
            latencies=latencies,
            burst=len(burst),
            burst_seconds=max(created) - min(committed),
            burst_commit_seconds=max(max(committed) - min(committed), 1e-3),
            burst_latencies=burst_latencies,
            at_rest_again=at_rest_again,
            peak_bytes=resident_bytes(self.operator.pid, "VmHWM"),
        )

    # ---- chains

    def chain(self, name: str, *, seed: int = 0, suspend: bool = False) -> Object:
        """A chain of three stages. Those of the same seed share their artifacts."""
        chain = document(self.access)
        spec = chain["spec"]
        spec["store"]["secretRef"] = {"name": SECRET}
        spec["training"] |= {"epochs": 1000, "seed": seed}
        spec["retry"]["leaseSeconds"] = 120
        spec["suspend"] = suspend
        spec["stages"] = [
            {"name": stage, "modelConfig": model(16 * (number + 1), number + 1)}
            for number, stage in enumerate(STAGES)
        ]
        chain["metadata"] = {"name": name, "namespace": f"team-{self.chains % self.namespaces}"}
        self.chains += 1
        return chain

    def make_chains(self, chains: Sequence[Object]) -> None:
        """Create them all."""

        def create(chain: Object) -> None:
            self.api.send("POST", f"{CHAINS}/namespaces/{chain['metadata']['namespace']}/modelchains", chain)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(create, chains))

    def make_idle(self, count: int) -> None:
        """One that is trained, copies of it, and suspended ones."""
        self.make_chains([self.chain("original")])
        self.finish_all(1)
        copies = [self.chain(f"copy-{n}") for n in range((count - 1) // 2)]
        suspended = [
            self.chain(f"suspended-{n}", seed=10**6 + n, suspend=True) for n in range(count - 1 - len(copies))
        ]
        self.make_chains([*copies, *suspended])
        self.wait(
            lambda: self.phases("Complete") == 1 + len(copies) and self.phases("Suspended") == len(suspended),
            "the idle chains are complete or suspended",
        )

    def phases(self, phase: str) -> int:
        """How many chains the operator counts in a phase."""
        return int(self.metric("modelchain_chains", phase=phase))

    def wait_until_training(self, count: int) -> None:
        """Wait until so many trainers run, and the operator says so of their chains."""
        self.wait(
            lambda: len(self.controller.running()) == count and self.phases("Running") == count,
            f"{count} chains train",
        )

    # ---- stages that finish

    def finish_one_by_one(self, count: int, per_second: float) -> list[SimulatedJob]:
        """Finish the running jobs of that many chains at random times; returns when their successors exist."""
        jobs = random.Random(0).sample(self.controller.running(), count)
        for job in jobs:
            self.controller.agenda.now(job.finish)
            time.sleep(random.expovariate(per_second))
        self.wait_for_successors(jobs)
        return jobs

    def finish_together(self, jobs: Sequence[SimulatedJob]) -> None:
        """Finish them all as fast as the simulation can; returns when their successors exist."""
        agenda = self.controller.agenda
        for future in [agenda.now(job.upload) for job in jobs]:
            future.result()
        for job in jobs:
            agenda.now(job.finish)
        self.wait_for_successors(jobs)

    def finish_all(self, count: int) -> None:
        """Finish the stages of so many chains until all of them are complete."""
        complete = self.phases("Complete") + count
        finished: set[tuple[str, str]] = set()

        def done() -> bool:
            for job in self.controller.running():
                if job.place not in finished:
                    finished.add(job.place)
                    self.controller.agenda.now(job.finish)
            return self.phases("Complete") == complete

        self.wait(done, "all chains are complete")

    def wait_for_successors(self, jobs: Sequence[SimulatedJob]) -> None:
        self.wait(
            lambda: all(self.controller.successor(job, STAGES) for job in jobs), "the next stages have begun"
        )

    def successor(self, job: SimulatedJob) -> SimulatedJob:
        found = self.controller.successor(job, STAGES)
        assert found is not None
        return found

    def latencies(self, jobs: Sequence[SimulatedJob]) -> list[float]:
        """Seconds from each job's manifest to its successor."""
        return [self.successor(job).created_at - (job.committed_at or 0.0) for job in jobs]

    def wait(self, holds: Any, what: str) -> None:
        def checked() -> bool:
            if self.controller.agenda.errors:
                raise RuntimeError("the simulation has failed") from self.controller.agenda.errors[0]
            return bool(holds())

        wait_until(checked, what, seconds=PATIENCE_SECONDS, pause=2.0)

    # ---- measuring

    def quiet_window(self, seconds: float) -> Window:
        """Wait until nothing is written any more, then count."""
        writes, since = self.api_writes(), time.monotonic()
        while time.monotonic() - since < REST_SECONDS:
            time.sleep(1)
            if (now := self.api_writes()) != writes:
                writes, since = now, time.monotonic()
        return self.window(seconds)

    def window(self, seconds: float) -> Window:
        """What the operator uses within so many seconds."""
        before = self.usage()
        time.sleep(seconds)
        after = self.usage()
        took = after.at - before.at
        return Window(
            seconds=took,
            cpu_share=(after.cpu_seconds - before.cpu_seconds) / took,
            api_requests=(after.api_requests - before.api_requests) * 60 / took,
            api_writes=(after.api_writes - before.api_writes) * 60 / took,
            store_requests=(after.store_requests - before.store_requests) * 60 / took,
            memory_bytes=resident_bytes(self.operator.pid, "VmRSS"),
        )

    def usage(self) -> Usage:
        """What was used up until now."""
        text = self.operator.metrics()
        return Usage(
            at=time.monotonic(),
            cpu_seconds=total(text, "process_cpu_seconds_total"),
            api_requests=total(text, "modelchain_kubernetes_requests_total"),
            api_writes=self.api_writes(),
            store_requests=total(text, "modelchain_store_requests_total"),
        )

    def metric(self, name: str, **labels: str) -> float:
        """One of the operator's metrics now."""
        return total(self.operator.metrics(), name, **labels)

    def api_writes(self) -> int:
        """Writes of the operator that the API server has logged."""
        try:
            return self.audit_log.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    lines = "\n".join(line for line in text.splitlines() if line.startswith(name))
    return sum(
        sample.value
        for family in text_string_to_metric_families(f"{lines}\n")
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def resident_bytes(pid: int, field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}; "
        "API server, etcd, store, simulation and operator share them"
    )


def mebibytes(count: int) -> str:
    """For people."""
    return f"{count / MEBIBYTE:.0f} MiB"


def say(text: str) -> None:
    """Tell how far it has come."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
