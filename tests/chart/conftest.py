"""Tests of the chart on control planes: one that all share, whose API server writes down what each operator asks."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain.crd import CRD_NAME
from tests.chart.audit import POLICY, AuditLog
from tests.chart.openapi import serve_foreign_kinds
from tests.chart.releases import Release
from tests.chart.teams import Operators, Team
from tests.control_plane.fixtures import control_plane
from tests.control_plane.plane import ControlPlane
from tests.seaweedfs import SeaweedFS

__all__ = ["control_plane"]


@pytest.fixture(scope="session")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> AuditLog:
    """What service accounts have asked of the API server of `chart_plane`."""
    return AuditLog(tmp_path_factory.mktemp("audit") / "audit.log")


@pytest.fixture(scope="session")
def chart_plane(tmp_path_factory: pytest.TempPathFactory, audit_log: AuditLog) -> Iterator[ControlPlane]:
    """A control plane with the Kubeflow training operator that nobody has installed ModelChain on."""
    folder = tmp_path_factory.mktemp("chart-plane")
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(POLICY))
    options = [f"--audit-policy-file={policy}", f"--audit-log-path={audit_log.path}"]
    plane = ControlPlane(folder, apiserver_options=options)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def foreign_kinds(chart_plane: ControlPlane) -> Iterator[None]:
    """ServiceMonitor, PrometheusRule and ClusterTrainingRuntime, for one test."""
    with serve_foreign_kinds(chart_plane):
        yield


@pytest.fixture
def release(chart_plane: ControlPlane) -> Iterator[Release]:
    """A release that is not installed yet, on a cluster without ModelChain; afterwards nothing of it is left."""
    made = Release(chart_plane, namespace=f"system-{secrets.token_hex(3)}")
    yield made
    remove(made)


@pytest.fixture
def team(chart_plane: ControlPlane, seaweedfs: SeaweedFS, tmp_path: Path) -> Iterator[Team]:
    """A team on `chart_plane`."""
    made = Team(chart_plane, seaweedfs, tmp_path)
    yield made
    made.close()


@pytest.fixture
def operators() -> Iterator[Operators]:
    """Starts the operators of releases."""
    made = Operators()
    yield made
    made.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Of an operator."""
    return tmp_path / "operator.log"


def remove(*releases: Release) -> None:
    """Uninstall releases, as far as they are installed, and what is kept of them."""
    for one in releases:
        if one.name in one("list", "--short").split():
            one.uninstall()
    plane = releases[0].plane
    plane.kubectl("delete", "crd", CRD_NAME, "--ignore-not-found")
    for one in releases:
        plane.kubectl("delete", "namespace", one.namespace, "--ignore-not-found", "--wait=false")
