"""Releases of the chart on a control plane, and the operator as their Deployment says it is run.

Nothing makes pods of the Deployment here. The operator is a process with the environment of its container, and no
other, and with a token of its service account: what the chart gives it is what it has.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chart.helm import CHART, NAMESPACE, RELEASE, Object, environment, helm, objects, only
from tests.control_plane.plane import ControlPlane
from tests.operator.operator_process import OperatorProcess

QUICK = {"progressSeconds": 1, "resyncSeconds": 5}  # a test does not wait as long as people do
TWO_RESYNCS_SECONDS = 13.0  # each after 5.5 s at most, and a second for what it does


class Release:
    """One release of the chart, in a namespace that it makes."""

    def __init__(self, plane: ControlPlane, *, name: str = RELEASE, namespace: str = NAMESPACE) -> None:
        self.plane, self.name, self.namespace = plane, name, namespace
        self._tokens = 0

    def install(self, values: Mapping[str, Any] | None = None, *, chart: Path = CHART) -> str:
        """`helm install`; returns what it says to its user."""
        return self._change("install", chart, values, "--create-namespace")

    def upgrade(self, values: Mapping[str, Any] | None = None, *, chart: Path = CHART) -> str:
        """`helm upgrade` with the values of the last time, and these."""
        return self._change("upgrade", chart, values, "--reuse-values")

    def uninstall(self) -> None:
        """`helm uninstall`."""
        self("uninstall", self.name, "--wait")

    def __call__(self, *arguments: str, timeout: float = 180) -> str:
        """Helm, in the release's namespace. Raises AssertionError with what it says if it fails."""
        return helm(
            *arguments, "--namespace", self.namespace, kubeconfig=self.plane.kubeconfig, timeout=timeout
        ).stdout

    def manifest(self) -> list[Object]:
        """What the release has made."""
        return objects(self("get", "manifest", self.name))

    def deployment(self) -> Object:
        """The operator's Deployment, as the API server has it."""
        name = only(self.manifest(), "Deployment")["metadata"]["name"]
        got = self.plane.kubectl("get", "deployment", name, "-n", self.namespace, "-o", "json")
        return json.loads(got.stdout)

    def operator(self, log: Path) -> OperatorProcess:
        """The operator of this release, not started yet."""
        return _ReleasedOperator(self, log)

    def kubeconfig(self) -> Path:
        """Of the operator's service account."""
        account = self.deployment()["spec"]["template"]["spec"]["serviceAccountName"]
        token = self.plane.kubectl("create", "token", account, "-n", self.namespace, "--duration=6h")
        self._tokens += 1
        path = self.plane.folder / f"{self.namespace}-{self.name}-{self._tokens}.kubeconfig"
        return self.plane.kubeconfig_for(path, token.stdout.strip())

    def _change(self, verb: str, chart: Path, values: Mapping[str, Any] | None, *arguments: str) -> str:
        given = [f"{name}={json.dumps(value)}" for name, value in {**QUICK, **(values or {})}.items()]
        options = [word for one in given for word in ("--set-json", one)]
        return self(verb, self.name, str(chart), *arguments, *options)


class _ReleasedOperator(OperatorProcess):
    """Its container's environment and its account's token; only the port is any that is free."""

    def __init__(self, release: Release, log: Path) -> None:
        kubeconfig = release.kubeconfig()
        super().__init__(kubeconfig, None, log)
        variables = {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            "HOME": str(log.parent),
            **environment(release.deployment(), f"{release.name}-0"),
        }
        self._command = [
            *("env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *(sys.executable, "-m", "modelchain_operator"),
            *(f"--kubeconfig={kubeconfig}", "--http-host=127.0.0.1", "--http-port=0"),
            "--allowed-endpoint=http://127.0.0.1:*",  # the tests' stores are on this machine
        ]
