"""PyTorchJobs whose pods run nowhere: their objects change as the training operator and kubelets would change
them, and the store gets what a trainer writes, by ModelChain's own functions.

How long a stage trains is up to the benchmark: a job runs until it is told to finish.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import http.client
import itertools
import json
import logging
import random
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit

from modelchain.artifacts import LEASE, PROGRESS, WEIGHTS, FileEntry, Manifest, Progress, attempt_folder
from modelchain.commit import commit_stage
from modelchain.lease import LeaseKeeper
from modelchain.resolved import ResolvedStage
from modelchain.store import Store
from modelchain.times import rfc3339

logger = logging.getLogger(__name__)

Object: TypeAlias = dict[str, Any]  # a Kubernetes object as the API sends it

JOBS = "/apis/kubeflow.org/v1"
THREADS = 16
STEPS_A_SECOND = 10
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
WATCH_SECONDS = 1800
CHANGED = b'{"type":"MODIFIED"'  # what such an event of a watch begins with


class Api:
    """Requests to the API server, over one connection of each thread that is kept."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._address = parts.hostname, parts.port
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._context = ssl._create_unverified_context()  # noqa: S323, SLF001  made at start, of this machine
        self._local = threading.local()

    def send(
        self, method: str, path: str, body: Object | None = None, content: str = "application/json"
    ) -> Object:
        """One request. Raises RuntimeError if it is refused."""
        data = None if body is None else json.dumps(body)
        headers = self._headers if data is None else {**self._headers, "Content-Type": content}
        while True:
            connection, used = self._connection()
            try:
                connection.request(method, path, body=data, headers=headers)
                answer = connection.getresponse()
                text = answer.read()
            except (http.client.HTTPException, OSError):
                connection.close()
                if not used:
                    raise
                continue  # the server has closed a connection that was idle
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
            return json.loads(text)

    def read(self, path: str) -> str:
        """The text of a page."""
        connection = self.connect()
        connection.request("GET", path, headers={**self._headers, "Accept": "*/*"})
        with contextlib.closing(connection):
            return connection.getresponse().read().decode()

    def watch(self, path: str, version: str) -> Iterable[bytes]:
        """Lines of a watch, each one event, from that resource version on."""
        query = urlencode({"watch": "1", "resourceVersion": version, "timeoutSeconds": WATCH_SECONDS})
        connection = self.connect()
        connection.request("GET", f"{path}?{query}", headers=self._headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"watch {path}: {answer.status}")
        return answer

    def connect(self) -> http.client.HTTPSConnection:
        """A connection of one's own."""
        host, port = self._address
        return http.client.HTTPSConnection(host, port, context=self._context)

    def _connection(self) -> tuple[http.client.HTTPSConnection, bool]:
        """This thread's connection, and whether it was used before."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self.connect()
        return connection, connection.sock is not None


class Agenda:
    """Things to do at a time, in a few threads."""

    def __init__(self, threads: int = THREADS) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="simulator")
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="agenda", daemon=True)
        self.errors: list[BaseException] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; what is under way is waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._pool.shutdown(cancel_futures=True)

    def now(self, action: Callable[[], None]) -> Future[None]:
        """Do it as soon as a thread is free. What fails is kept in `errors`."""
        return self._pool.submit(self.guarded, action)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it then."""
        with self._changed:
            heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._count), action))
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                wait = self._heap[0][0] - time.monotonic() if self._heap else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                _, _, action = heapq.heappop(self._heap)
                self.now(action)

    def guarded(self, action: Callable[[], None]) -> None:
        """Do it here. What fails is kept in `errors`."""
        try:
            action()
        except BaseException as error:
            if self._closed:  # whatever it has asked is ending as well
                return
            logger.exception("the simulation has failed")
            self.errors.append(error)
            raise


class Trainer:
    """What the first rank of an attempt writes to the store."""

    def __init__(self, store: Store, stage: ResolvedStage, token: str) -> None:
        self._store = store
        self._stage = stage
        self._token = token
        self._folder = attempt_folder(stage.folder, token)
        self._began = time.time()
        self._sequence = 0
        self._lease = LeaseKeeper(
            store,
            f"{stage.folder}/{LEASE}",
            holder=token,
            chain=stage.chain.full_name,
            duration_seconds=stage.retry.lease_seconds,
        )
        self._weights = secrets.token_bytes(1024)

    def begin(self) -> None:
        """Take the lease and say so."""
        self._lease.acquire()
        self.tell("Training")

    def tell(self, phase: str) -> None:
        """The heartbeat."""
        seconds = time.time() - self._began
        steps = self._stage.training.steps
        self._sequence += 1
        progress = Progress(
            phase=phase,
            step=min(steps, int(seconds * STEPS_A_SECOND)),
            steps=steps,
            sequence=self._sequence,
            samples_per_second=float(STEPS_A_SECOND * self._stage.training.global_batch_size),
            data_wait_fraction=0.01,
            loss={"total": 10 / (1 + seconds), "task": 10 / (1 + seconds)},
            metrics={"squares/top1": 0.5},
            eta_seconds=max(0.0, steps / STEPS_A_SECOND - seconds),
            updated_at=rfc3339(time.time()),
        )
        self._store.put(f"{self._folder}/{PROGRESS}", progress.model_dump_json(by_alias=True).encode())

    def upload(self) -> None:
        """Weights, under the attempt's own name: until the manifest they count for nothing."""
        self._store.put(f"{self._folder}/{WEIGHTS}", self._weights)

    def commit(self) -> float:
        """Complete the stage. Returns when the manifest was written, by time.monotonic()."""
        stage, weights = self._stage, self._weights
        entry = FileEntry(
            path=f"{self._folder.removeprefix(f'{stage.folder}/')}/{WEIGHTS}",
            bytes=len(weights),
            sha256=hashlib.sha256(weights).hexdigest(),
        )
        manifest = Manifest(
            digest=stage.digest,
            stage=stage.name,
            model=stage.model,
            chain=stage.chain.full_name,
            attempt=self._token,
            predecessor=stage.predecessor.digest if stage.predecessor else None,
            files=(entry,),
            metrics={"squares/top1": 0.9},
            steps=stage.training.steps,
            samples=stage.training.steps * stage.training.global_batch_size,
            macs=1e9,
            started_at=rfc3339(self._began),
            completed_at=rfc3339(time.time()),
            train_seconds=time.time() - self._began,
            versions={},
        )
        winner = commit_stage(self._store, stage.folder, manifest)
        written = time.monotonic()
        assert winner.attempt == self._token, f"{stage.folder} was trained twice"
        return written

    def end(self) -> None:
        """Say that all is done and let go of the lease."""
        self.tell("Complete")
        self.release()

    def release(self) -> None:
        """Let go of the lease, with nothing committed."""
        self._lease.release()


class SimulatedJob:
    """One PyTorchJob with its only pod and its trainer."""

    def __init__(self, api: Api, store: Store, job: Object, *, created_at: float) -> None:
        metadata = job["metadata"]
        self._api = api
        self._job = job
        self._template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
        environment = {
            one["name"]: one.get("value") for one in self._template["spec"]["containers"][0]["env"]
        }
        self.stage = ResolvedStage.model_validate_json(environment["MODELCHAIN_STAGE"])
        self._trainer = Trainer(
            store, self.stage, f"{environment['MODELCHAIN_ATTEMPT']}-{secrets.token_hex(4)}"
        )
        self._path = f"{JOBS}/namespaces/{metadata['namespace']}/pytorchjobs/{metadata['name']}"
        self._pod = f"{metadata['name']}-master-0"
        self._pods = f"/api/v1/namespaces/{metadata['namespace']}/pods"
        self._conditions: list[Object] = []
        self.created_at = created_at  # monotonic: when the watch has shown it
        self.committed_at: float | None = None
        self.running = False
        self.uploaded = False

    @property
    def place(self) -> tuple[str, str]:
        """Its chain and its stage."""
        return self.stage.chain.uid, self.stage.name

    def make_pod(self) -> None:
        """What the training operator does first."""
        metadata, template = self._job["metadata"], self._template
        labels = {
            "training.kubeflow.org/job-name": metadata["name"],
            "training.kubeflow.org/operator-name": "pytorchjob-controller",
            "training.kubeflow.org/replica-index": "0",
            "training.kubeflow.org/replica-type": "master",
        }
        owner = {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self._pod,
                "labels": {**template["metadata"].get("labels", {}), **labels},
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [owner],
            },
            "spec": {**template["spec"], "nodeName": "simulated"},
        }
        self._api.send("POST", self._pods, pod)
        self._set_condition("Created")

    def begin(self) -> None:
        """The pod runs, its trainer begins."""
        self._set_pod("Running", {"running": {"startedAt": rfc3339(time.time())}})
        self._set_condition("Running", active=1)
        self._trainer.begin()
        self.running = True

    def heartbeat(self) -> bool:
        """A sign of life. Returns whether there will be more."""
        if self.running:
            self._trainer.tell("Training")
        return self.running

    def upload(self) -> None:
        """Bring the weights to the store."""
        self._trainer.upload()
        self.uploaded = True

    def leave(self) -> None:
        """The trainer ends with nothing committed, and nobody says so."""
        self.running = False
        self._trainer.release()

    def finish(self) -> None:
        """The trainer commits and ends with exit code 0; kubelet and training operator say so."""
        self.running = False
        if not self.uploaded:
            self.upload()
        self.committed_at = self._trainer.commit()
        self._trainer.end()
        self._set_pod("Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed"}})
        self._set_condition("Succeeded", succeeded=1)

    def _set_pod(self, phase: str, state: Object) -> None:
        ready = phase == "Running"
        status = {
            "phase": phase,
            "conditions": [
                {"type": kind, "status": str(ready)} for kind in ("Initialized", "Ready", "ContainersReady")
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": container["image"],
                    "ready": ready,
                    "restartCount": 0,
                    "state": state,
                }
                for container in self._template["spec"]["containers"]
            ],
        }
        self._api.send("PATCH", f"{self._pods}/{self._pod}/status", {"status": status}, STRATEGIC_MERGE)

    def _set_condition(self, kind: str, **counts: int) -> None:
        now = rfc3339(time.time())
        if kind == "Succeeded":
            self._conditions = [
                {**one, "status": "False"} if one["type"] == "Running" else one for one in self._conditions
            ]
        self._conditions.append(
            {
                "type": kind,
                "status": "True",
                "reason": f"PyTorchJob{kind}",
                "message": f"PyTorchJob {self._job['metadata']['name']} is {kind.lower()}.",
                "lastTransitionTime": now,
                "lastUpdateTime": now,
            }
        )
        self._job["status"] = {"conditions": self._conditions, "replicaStatuses": {"Master": counts}}
        written = self._api.send("PUT", f"{self._path}/status", self._job)
        self._job["metadata"]["resourceVersion"] = written["metadata"]["resourceVersion"]


class JobController:
    """Watches PyTorchJobs and brings each to the point where its trainer runs."""

    def __init__(self, api: Api, store: Store, *, heartbeat_seconds: float, pod_start_seconds: float) -> None:
        self._api = api
        self._store = store
        self._heartbeat_seconds = heartbeat_seconds
        self._pod_start_seconds = pod_start_seconds
        self.agenda = Agenda()
        self.jobs: dict[tuple[str, str], SimulatedJob] = {}  # by uid of the chain, and stage
        self._thread = threading.Thread(
            target=self.agenda.guarded, args=(self._watch,), name="watch", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self.agenda.start()
        self._thread.start()

    def close(self) -> None:
        """End, while the store is still there: trainers that run let go of their leases. The watch ends with the
        process.
        """
        self.agenda.close()
        for job in self.running():
            job.leave()

    def running(self) -> list[SimulatedJob]:
        """Jobs whose trainer runs, oldest first."""
        return [job for job in list(self.jobs.values()) if job.running]

    def successor(self, job: SimulatedJob, stages: Sequence[str]) -> SimulatedJob | None:
        """The job of the chain's next stage; None as long as there is none."""
        uid, stage = job.place
        return self.jobs.get((uid, stages[stages.index(stage) + 1]))

    def _watch(self) -> None:
        path = f"{JOBS}/pytorchjobs"
        version = self._api.send("GET", f"{path}?limit=1")["metadata"]["resourceVersion"]
        while True:
            for line in self._api.watch(path, version):
                seen_at = time.monotonic()
                if line.startswith(CHANGED):  # by ourselves
                    continue
                event = json.loads(line)
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "ADDED":
                    self._take(event["object"], seen_at)

    def _take(self, item: Object, seen_at: float) -> None:
        job = SimulatedJob(self._api, self._store, item, created_at=seen_at)
        assert job.place not in self.jobs, f"a second job of {job.place}"
        self.jobs[job.place] = job
        self.agenda.now(lambda: self._start(job))

    def _start(self, job: SimulatedJob) -> None:
        job.make_pod()
        delay = self._pod_start_seconds * random.uniform(0.8, 1.2)
        self.agenda.after(delay, lambda: self._begin(job))

    def _begin(self, job: SimulatedJob) -> None:
        job.begin()
        self.agenda.after(self._heartbeat_seconds * random.random(), lambda: self._beat(job))

    def _beat(self, job: SimulatedJob) -> None:
        if job.heartbeat():
            self.agenda.after(self._heartbeat_seconds, lambda: self._beat(job))
