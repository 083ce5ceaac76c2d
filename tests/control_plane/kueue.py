"""Kueue on a control plane: its kinds and webhooks, and its controllers as a process."""

from __future__ import annotations

import copy
import json
import subprocess
import urllib.request
from collections.abc import Mapping
from typing import Any

import yaml

from tests.control_plane import binaries
from tests.control_plane.certificates import certificate_secret, make_certificates, service_on_this_machine
from tests.control_plane.plane import ControlPlane, Process, free_ports
from tests.processes import wait_until

NAMESPACE = "kueue-system"
WEBHOOK_SERVICE = "kueue-webhook-service"
WEBHOOK_SECRET = "kueue-webhook-server-cert"  # noqa: S105 (a name)
# What Kueue's own manifests enable, and PyTorchJob, which they no longer do.
FRAMEWORKS = (
    "batch/job",
    "jobset.x-k8s.io/jobset",
    "trainer.kubeflow.org/trainjob",
    "kubeflow.org/pytorchjob",
)
# Of Kueue's own manifests, and for the kinds of jobs that these leave at one at a time.
CONCURRENCY = {
    "Job.batch": 5,
    "Pod": 5,
    "Workload.kueue.x-k8s.io": 10,
    "LocalQueue.kueue.x-k8s.io": 5,
    "ClusterQueue.kueue.x-k8s.io": 5,
    "PyTorchJob.kubeflow.org": 5,
    "TrainJob.trainer.kubeflow.org": 5,
}
CRDS = frozenset({"CustomResourceDefinition"})
WEBHOOKS = frozenset({"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"})

Object = dict[str, Any]


class Kueue:
    """One Kueue. `start` and `kill` as often as a test likes, with another configuration each time if it wants."""

    def __init__(
        self, plane: ControlPlane, *, frameworks: tuple[str, ...] = FRAMEWORKS, **settings: Any
    ) -> None:
        """`settings`: further fields of Kueue's configuration, such as `waitForPodsReady`.
        https://kueue.sigs.k8s.io/docs/reference/kueue-config.v1beta2/
        """
        self.plane = plane
        self._folder = plane.folder / "kueue"
        self._certificates = self._folder / "certificates"
        self._certificates.mkdir(parents=True, exist_ok=True)
        self._webhook_port, self._health_port = free_ports(2)
        self._configuration = self._folder / "configuration.json"
        self._usual = self._configured = ""
        self.configure(frameworks=frameworks, **settings)
        self._usual = self._configured
        self._process = Process(
            "kueue",
            [
                binaries.path("kueue"),
                f"--config={self._configuration}",
                f"--kubeconfig={plane.kubeconfig}",
                "--zap-log-level=2",
            ],
            self._folder,
        )

    def configure(self, *, frameworks: tuple[str, ...] = FRAMEWORKS, **settings: Any) -> None:
        """Counts from the next `start`."""
        configuration = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health_port}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"port": self._webhook_port, "host": "127.0.0.1", "certDir": str(self._certificates)},
            "leaderElection": {"leaderElect": False},
            "clientConnection": {"qps": 300, "burst": 500},
            "controller": {"groupKindConcurrency": CONCURRENCY},
            "internalCertManagement": {"enable": True},
            "integrations": {"frameworks": list(frameworks)},
            "featureGates": {"VisibilityOnDemand": False},  # an API server of its own, at a fixed port
            **settings,
        }
        self._configured = json.dumps(configuration)
        self._configuration.write_text(self._configured)

    def install(self) -> None:
        """Its kinds and webhooks, and itself as a process. Returns when it answers."""
        make_certificates(
            self._certificates,
            f"{WEBHOOK_SERVICE}.{NAMESPACE}.svc",
            organization="kueue",
            authority="kueue-ca",
        )
        self.plane.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            certificate_secret(WEBHOOK_SECRET, NAMESPACE, self._certificates),
            service_on_this_machine(WEBHOOK_SERVICE, NAMESPACE, self._webhook_port),
            *(self._on_our_port(one) for one in _manifests(CRDS | WEBHOOKS)),
        )
        self.start()

    def start(self, *, wait: bool = True) -> None:
        """With `wait`, returns when its webhooks answer and its controllers run."""
        self._process.start()
        if wait:
            self._wait()

    def restore(self) -> None:
        """Bring it up again if a test has left it dead. Returns when it answers."""
        if not self.is_running:
            self._process.start()
        self._wait()

    def kill(self) -> None:
        """As a crash would."""
        self._process.kill()

    def kill_at(self, line: int) -> None:
        """Once it has written so many lines since it was started."""
        self._process.kill_at(line)

    def uninstall(self) -> None:
        """Kill it, and take its webhooks away, which stand before every job and pod; its kinds stay."""
        self.kill()
        for kind in sorted(WEBHOOKS):
            names = [one["metadata"]["name"] for one in _manifests(frozenset({kind}))]
            self.plane.kubectl("delete", kind, *names, "--ignore-not-found")

    @property
    def is_running(self) -> bool:
        """Whether its process was started."""
        return self._process.is_running

    @property
    def is_changed(self) -> bool:
        """Whether it is configured otherwise than it was at first."""
        return self._configured != self._usual

    def _wait(self) -> None:
        wait_until(self._answers, f"Kueue answers; its log is {self._process.log}", pause=0.2)

    def _answers(self) -> bool:
        self._process.assert_alive()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._health_port}/readyz", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _on_our_port(self, manifest: Mapping[str, Any]) -> Object:
        """The same, with webhooks that are asked at the port of our process."""
        own: Object = copy.deepcopy(dict(manifest))
        conversion = own.get("spec", {}).get("conversion", {}) if "spec" in own else {}
        configurations = [webhook["clientConfig"] for webhook in own.get("webhooks", ())]
        if "webhook" in conversion:
            configurations.append(conversion["webhook"]["clientConfig"])
        for configuration in configurations:
            configuration["service"]["port"] = self._webhook_port
        return own


def _manifests(kinds: frozenset[str]) -> list[Object]:
    """Those of these kinds among Kueue's own, as `kubectl apply -k` would apply them."""
    folder = binaries.kueue_manifests() / "default"
    built = subprocess.run(
        [binaries.kubectl(), "kustomize", str(folder)], check=True, capture_output=True, text=True
    )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(built.stdout, Loader=loader) if one["kind"] in kinds]
