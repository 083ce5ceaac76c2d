"""Starts and stops the control plane's processes; what a cluster's administrator would have done is done as well."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.control_plane import binaries
from tests.control_plane.api import Api, Object, Unreachable
from tests.control_plane.certificates import (
    FILES,
    certificate_secret,
    make_certificates,
    openssl,
    service_on_this_machine,
)
from tests.processes import PATIENCE_SECONDS, wait_until

T = TypeVar("T")

CONTROLLERS = (
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "job-controller",
    "ttl-after-finished-controller",
    "resourcequota-controller",
    "clusterrole-aggregation-controller",
    "disruption-controller",
)
WEBHOOK_CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")  # noqa: S108 (fixed in the training operator)
WEBHOOK_SECRET = "training-operator-webhook-cert"  # noqa: S105 (a name)
KUBEFLOW = "kubeflow"
INIT_CONTAINER = Path(__file__).parents[2] / "examples" / "training-operator" / "initContainer.yaml"


class Process:
    """A program of the control plane: its output goes to a file, it dies with us, and it can be started again."""

    def __init__(
        self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ):
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0  # in its log, bytes

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._began = log.tell()
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  it only calls prctl
            )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal (SIGKILL: as a crash would) and wait for the end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=15)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._process = None

    def kill_at(self, line: int) -> None:
        """Kill it once its log has so many lines since it was started: at a place in its course, however busy the
        machine is.
        """
        wait_until(lambda: self._lines() >= line, f"{self.name} writes line {line} of {self.log}", pause=0.05)
        self.kill()

    def _lines(self) -> int:
        self.assert_alive()
        with self.log.open("rb") as log:
            log.seek(self._began)
            return log.read().count(b"\n")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def assert_alive(self) -> None:
        if self._process is not None and (code := self._process.poll()) is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.name} ended with exit code {code}; {self.log} ends with:\n{tail}")


class ControlPlane:
    """etcd, kube-apiserver, kube-controller-manager and, if asked for, the Kubeflow training operator."""

    def __init__(self, folder: Path, *, kubeflow: bool = True, apiserver_options: Sequence[str] = ()) -> None:
        """`apiserver_options`: flags of kube-apiserver beyond ours."""
        self.folder = folder
        self.kubeconfig = folder / "admin.kubeconfig"
        self._kubeflow = kubeflow
        self.token = secrets.token_hex(16)
        etcd_port, peer_port, self._port, self.webhook_port, manager_port = free_ports(5)
        self.url = f"https://127.0.0.1:{self._port}"
        self._api, self._asking = Api(self.url, self.token), threading.Lock()
        self.etcd = Process("etcd", self._etcd_command(etcd_port, peer_port), folder)
        self.apiserver = Process(
            "kube-apiserver", [*self._apiserver_command(etcd_port), *apiserver_options], folder
        )
        self.controller_manager = Process(
            "kube-controller-manager", self._controller_manager_command(manager_port), folder
        )
        self.training_operator = Process(
            "training-operator",
            self._training_operator_command(),
            folder,
            {"MY_POD_NAMESPACE": KUBEFLOW},
        )

    def start(self) -> None:
        """Bring everything up; returns when the API, garbage collection and the PyTorchJob webhook answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_keys()
        self._write_kubeconfig(self.kubeconfig, self.token)
        self.etcd.start()
        self.start_apiserver()
        self.controller_manager.start()
        self._wait(
            "the default service account", lambda: self._exists("serviceaccount", "default", "default")
        )
        if self._kubeflow:
            self.install_kubeflow()

    def restore(self) -> None:
        """Bring up again what a test has left dead."""
        if not self.apiserver.is_running:
            self.start_apiserver()
        if self._kubeflow and not self.training_operator.is_running:
            self.start_training_operator()

    def start_training_operator(self) -> None:
        """Returns when its webhook answers."""
        self.training_operator.start()
        self._wait("the training operator's webhook", self._webhook_answers)

    def start_apiserver(self) -> None:
        self.apiserver.start()
        self._wait("kube-apiserver", self.is_ready)

    def stop(self) -> None:
        for process in (self.training_operator, self.controller_manager, self.apiserver, self.etcd):
            process.kill(signal.SIGTERM if process is self.etcd else signal.SIGKILL)
        self._api.close()

    def is_ready(self) -> bool:
        """Whether the API server says that it is ready."""
        context = ssl._create_unverified_context()  # noqa: S323 (its certificate is made at start)
        request = urllib.request.Request(  # noqa: S310  our own server
            f"{self.url}/readyz", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
                return answer.status == 200
        except OSError:
            return False

    def kubectl(
        self, *arguments: str, text: str | None = None, check: bool = True, timeout: float = PATIENCE_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator; `text` goes to its standard input."""
        # By default it gives discovery and OpenAPI up after 32 s, which a server on a busy machine may need.
        patience = f"--request-timeout={timeout:.0f}s"
        done = subprocess.run(
            [binaries.kubectl(), patience, *arguments],
            check=False,
            input=text,
            capture_output=True,
            text=True,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            timeout=timeout,
        )
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def read(self, resource: str, namespace: str, name: str = "", **parameters: str) -> Object:
        """An object, or all of a namespace: what `kubectl get -o json` prints, for a fiftieth of its processor time.

        Args:
            resource: group, version and plural as the API's path has them: `apis/batch/v1/jobs`.
            namespace: where they are.
            name: of one; without it all of them are listed.
            parameters: of the request, such as `labelSelector`.

        Raises RuntimeError where there is none. While the API server does not answer, it is asked again.
        """
        group, _, plural = resource.rpartition("/")
        path = f"/{group}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")
        found = self._ask(lambda api: api.get(path, parameters))
        if found is None:
            raise RuntimeError(f"the API server has no {path}")
        return found

    def create_namespace(self, name: str) -> None:
        """As `kubectl create namespace`, for a fraction of its processor time."""
        self._ask(lambda api: api.create("/api/v1/namespaces", {"metadata": {"name": name}}))

    def delete_namespace(self, name: str) -> None:
        """Its deletion begins, and is not waited for."""
        path = f"/api/v1/namespaces/{name}"
        found = self._ask(lambda api: api.get(path))
        if found is not None:
            self._ask(lambda api: api.delete(path, uid=found["metadata"]["uid"]))

    def restrict_pods(self, namespace: str, mode: str = "enforce") -> None:
        """Label a namespace for Pod Security's level `restricted`; returns once the API server goes by the label, of
        which it learns in its own time. `mode`: enforce, or warn.
        """
        self.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/{mode}=restricted")
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": namespace}}
        text = json.dumps(pod | {"spec": {"containers": [{"name": "main", "image": "any"}]}})
        probe = ("create", "--dry-run=server", "-f", "-")
        self._wait(
            "Pod Security", lambda: "PodSecurity" in self.kubectl(*probe, text=text, check=False).stderr
        )

    def apply(self, *documents: object) -> None:
        """Server-side apply of manifests given as values."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=text)

    def kubeconfig_for(self, path: Path, token: str) -> Path:
        """A kubeconfig of somebody else, by their token (of a service account, say)."""
        self._write_kubeconfig(path, token)
        return path

    def install_training_crds(self) -> None:
        """The kinds of the training operator, with nobody who looks after them."""
        self.kubectl("apply", "--server-side", "-k", str(binaries.training_operator_crds()))
        self._wait(
            "the PyTorchJob API",
            lambda: self.kubectl("get", "pytorchjobs", "-A", check=False).returncode == 0,
        )

    def install_kubeflow(self) -> None:
        """The kinds of the training operator, its webhook, and the operator itself as a process."""
        self.install_training_crds()
        self._ensure_webhook_certificate()
        ca = (WEBHOOK_CERTIFICATES / "ca.crt").read_bytes()
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": KUBEFLOW}},
            certificate_secret(WEBHOOK_SECRET, KUBEFLOW, WEBHOOK_CERTIFICATES),
            service_on_this_machine("training-operator", KUBEFLOW, self.webhook_port),
            _webhook_configuration(ca, self.webhook_port),
        )
        self.start_training_operator()

    def _webhook_answers(self) -> bool:
        self.training_operator.assert_alive()
        pod = {"containers": [{"name": "wrong", "image": "any"}]}
        probe = {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"name": "probe", "namespace": "default"},
            "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 2, "template": {"spec": pod}}}},
        }
        answer = self.kubectl("create", "--dry-run=server", "-f", "-", text=json.dumps(probe), check=False)
        return "must be 1" in answer.stderr and "denied the request" in answer.stderr

    def _ensure_webhook_certificate(self) -> None:
        """The webhook's certificates: made once for this machine, since the operator reads them from a fixed folder.

        Its certificate rotation accepts a Secret that holds a valid pair, and leaves it alone.
        """
        WEBHOOK_CERTIFICATES.mkdir(parents=True, exist_ok=True)
        with (WEBHOOK_CERTIFICATES.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not all((WEBHOOK_CERTIFICATES / name).exists() for name in FILES):
                make_certificates(
                    WEBHOOK_CERTIFICATES,
                    f"training-operator.{KUBEFLOW}.svc",
                    organization="training-operator",
                    authority="training-operator-ca",
                )

    def _ask(self, request: Callable[[Api], T]) -> T:
        """The answer to a request; while the API server does not answer, it is asked again."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._asking:
                    return request(self._api)
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _exists(self, kind: str, name: str, namespace: str) -> bool:
        return self.kubectl("get", kind, name, "-n", namespace, check=False).returncode == 0

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            for process in (self.etcd, self.apiserver, self.controller_manager):
                process.assert_alive()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{what} did not answer within {PATIENCE_SECONDS:.0f} s; logs lie in {self.folder}"
                )
            time.sleep(0.2)

    def _write_keys(self) -> None:
        key, public = self.folder / "sa.key", self.folder / "sa.pub"
        openssl("genrsa", "-out", str(key), "2048")
        openssl("rsa", "-in", str(key), "-pubout", "-out", str(public))
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {"name": "test", "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}
                    ],
                    "users": [{"name": "user", "user": {"token": token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
                    "current-context": "test",
                }
            )
        )
        path.chmod(0o600)

    def _etcd_command(self, port: int, peer_port: int) -> list[str]:
        url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        return [
            binaries.path("etcd"),
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
        ]

    def _apiserver_command(self, etcd_port: int) -> list[str]:
        return [
            binaries.path("kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",  # from 1.37 on, others refuse a loopback address
            f"--secure-port={self._port}",
            f"--cert-dir={self.folder / 'certificates'}",
            "--authorization-mode=Node,RBAC",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-issuer={self.url}",  # where whoever checks a token finds its keys
            f"--service-account-key-file={self.folder / 'sa.pub'}",
            f"--service-account-signing-key-file={self.folder / 'sa.key'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--profiling=false",
        ]

    def _controller_manager_command(self, port: int) -> list[str]:
        return [
            binaries.path("kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.folder / 'sa.key'}",
            f"--controllers={','.join(CONTROLLERS)}",
            f"--secure-port={port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.folder / 'certificates'}",
            "--leader-elect=false",
            "--use-service-account-credentials=false",
            "--concurrent-gc-syncs=4",
        ]

    def _training_operator_command(self) -> list[str]:
        return [
            binaries.path("training-operator"),
            "--enable-scheme=pytorchjob",
            f"--webhook-server-port={self.webhook_port}",
            f"--kubeconfig={self.kubeconfig}",
            "--metrics-bind-address=0",
            "--health-probe-bind-address=0",
            "--controller-threads=4",
            "--kube-api-qps=200",
            "--kube-api-burst=300",
            f"--pytorch-init-container-template-file={INIT_CONTAINER}",
        ]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _webhook_configuration(ca: bytes, port: int) -> dict[str, object]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "validator.training-operator.kubeflow.org"},
        "webhooks": [
            {
                "name": "validator.pytorchjob.training-operator.kubeflow.org",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {
                    "caBundle": base64.b64encode(ca).decode(),
                    "service": {
                        "name": "training-operator",
                        "namespace": KUBEFLOW,
                        "path": "/validate-kubeflow-org-v1-pytorchjob",
                        "port": port,
                    },
                },
                "failurePolicy": "Fail",
                "rules": [
                    {
                        "apiGroups": ["kubeflow.org"],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["pytorchjobs"],
                    }
                ],
                "sideEffects": "None",
            }
        ],
    }


def _die_with_parent() -> None:
    """Linux: end with the test process, also when that is killed (prctl PR_SET_PDEATHSIG)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
