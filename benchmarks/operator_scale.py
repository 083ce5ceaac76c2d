"""The operator with many chains: how soon the next stage starts, what it asks of the API server and of
the store, what it needs of processor and memory, whether it stays healthy.

    python -m benchmarks.operator_scale                         500 live chains, 1,000 idle ones
    python -m benchmarks.operator_scale --idle 10000 --live 1000 --namespaces 100 --only restart,scrape,silent
    python -m benchmarks.operator_scale --live 20 --idle 40 --silent 50 --window 20

etcd, kube-apiserver, SeaweedFS and the operator are the real ones, each a process of this machine; the operator
has a service account with no more rights than docs/operator.md lists. Nothing trains: `simulated_jobs` changes the
jobs and pods as the training operator and kubelets would, and writes into the store what a trainer writes. Half of the
idle chains are complete, the other half suspended: `simulated_chains` writes their statuses, as the operator had
written those that they are copies of.

Its parts, of which `--only` chooses some:

rest      The idle chains alone. Once all is quiet, writes to the API server are counted by the server's audit log.
restart   With all chains there, each live one in a stage that trains and tells so every few seconds, the operator is
          killed and started again, until every chain had a pass. Some stages end while it is away, and it is measured
          when the next ones begin. `simulated_kubelet` probes it as the chart says.
scrape    /metrics with all chains there; meanwhile, how soon the event loop answers /healthz.
silent    Stages finish one by one, by turns with and without chains whose endpoints take connections and never answer.
handover  Stages finish one by one, at random times. The latency goes from the manifest in the store to the moment when
          a watch shows the next job, so it holds all that lies between: the end of the trainer, its pod and its job.
          Then all chains finish a stage together; then all are complete, and all is quiet again.

Memory is right on a machine that does other work beside this; processor time and latencies are upper bounds there: work
on a core that is shared takes more of it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.operator_figures import Handover, Rest, Restart, Result, Scrape, Silent, Window, machine
from benchmarks.simulated_chains import SECRET, STAGES, SUSPENDED_SEED, Chains
from benchmarks.simulated_endpoints import SilentEndpoints
from benchmarks.simulated_jobs import Api, JobController, SimulatedJob
from benchmarks.simulated_kubelet import Kubelet
from modelchain.store import open_store
from modelchain_operator import gc_tuning
from modelchain_operator.settings import Settings
from tests.control_plane.fixtures import install_modelchain
from tests.control_plane.plane import ControlPlane
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until
from tests.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS, user_keys

PARTS = ("rest", "restart", "scrape", "silent", "handover")
SILENT_NAMESPACE = "silent"
OPERATOR_NAMESPACE, OPERATOR = "modelchain-system", "modelchain-operator"
OPERATOR_USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR}"
REST_SECONDS = 60.0  # without a write, before all counts as quiet
PATIENCE_SECONDS = 3600.0
POLL_SECONDS = 2.0  # between looks at the operator's metrics; as often as Prometheus, where it is measured
SCRAPE_SECONDS = 30.0
SCRAPES = 5
HEALTH_SECONDS = 0.02
ENDED_MEANWHILE = 20  # stages at most, and a tenth of the live ones, that end while the operator is away
ROUNDS = 2  # with silent endpoints, and without

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


def main() -> None:
    arguments = parse_arguments()
    gc_tuning.collect_rarely()  # what the simulation takes of the processor is missing to what is measured
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="operator-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    with environment(folder, arguments) as bench:
        result = bench.run(arguments)
    if arguments.record:
        Path(arguments.record).write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    print(f"\n{result}")


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What is to be measured."""
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
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(PARTS),
        metavar="PART[,PART]",
        help=f"measure these parts alone, of {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--silent", type=int, default=1000, help="chains with silent endpoints (default: %(default)s)"
    )
    parser.add_argument("--record", metavar="FILE", help="write all figures there as well, as JSON")
    arguments = parser.parse_args(given)
    if arguments.singles is None:
        arguments.singles = max(1, arguments.live // 2)
    if not 1 <= arguments.singles <= arguments.live or arguments.idle < 2 or arguments.namespaces < 1:
        parser.error(
            "--live, --namespaces and --singles are at least 1, --idle at least 2, and --singles at most --live"
        )
    if unknown := set(arguments.only).difference(PARTS):
        parser.error(
            f"--only: there is no part {', '.join(sorted(unknown))}; give some of {', '.join(PARTS)}"
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
        server = SeaweedFS(folder / "seaweedfs", users=arguments.namespaces + 1)
        stack.callback(server.kill)
        server.start()
        os.environ.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET_KEY)
        access = server.access("operator-scale")
        api = Api(plane.url, plane.token)
        make_namespaces(api, arguments.namespaces)
        controller = JobController(
            api,
            open_store(access),
            heartbeat_seconds=arguments.heartbeat_seconds,
            pod_start_seconds=arguments.pod_start_seconds,
        )
        stack.callback(controller.close)
        controller.start()
        endpoints = SilentEndpoints()
        stack.callback(endpoints.close)
        options = (
            f"--progress-seconds={Settings().progress_seconds:g}",  # as administrators have it, not as tests
            f"--allowed-endpoint={endpoints.pattern}",
        )
        operator = OperatorProcess(make_account(plane), None, folder / "operator.log", *options)
        stack.callback(operator.kill)
        operator.start()
        chains = Chains(api, access, arguments.namespaces)
        yield Bench(chains, controller, operator, endpoints, audit_log, cpu_seconds(operator.pid))


def make_namespaces(api: Api, count: int) -> None:
    """Where the chains live, each with the keys of the store, its own ones."""
    for number, name in enumerate((*(f"team-{number}" for number in range(count)), SILENT_NAMESPACE)):
        api.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        keys = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), user_keys(number), strict=True))
        data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
        secret = {"metadata": {"name": SECRET}, "data": data}
        api.send("POST", f"/api/v1/namespaces/{name}/secrets", secret)

        def has_account(name: str = name) -> bool:
            accounts = api.send("GET", f"/api/v1/namespaces/{name}/serviceaccounts")["items"]
            return any(one["metadata"]["name"] == "default" for one in accounts)

        wait_until(has_account, f"{name} has a service account for pods", pause=0.2)


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

    chains: Chains
    controller: JobController
    operator: OperatorProcess
    endpoints: SilentEndpoints
    audit_log: Path
    cpu_seconds_without_chains: float  # of the operator's first start

    def run(self, arguments: argparse.Namespace) -> Result:
        """Measure the parts that are asked for, in the order of the module's text."""
        live, idle, wanted = arguments.live, arguments.idle, arguments.only
        result = Result(machine(), idle, live, arguments.namespaces, arguments.heartbeat_seconds)
        if "rest" in wanted:
            say(f"{idle} idle chains")
            self.make_idle(idle)
            self.start()
            self.wait_until_seen(idle)
            result.rest = Rest(idle, self.quiet_window(arguments.window))
            say(f"  {result.rest}")
            result.load.append(os.getloadavg()[2])
        if set(wanted) > {"rest"} or "rest" not in wanted:
            say(f"{live} live chains")
            self.make_live(live)
            if "rest" not in wanted:
                say(f"{idle} idle chains")
                self.make_idle(idle)
        if "restart" in wanted:
            say("the operator starts again")
            result.restart = self.restart(idle + live)
            say(f"  {result.restart}")
            result.load.append(os.getloadavg()[2])
        else:
            self.start()
            self.wait_until_seen(idle + live)
        if "scrape" in wanted:
            say("/metrics is scraped")
            result.scrape = self.scrape(arguments.window)
            say(f"  {result.scrape}")
            result.load.append(os.getloadavg()[2])
        if "silent" in wanted:
            say(f"stages finish, with and without {arguments.silent} silent endpoints")
            result.silent = self.silent(arguments)
            result.load.append(os.getloadavg()[2])
        if "handover" in wanted:
            result.handover = self.handover(arguments)
            result.load.append(os.getloadavg()[2])
        result.peak_bytes = resident_bytes(self.operator.pid, "VmHWM")
        return result

    # ---- parts

    def restart(self, chains: int) -> Restart:
        """Kill the operator, start it, and wait until every chain had a pass. Stages end while it is away."""
        self.operator.kill()
        running = [job for job in self.controller.running() if job.stage.name != STAGES[-1]]
        ended = random.Random(0).sample(running, max(1, min(ENDED_MEANWHILE, len(running) // 10)))
        for future in [self.controller.agenda.now(job.finish) for job in ended]:
            future.result()
        writes, began = self.api_writes(), time.monotonic()
        self.operator.start(wait=False)
        kubelet = Kubelet(lambda: self.operator.url)
        try:
            self.wait_until_seen(chains, pause=SCRAPE_SECONDS)
            seconds, processor = time.monotonic() - began, cpu_seconds(self.operator.pid)
            wait_until(lambda: kubelet.readiness.first_success is not None, "the operator is ready")
            self.wait_for_successors(ended)
        finally:
            kubelet.stop()
        return Restart(
            chains=chains,
            seconds=seconds,
            cpu_seconds=processor,
            cpu_seconds_without_chains=self.cpu_seconds_without_chains,
            peak_bytes=resident_bytes(self.operator.pid, "VmHWM"),
            api_writes=self.api_writes() - writes,
            liveness=kubelet.liveness,
            readiness=kubelet.readiness,
            handovers=[self.successor(job).created_at - began for job in ended],
        )

    def scrape(self, window: float) -> Scrape:
        """Scrape a few times at once, and compare with as long a time without."""
        self.operator.metrics()  # what the first one makes stays
        health = HealthWatch(self.operator.url)
        before, began = cpu_seconds(self.operator.pid), time.monotonic()
        time.sleep(window)
        share = (cpu_seconds(self.operator.pid) - before) / (time.monotonic() - began)
        otherwise = health.stop()
        health = HealthWatch(self.operator.url)
        before, began = cpu_seconds(self.operator.pid), time.monotonic()
        text = [self.operator.metrics() for _ in range(SCRAPES)][-1]
        took = time.monotonic() - began
        used = cpu_seconds(self.operator.pid) - before - share * took
        meanwhile = health.stop()
        series = [line for line in text.splitlines() if not line.startswith("#")]
        return Scrape(
            series=len(series),
            series_of_chains=sum('chain="' in line for line in series),
            chains_left_out=int(total(text, "modelchain_chains_without_series")),
            bytes=len(text),
            cpu_seconds=used / SCRAPES,
            seconds=took / SCRAPES,
            health_seconds=otherwise,
            health_seconds_meanwhile=meanwhile,
        )

    def silent(self, arguments: argparse.Namespace) -> Silent:
        """Let stages finish by turns with and without chains whose endpoints do not answer."""
        count = max(1, arguments.singles // ROUNDS)
        latencies: dict[bool, list[float]] = {False: [], True: []}
        shares: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for beside in (False, True):
                if beside:
                    self.make_silent(arguments.silent)
                self.wait_until_training(arguments.live)
                self.wait(lambda: self.metric("modelchain_queue_depth") == 0, "no chain waits for a pass")
                before, began = cpu_seconds(self.operator.pid), time.monotonic()
                latencies[beside] += self.latencies(
                    self.finish_one_by_one(count, arguments.singles_per_second)
                )
                shares[beside].append((cpu_seconds(self.operator.pid) - before) / (time.monotonic() - began))
                if beside:
                    self.delete_silent()
                say(f"  {count} {'beside' if beside else 'without'}: CPU {100 * shares[beside][-1]:.0f} %")
        return Silent(
            endpoints=arguments.silent,
            connections=self.endpoints.accepted,
            without=latencies[False],
            beside=latencies[True],
            cpu_share_without=sum(shares[False]) / ROUNDS,
            cpu_share_beside=sum(shares[True]) / ROUNDS,
        )

    def handover(self, arguments: argparse.Namespace) -> Handover:
        """Live chains go on to their end."""
        live = arguments.live
        self.wait_until_training(live)
        time.sleep(2 * Settings().progress_seconds)
        training = self.window(arguments.window)
        say(f"  {training}")

        say(f"{arguments.singles} stages finish one by one")
        singles = self.finish_one_by_one(arguments.singles, arguments.singles_per_second)
        latencies = self.latencies(singles)
        self.wait_until_training(live)

        burst = [job for job in self.controller.running() if job.stage.name != STAGES[-1]]
        say(f"{len(burst)} stages finish together")
        self.finish_together(burst)
        burst_latencies = self.latencies(burst)
        committed = [job.committed_at or 0.0 for job in burst]
        created = [self.successor(job).created_at for job in burst]
        self.wait_until_training(live)

        say("all chains come to their end")
        self.finish_all(live)
        at_rest = self.quiet_window(arguments.window)
        say(f"  {at_rest}")
        return Handover(
            chains=arguments.idle + live,
            training=training,
            latencies=latencies,
            burst=len(burst),
            burst_seconds=max(created) - min(committed),
            burst_commit_seconds=max(max(committed) - min(committed), 1e-3),
            burst_latencies=burst_latencies,
            at_rest=at_rest,
        )

    # ---- chains

    def start(self) -> None:
        """Start the operator, if it does not run."""
        if not self.operator.running:
            self.operator.start()

    def make_idle(self, count: int) -> None:
        """Complete and suspended chains: the operator brings the first ones there; the others are copied while it does
        not run.
        """
        self.start()
        make, complete = self.chains, self.phases("Complete")
        first = make.chain("copy-0")  # its stages are found in the store
        suspended = make.chain("suspended-0", seed=SUSPENDED_SEED, suspend=True)
        make.create([make.chain("original"), suspended])
        self.finish_all(1, only="original")
        make.create([first])
        self.wait(
            lambda: self.phases("Complete") == complete + 2 and self.phases("Suspended") == 1,
            "the first idle chains are there",
        )
        self.operator.kill()
        copies = [make.chain(f"copy-{n}") for n in range(1, (count - 1) // 2)]
        make.copy(copies, make.status(first))
        others = [
            make.chain(f"suspended-{n}", seed=SUSPENDED_SEED, suspend=True)
            for n in range(1, count - 2 - len(copies))
        ]
        make.copy(others, make.status(suspended))

    def make_live(self, count: int) -> None:
        """Chains whose first stages train."""
        self.chains.create([self.chains.chain(f"live-{n}", seed=n + 1) for n in range(count)])
        self.wait_until_training(count)

    def make_silent(self, count: int) -> None:
        """Chains whose endpoints take connections and never answer, and which the operator knows."""
        make = self.chains
        make.create(
            [
                make.chain(
                    f"silent-{n}", seed=n + 1, endpoint=self.endpoints.url(n), namespace=SILENT_NAMESPACE
                )
                for n in range(count)
            ]
        )
        accepted = self.endpoints.accepted
        self.wait(lambda: self.endpoints.accepted > accepted, "the silent endpoints are asked")

    def delete_silent(self) -> None:
        """Delete them all, and wait until the operator has forgotten them."""
        self.chains.delete_all(SILENT_NAMESPACE)
        self.wait(
            lambda: not self.metric("modelchain_chain_stages", namespace=SILENT_NAMESPACE), "they are gone"
        )

    def seen(self) -> int:
        """How many chains had a pass."""
        return int(self.metric("modelchain_chains"))

    def wait_until_seen(self, count: int, pause: float = POLL_SECONDS) -> None:
        """Wait until so many chains had a pass."""
        self.wait(lambda: self.seen() == count, f"{count} chains had a pass", pause=pause)

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
        running = [job for job in self.controller.running() if job.stage.name != STAGES[-1]]
        jobs = random.Random(0).sample(running, min(count, len(running)))
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

    def finish_all(self, count: int, *, only: str = "") -> None:
        """Finish the stages of so many chains (of those of that name) until all of them are complete."""
        complete = self.phases("Complete") + count
        finished: set[tuple[str, str]] = set()

        def done() -> bool:
            for job in self.controller.running():
                if job.place not in finished and only in ("", job.stage.chain.name):
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

    def wait(self, holds: Callable[[], bool], what: str, pause: float = POLL_SECONDS) -> None:
        def checked() -> bool:
            if self.controller.agenda.errors:
                raise RuntimeError("the simulation has failed") from self.controller.agenda.errors[0]
            try:
                return holds()
            except OSError:  # it has just begun, or is busy
                assert self.operator.running, f"the operator has ended; its log is {self.operator.log}"
                return False

        wait_until(checked, what, seconds=PATIENCE_SECONDS, pause=pause)

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
            cpu_seconds=cpu_seconds(self.operator.pid),
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


class HealthWatch:
    """Asks /healthz again and again: its answer comes from the event loop, so it waits as long as that is blocked."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._slowest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The slowest answer, in seconds."""
        self._stop.set()
        self._thread.join()
        return self._slowest

    def _ask(self) -> None:
        while not self._stop.wait(HEALTH_SECONDS):
            began = time.monotonic()
            with urllib.request.urlopen(f"{self._url}/healthz", timeout=60):  # noqa: S310  of this machine
                self._slowest = max(self._slowest, time.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int, field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def say(text: str) -> None:
    """Tell how far it has come."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main()
