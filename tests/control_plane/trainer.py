"""The stack of TrainJobs on a control plane: the Kubeflow Trainer and JobSet, each as a process with its webhooks."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.control_plane import binaries
from tests.control_plane.certificates import certificate_secret, make_certificates, service_on_this_machine
from tests.control_plane.plane import ControlPlane, Process, free_ports
from tests.processes import wait_until

RUNTIME = Path(__file__).parents[2] / "charts" / "modelchain" / "files" / "clustertrainingruntime.yaml"

# Mounts of its own, in which it finds a pod's service account, and certificates where they lie in its image.
UNSHARED = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))
IN_A_POD = """set -e
mount -t tmpfs tmpfs "$(readlink -f /var/run)"
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount /tmp/k8s-webhook-server/serving-certs
cp "$1" /var/run/secrets/kubernetes.io/serviceaccount/token
mount --bind "$2" /tmp/k8s-webhook-server/serving-certs
shift 2
exec "$@"
"""

Object = dict[str, Any]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Controller:
    """A controller with webhooks. `start` and `kill` as often as a test likes."""

    def __init__(self, plane: ControlPlane, name: str, *, namespace: str, configuration: Object) -> None:
        """`name`: of its program. `configuration`: as its file has it, without ports and certificates."""
        self.plane, self.name, self.namespace = plane, name, namespace
        self._folder = plane.folder / name
        # controller-runtime looks for certificates in a folder of the one for temporary files.
        self._certificates = self._folder / "k8s-webhook-server" / "serving-certs"
        self._certificates.mkdir(parents=True, exist_ok=True)
        self._port, self._health_port = free_ports(2)
        self._configuration = {
            "kind": "Configuration",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health_port}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"port": self._port, "host": "127.0.0.1"},
            "leaderElection": {"leaderElect": False},
            **configuration,
        }
        self._file = self._folder / "configuration.json"
        self._command = [binaries.path(name), f"--config={self._file}", f"--kubeconfig={plane.kubeconfig}"]
        self._process = Process(name, self._command, self._folder, {"TMPDIR": str(self._folder)})
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Further fields of its configuration, and no others; counts from the next `start`."""
        self._file.write_text(json.dumps(self._configuration | settings))

    def install(self, manifests: list[Object]) -> None:
        """Apply its kinds and webhooks, and start it."""
        host = f"{self.name}.{self.namespace}.svc"
        make_certificates(self._certificates, host, organization=self.name, authority=f"{self.name}-ca")
        authority = base64.b64encode((self._certificates / "ca.crt").read_bytes()).decode()
        self.plane.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}},
            service_on_this_machine(self.name, self.namespace, self._port),
            *(self._asked_here(one, authority) for one in manifests),
        )
        for one in manifests:
            if one["kind"] == "CustomResourceDefinition":
                self._wait_for(one["metadata"]["name"])
        self.start()

    def start(self, *, wait: bool = True, as_in_a_pod: bool = False) -> None:
        """With `wait`, returns when its webhooks answer. `as_in_a_pod`: with the files that it finds in one."""
        self._process.command = [*(self._pod() if as_in_a_pod else ()), *self._command]
        self._process.start()
        if wait:
            self._wait()

    def restore(self) -> None:
        """Bring it up again if a test has left it dead. Returns when it answers."""
        if not self.is_running:
            self.start(wait=False)
        self._wait()

    def kill(self) -> None:
        """As a crash would."""
        self._process.kill()

    def kill_at(self, line: int) -> None:
        """Once it has written so many lines since it was started."""
        self._process.kill_at(line)

    @property
    def is_running(self) -> bool:
        """Whether its process was started."""
        return self._process.is_running

    def secret(self, name: str) -> Object:
        """The Secret with its certificates, as its manifests name it."""
        return certificate_secret(name, self.namespace, self._certificates)

    def _pod(self) -> list[str]:
        token = self._folder / "token"
        token.write_text(self.plane.kubectl("create", "token", "default", "-n", self.namespace).stdout)
        return [*UNSHARED, "sh", "-c", IN_A_POD, "sh", str(token), str(self._certificates)]

    def _wait_for(self, resource: str) -> None:
        """Until the API server serves it: a controller that begins before ends at once."""
        wait_until(
            lambda: self.plane.kubectl("get", resource, "-A", check=False).returncode == 0,
            f"the API server serves {resource}",
            pause=0.2,
        )

    def _wait(self) -> None:
        wait_until(self._answers, f"{self.name} answers; its log is {self._process.log}", pause=0.2)

    def _answers(self) -> bool:
        self._process.assert_alive()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health_port}/readyz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _asked_here(self, manifest: Mapping[str, Any], authority: str) -> Object:
        """The same, with webhooks that are asked at the port of our process."""
        own: Object = copy.deepcopy(dict(manifest))
        for webhook in own.get("webhooks", ()):
            path = webhook["clientConfig"]["service"]["path"]
            service = {"name": self.name, "namespace": self.namespace, "path": path, "port": self._port}
            webhook["clientConfig"] = {"service": service, "caBundle": authority}
        return own


class TrainerStack:
    """JobSet, the Trainer, and the runtime that the chart installs."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.jobset = Controller(
            plane,
            "jobset",
            namespace="jobset-system",
            configuration={
                "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
                "internalCertManagement": {"enable": False},
            },
        )
        self.trainer = Controller(
            plane,
            "trainer-controller-manager",
            namespace="kubeflow-system",
            configuration={
                "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
                "certManagement": {"enable": False},
                "clientConnection": {"qps": 200, "burst": 300},
                "controller": {
                    "groupKindConcurrency": {"TrainJob.trainer.kubeflow.org": 5}
                },  # as it is shipped
            },
        )

    def install(self, *, runtime: bool = True) -> None:
        """Returns when both answer. Without `runtime`, somebody else installs the chart's."""
        jobset, trainer = binaries.jobset_manifests(), binaries.trainer_manifests()
        self.jobset.install([*_read(jobset / "components/crd/bases"), *_built(jobset / "components/webhook")])
        self.trainer.install([*_built(trainer / "base/crds"), *_built(trainer / "base/webhook")])
        if runtime:
            self.plane.apply(yaml.safe_load(RUNTIME.read_text()))

    @contextmanager
    def with_status_server(self) -> Iterator[int]:
        """The Trainer with its feature gate TrainJobStatus; its server listens at that port of this machine."""
        (port,) = free_ports(1)
        self.plane.apply(self.trainer.secret("kubeflow-trainer-webhook-cert"))
        self.trainer.kill()
        self.trainer.configure(featureGates={"TrainJobStatus": True}, statusServer={"port": port})
        try:
            self.trainer.start(as_in_a_pod=True)
            yield port
        finally:
            self.trainer.kill()
            self.trainer.configure()
            self.trainer.start()

    def restore(self) -> None:
        """Bring up again what a test has left dead."""
        for controller in (self.jobset, self.trainer):
            controller.restore()

    def kill(self) -> None:
        """End both."""
        self.trainer.kill()
        self.jobset.kill()


def trainjob_definition() -> Object:
    """The CustomResourceDefinition of TrainJobs."""
    kinds = binaries.trainer_manifests() / "base" / "crds"
    return yaml.load((kinds / "trainer.kubeflow.org_trainjobs.yaml").read_text(), Loader=_LOADER)  # noqa: S506


def _built(folder: Path) -> list[Object]:
    """What `kubectl apply -k` would apply, less Services: ours lead to this machine."""
    built = subprocess.run(
        [binaries.kubectl(), "kustomize", str(folder)], check=True, capture_output=True, text=True
    )
    return [one for one in yaml.load_all(built.stdout, Loader=_LOADER) if one["kind"] != "Service"]


def _read(folder: Path) -> list[Object]:
    """What stands in a folder's files."""
    files = sorted(folder.glob("*.yaml"))
    return [one for file in files for one in yaml.load_all(file.read_text(), Loader=_LOADER)]
