"""Takes the part of scheduler and kubelet: runs the pods that controllers make as local processes, and fails on demand.

Differences to a kubelet: one container a pod; init containers count as done; volumes are ConfigMaps, Secrets and
emptyDir, seen through the environment and the arguments that name them; the process sees this machine's files and
network, and SIGTERM ends a process without a handler (as process 1 of a container it would be ignored).
"""

from __future__ import annotations

import contextlib
import fnmatch
import secrets
import signal
import threading
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.control_plane.api import Api, Object, Unreachable
from tests.control_plane.containers import (
    ConfigError,
    Container,
    MountError,
    kill_marked,
    plan,
    start_guard,
)
from tests.control_plane.plane import ControlPlane
from tests.processes import PATIENCE_SECONDS, wait_until

PASS_SECONDS = 0.1
RESTART_SECONDS = 1.0  # a kubelet begins with 10
_DISRUPTION = "DisruptionTarget"


@dataclass(frozen=True)
class _End:
    exit_code: int
    reason: str
    message: str
    started: str | None
    finished: str


@dataclass
class _Box:
    """What the node knows of a pod."""

    uid: str
    folder: Path
    started_pod: str
    container: Container | None = None
    started: str | None = None
    end: _End | None = None
    last_end: _End | None = None
    waiting: tuple[str, str] = ("ContainerCreating", "")
    restarts: int = 0
    restart_at: float = 0.0
    kill_at: float | None = None
    end_reason: str | None = None
    eviction: str | None = None
    conditions: dict[str, Object] = field(default_factory=dict)
    reported: Object | None = None
    end_told: bool = False  # of its container


class PodRunner:
    """One node, for one namespace or all. It goes on over restarts of the API server.

    Args:
        plane: whose pods are run.
        folder: for their logs and scratch files.
        namespace: run pods of this namespace only; None means all.
        environment: variables that the pods' image sets.
        preloaded: fork trainers from a process that has imported torch, instead of starting Python for each.
    """

    def __init__(
        self,
        plane: ControlPlane,
        folder: Path,
        *,
        namespace: str | None = None,
        environment: Mapping[str, str] | None = None,
        preloaded: bool = True,
    ) -> None:
        self.node = f"node-{namespace or secrets.token_hex(3)}"
        self.most_at_once = 0  # pods whose processes have run at the same time
        self._api = Api(plane.url, plane.token)
        self._folder = folder
        self._pods_path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        self._image_environment = dict(environment or {})
        self._preloaded = preloaded
        self._marker = f"{secrets.token_hex(8)}/"
        self._guard = start_guard(self._marker)
        self._boxes: dict[str, _Box] = {}
        self._folders: dict[str, Path] = {}  # by name: of the last pod that had it
        self._lock = threading.RLock()
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._lost = False
        self._holds: dict[str, str] = {}  # names of pods: where they stop
        self._unpullable: str | None = None
        self._unschedulable: str | None = None

    def start(self) -> None:
        """Begin, or go on after `stop`: what ended meanwhile is reported then."""
        assert self._thread is None, "it runs already"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._create_node()
        self._halt.clear()
        self._thread = threading.Thread(target=self._run, name=self.node, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look after pods no more, as a stopped kubelet does: their processes go on."""
        self._halt.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        """End all processes and remove the node."""
        try:
            self.stop()
        finally:
            for box in self._boxes.values():
                if box.container is not None:
                    box.container.kill()
            kill_marked(f"POD_RUNNER={self._marker}")
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait()
            with contextlib.suppress(Unreachable):
                if (node := self._api.get(f"/api/v1/nodes/{self.node}")) is not None:
                    self._api.delete(f"/api/v1/nodes/{self.node}", uid=node["metadata"]["uid"])
            self._api.close()

    def pods(self) -> list[Object]:
        """All pods that are there now."""
        with self._lock:
            return self._list()

    def log(self, name: str) -> str:
        """What the pod of this name (the last one that had it) has written."""
        file = self._folders[name] / "log" if name in self._folders else None
        return file.read_text(errors="replace") if file is not None and file.exists() else ""

    def logs(self) -> dict[str, str]:
        """What all pods have written, by name."""
        return {name: self.log(name) for name in list(self._folders)}

    def is_running(self, name: str) -> bool:
        """Whether the process of the pod lives."""
        with self._lock, contextlib.suppress(LookupError):
            container = self._box(name)[1].container
            return container is not None and container.exit_code() is None
        return False

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the first process of a pod."""
        with self._lock:
            self._running(name).signal(number)

    def kill_together(self, names: Collection[str]) -> None:
        """Kill the first process of each of these pods before anybody sees that one is gone; those that ended are left
        out. LookupError if none runs.
        """
        with self._lock:
            running: list[Container] = []
            for name in names:
                with contextlib.suppress(LookupError):
                    running.append(self._running(name))
            if not running:
                raise LookupError(f"no pod of {', '.join(names)} runs on {self.node}")
            for container in running:
                container.signal(signal.SIGKILL)

    def freeze(self, name: str) -> None:
        """A pod that hangs, all its processes: it neither goes on nor listens to SIGTERM."""
        with self._lock:
            self._running(name).freeze()

    def hold(self, names: str, place: str) -> None:
        """Trainers stop themselves at a place of their program, until `release`: a test need not race with them.

        Args:
            names: of the pods that this is for (fnmatch), those that start from now on.
            place: as `modelchain_trainer.failpoints` has it: "step:16" is the 16th step that a trainer takes.
        """
        with self._lock:
            self._holds[names] = place

    def wait_for_held(self, names: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Until a trainer of these pods has come to the place where it is held."""

        def held() -> bool:
            with self._lock:
                boxes = [self._boxes.get(pod["metadata"]["uid"]) for pod in self._list() if _is(pod, names)]
            running = [box.container for box in boxes if box is not None and box.container is not None]
            return any(container.is_stopped() for container in running)

        wait_until(held, f"{names} is held; logs: {self.logs()}", seconds=seconds, pause=0.1)

    def release(self, names: str = "*") -> None:
        """Let the trainers of these pods go on, and hold none of them from now on."""
        with self._lock:
            self._holds = {
                held: place for held, place in self._holds.items() if not fnmatch.fnmatch(held, names)
            }
            for pod in self._list():
                box = self._boxes.get(pod["metadata"]["uid"])
                if _is(pod, names) and box is not None and box.container is not None:
                    box.container.release()

    def out_of_memory(self, name: str) -> None:
        """End a container as the kernel does that runs out of the container's memory: 137, OOMKilled."""
        with self._lock:
            self._box(name)[1].end_reason = "OOMKilled"
            self._running(name).kill()

    def evict(self, name: str, message: str = "The node was low on resource: memory.") -> None:
        """As a kubelet under pressure: the container is killed, the pod Failed, reason Evicted, and it stays."""
        with self._lock:
            _, box = self._box(name)
            box.eviction = message
            if box.container is not None:
                box.container.kill()

    def preempt(self, name: str) -> None:
        """As a scheduler that makes room for a pod of higher priority: marked, then deleted with its grace period."""
        self._disrupt(name, "PreemptionByScheduler", "preempting to accommodate a higher priority pod")

    def lose_node(self) -> None:
        """The node falls silent, its processes die; the control plane deletes its pods, which hang in Terminating."""
        with self._lock:
            self._lost = True
            self._set_ready("Unknown")
            for box in self._boxes.values():
                if box.container is not None:
                    box.container.kill()
            for pod in self._list():
                if pod["spec"].get("nodeName") == self.node and "deletionTimestamp" not in pod["metadata"]:
                    name = pod["metadata"]["name"]
                    self._disrupt(name, "DeletionByTaintManager", "deleting due to NoExecute taint", pod)

    def return_node(self) -> None:
        """The node answers again: it removes pods that were deleted, and reports the others."""
        with self._lock:
            self._lost = False
            self._set_ready("True")

    def image_pull_error(self, pattern: str | None) -> None:
        """Images that match (fnmatch) cannot be pulled; None: all can."""
        with self._lock:
            self._unpullable = pattern

    def unschedulable(self, message: str | None) -> None:
        """No node fits new pods, for this reason; None: they are bound."""
        with self._lock:
            self._unschedulable = message

    def _run(self) -> None:
        while not self._halt.wait(PASS_SECONDS):
            try:
                with self._lock:
                    if not self._lost:
                        self._look()
            except Unreachable:
                continue
            except Exception as error:  # noqa: BLE001  raised again by stop()
                self._failure = error
                return

    def _look(self) -> None:
        pods = {pod["metadata"]["uid"]: pod for pod in self._list()}
        for uid in self._boxes.keys() - pods.keys():  # deleted without grace
            box = self._boxes.pop(uid)
            if box.container is not None:
                box.container.kill()
        for uid, pod in pods.items():
            if pod["spec"].get("nodeName", self.node) == self.node:
                self._sync(uid, pod)

    def _sync(self, uid: str, pod: Object) -> None:
        deleting = "deletionTimestamp" in pod["metadata"]
        if "nodeName" not in pod["spec"] and (deleting or not self._bind(pod)):
            return
        if uid not in self._boxes:
            if pod["status"].get("phase") in ("Succeeded", "Failed"):
                if deleting:
                    self._api.delete(_path(pod), uid=uid, grace_seconds=0)
                return
            self._boxes[uid] = self._new_box(pod)
        box = self._boxes[uid]
        if deleting and not self._ended_by_grace(pod, box):
            return
        self._notice_end(pod, box)
        idle = box.container is None and box.end is None and box.eviction is None and not deleting
        if idle and time.monotonic() >= box.restart_at:
            self._launch(pod, box)
        if not deleting or box.end is not None:
            self._report(pod, box)
        if deleting:
            self._api.delete(_path(pod), uid=uid, grace_seconds=0)

    def _ended_by_grace(self, pod: Object, box: _Box) -> bool:
        """SIGTERM at first sight of the deletion, SIGKILL when its grace is over. Whether nothing runs any more."""
        if box.container is None or box.container.exit_code() is not None:
            return True
        deadline = time.monotonic() + pod["metadata"].get("deletionGracePeriodSeconds", 30)
        kill_at = box.kill_at
        if kill_at is None:
            box.container.signal(signal.SIGTERM)
            kill_at = deadline
        box.container.release()  # it listens to SIGTERM where it is held
        box.kill_at = kill_at = min(kill_at, deadline)  # a second deletion may shorten it
        if time.monotonic() < kill_at:
            return False
        box.container.kill()
        return True

    def _notice_end(self, pod: Object, box: _Box) -> None:
        if box.container is None or (code := box.container.exit_code()) is None:
            return
        container = pod["spec"]["containers"][0]
        message = box.container.message(container.get("terminationMessagePolicy", "File"))
        reason = box.end_reason or ("Completed" if code == 0 else "Error")
        end = _End(code, reason, message, box.started, _now())
        box.container = None
        box.end_reason = None
        policy = pod["spec"].get("restartPolicy", "Always")
        restarts = policy == "Always" or (policy == "OnFailure" and code != 0)
        if restarts and "deletionTimestamp" not in pod["metadata"] and box.eviction is None:
            box.last_end, box.restarts = end, box.restarts + 1
            box.restart_at = time.monotonic() + RESTART_SECONDS
            box.waiting = ("CrashLoopBackOff", "back-off restarting failed container")
        else:
            box.end = end

    def _launch(self, pod: Object, box: _Box) -> None:
        image = pod["spec"]["containers"][0].get("image", "")
        if self._unpullable is not None and fnmatch.fnmatch(image, self._unpullable):
            again = box.waiting[0] in ("ErrImagePull", "ImagePullBackOff")
            box.waiting = (
                ("ImagePullBackOff", f'Back-off pulling image "{image}"')
                if again
                else ("ErrImagePull", f'failed to pull and unpack image "{image}": not found')
            )
            return
        namespace = pod["metadata"]["namespace"]

        def fetch(kind: str, name: str) -> Object | None:
            return self._api.get(f"/api/v1/namespaces/{namespace}/{kind}/{name}")

        environment = dict(self._image_environment)
        for names, place in self._holds.items():
            if _is(pod, names):
                environment["MODELCHAIN_FAILPOINT"] = f"{place}:STOP"
        try:
            launch = plan(pod, box.folder, fetch, self._hosts(pod), environment)
            box.container = Container(launch, f"{self._marker}{box.uid}", preloaded=self._preloaded)
        except MountError as error:
            box.waiting = (error.reason, "")
            self._warn(pod, "FailedMount", str(error))
        except ConfigError as error:
            box.waiting = (error.reason, str(error))
        else:
            box.started = _now()
            self.most_at_once = max(self.most_at_once, sum(map(_runs, self._boxes.values())))

    def _warn(self, pod: Object, reason: str, message: str) -> None:
        """An event about a pod, as a kubelet posts it; the same one is told once."""
        name, namespace, now = pod["metadata"]["name"], pod["metadata"]["namespace"], _now()
        about = {"apiVersion": "v1", "kind": "Pod", "name": name, "namespace": namespace}
        event = {
            "metadata": {"name": f"{name}.{zlib.crc32(message.encode()):08x}", "namespace": namespace},
            "involvedObject": {**about, "uid": pod["metadata"]["uid"]},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "count": 1,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "source": {"component": "kubelet", "host": self.node},
        }
        self._api.create(f"/api/v1/namespaces/{namespace}/events", event)

    def _report(self, pod: Object, box: _Box) -> None:
        status = _status(pod, box)
        deleting = "deletionTimestamp" in pod["metadata"]
        if box.end is not None and not (box.end_told or box.eviction or deleting):
            status["phase"] = (
                "Running"  # a kubelet tells the end of the containers first, then that of the pod
            )
            box.end_told = True
        if status != box.reported:
            body = {"metadata": {"uid": box.uid}, "status": status}
            self._api.patch(f"{_path(pod)}/status", body)
            box.reported = status

    def _hosts(self, pod: Object) -> set[str]:
        """The host names of pods and Services of a pod's namespace, in all their lengths."""
        namespace = pod["metadata"]["namespace"]
        pods = (self._api.get(f"/api/v1/namespaces/{namespace}/pods") or {}).get("items", [])
        services = (self._api.get(f"/api/v1/namespaces/{namespace}/services") or {}).get("items", [])
        short = {each["metadata"]["name"] for each in (*pods, *services)}
        # Addresses of an indexed Job's pods, and of a PyTorchJob's master, are known before those pods are there.
        labels = pod["metadata"].get("labels", {})
        if job := labels.get("training.kubeflow.org/job-name"):
            short.add(f"{job}-master-0")
        subdomain = pod["spec"].get("subdomain")
        if subdomain and (job := labels.get("batch.kubernetes.io/job-name")):
            short |= {f"{job}-{index}.{subdomain}" for index in range(64)}
        short |= {
            f"{each['spec']['hostname']}.{each['spec']['subdomain']}"
            for each in pods
            if each["spec"].get("hostname") and each["spec"].get("subdomain")
        }
        endings = ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
        return {name + ending for name in short for ending in endings}

    def _bind(self, pod: Object) -> bool:
        if pod["spec"].get("schedulingGates"):
            return False
        if self._unschedulable is not None:
            if not any(each.get("message") == self._unschedulable for each in _conditions(pod)):
                condition = {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": self._unschedulable,
                    "lastTransitionTime": _now(),
                }
                self._api.patch(f"{_path(pod)}/status", {"status": {"conditions": [condition]}})
            return False
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]}}
        if self._api.create(f"{_path(pod)}/binding", {**body, "target": target}) is None:
            return False
        pod["spec"]["nodeName"] = self.node
        return True

    def _new_box(self, pod: Object) -> _Box:
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        folder = self._folder / f"{name}-{uid[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        self._folders[name] = folder
        box = _Box(uid, folder, started_pod=_now())
        statuses = pod["status"].get("containerStatuses") or [{}]
        if "running" in statuses[0].get("state", {}):  # by a runner that is no more
            began = statuses[0]["state"]["running"].get("startedAt")
            message = "The container could not be located when the pod was terminated"
            box.end = _End(137, "ContainerStatusUnknown", message, began, _now())
        return box

    def _box(self, name: str) -> tuple[Object, _Box]:
        for pod in self._list():
            if pod["metadata"]["name"] == name and pod["metadata"]["uid"] in self._boxes:
                return pod, self._boxes[pod["metadata"]["uid"]]
        raise LookupError(f"no pod {name} runs on {self.node}")

    def _running(self, name: str) -> Container:
        container = self._box(name)[1].container
        if container is None:
            raise LookupError(f"the container of {name} does not run")
        return container

    def _disrupt(self, name: str, reason: str, message: str, pod: Object | None = None) -> None:
        with self._lock:
            pod = pod or next((each for each in self._list() if each["metadata"]["name"] == name), None)
            if pod is None:
                raise LookupError(f"there is no pod {name}")
            condition = _disruption(reason, message)
            self._api.patch(f"{_path(pod)}/status", {"status": {"conditions": [condition]}})
            self._api.delete(_path(pod), uid=pod["metadata"]["uid"])

    def _list(self) -> list[Object]:
        listed = self._api.get(self._pods_path)
        return listed["items"] if listed is not None else []

    def _create_node(self) -> None:
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}}
        self._api.create("/api/v1/nodes", body)
        self._set_ready("True")

    def _set_ready(self, status: str) -> None:
        condition = {"type": "Ready", "status": status, "reason": "PodRunner", "lastTransitionTime": _now()}
        capacity = {"cpu": "64", "memory": "256Gi", "pods": "500", "nvidia.com/gpu": "64"}
        body = {"status": {"conditions": [condition], "capacity": capacity, "allocatable": capacity}}
        self._api.patch(f"/api/v1/nodes/{self.node}/status", body)


def _status(pod: Object, box: _Box) -> Object:
    phase = _phase(box)
    ready = phase == "Running" and box.container is not None
    over = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase)
    conditions = [
        _condition(box, "PodScheduled", True),
        _condition(box, "PodReadyToStartContainers", phase == "Running"),
        _condition(box, "Initialized", True, "PodCompleted" if phase == "Succeeded" else None),
        _condition(box, "ContainersReady", ready, None if ready else over or "ContainersNotReady"),
        _condition(box, "Ready", ready, None if ready else over or "ContainersNotReady"),
    ]
    status: Object = {
        "phase": phase,
        "conditions": conditions,
        "containerStatuses": [_container_status(pod, box)],
        "initContainerStatuses": [_init_status(each, box) for each in pod["spec"].get("initContainers", ())],
        "hostIP": "127.0.0.1",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "startTime": box.started_pod,
    }
    if box.eviction is not None:
        status |= {"reason": "Evicted", "message": box.eviction}
        if _DISRUPTION not in box.conditions:
            box.conditions[_DISRUPTION] = _disruption("TerminationByKubelet", box.eviction)
        conditions.append(box.conditions[_DISRUPTION])
    return status


def _phase(box: _Box) -> str:
    if box.eviction is not None:
        return "Failed"
    if box.end is not None:
        return "Succeeded" if box.end.exit_code == 0 else "Failed"
    return "Running" if box.container is not None or box.restarts else "Pending"


def _container_status(pod: Object, box: _Box) -> Object:
    container = pod["spec"]["containers"][0]
    if box.end is not None:
        state = _terminated(box.end)
    elif box.container is not None:
        state = {"running": {"startedAt": box.started}}
    else:
        reason, message = box.waiting
        state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    runs = box.container is not None
    return {
        "name": container["name"],
        "image": container.get("image", ""),
        "imageID": container.get("image", ""),
        "containerID": f"process://{box.container.pid}" if box.container is not None else "",
        "ready": runs,
        "started": runs,
        "restartCount": box.restarts,
        "state": state,
        "lastState": _terminated(box.last_end) if box.last_end is not None else {},
    }


def _init_status(container: Object, box: _Box) -> Object:
    done = _End(0, "Completed", "", box.started_pod, box.started_pod)
    fields = {"name": container["name"], "image": container.get("image", ""), "imageID": "", "ready": True}
    return {**fields, "restartCount": 0, "state": _terminated(done)}


def _terminated(end: _End) -> Object:
    state = {"exitCode": end.exit_code, "reason": end.reason, "finishedAt": end.finished}
    if end.started is not None:
        state["startedAt"] = end.started
    if end.message:
        state["message"] = end.message
    return {"terminated": state}


def _condition(box: _Box, kind: str, holds: bool, reason: str | None = None) -> Object:
    """With the time of its last change."""
    condition: Object = {"type": kind, "status": str(holds), "reason": reason}
    known = box.conditions.get(kind)
    since = known["lastTransitionTime"] if known and known["status"] == condition["status"] else _now()
    box.conditions[kind] = {**condition, "lastTransitionTime": since}
    return box.conditions[kind]


def _disruption(reason: str, message: str) -> Object:
    return {
        "type": _DISRUPTION,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": _now(),
    }


def _conditions(pod: Object) -> Iterator[Object]:
    yield from pod["status"].get("conditions") or ()


def _runs(box: _Box) -> bool:
    return box.container is not None and box.container.exit_code() is None


def _is(pod: Object, names: str) -> bool:
    return fnmatch.fnmatch(pod["metadata"]["name"], names)


def _path(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
