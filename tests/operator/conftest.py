"""Tests of the operator run on a real control plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_plane.fixtures import control_plane, namespace, new_plane, pod_runner
from tests.control_plane.plane import ControlPlane
from tests.operator.chains import ClusterChain
from tests.operator.operator_process import OperatorProcess
from tests.seaweedfs import SeaweedFS

__all__ = ["control_plane", "namespace", "new_plane", "pod_runner"]


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator for the test's namespace that nobody has started yet."""
    process = OperatorProcess(control_plane.kubeconfig, namespace, tmp_path / "operator.log")
    yield process
    process.kill()


@pytest.fixture
def chain(control_plane: ControlPlane, seaweedfs: SeaweedFS, namespace: str, tmp_path: Path) -> ClusterChain:
    """A chain of two stages that nobody has applied yet."""
    return ClusterChain(control_plane, seaweedfs, namespace, tmp_path)
