"""What tests on a control plane ask for; their conftest.py imports it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.processes import wait_until

_shared: list[ControlPlane] = []  # the one that runs
CRD = Path(__file__).parents[2] / "crds" / "modelchain.dev_modelchains.yaml"


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane with the kinds ModelChain and PyTorchJob, for all tests of this process, whichever
    conftest.py they have it from.

    A test that stops one of its programs starts it again; one that leaves it in another state takes `new_plane`.
    """
    if _shared:
        yield _shared[0]
        return
    with running_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        _shared.append(plane)
        yield plane
        _shared.clear()


@contextmanager
def running_plane(folder: Path) -> Iterator[ControlPlane]:
    """A control plane with the kinds ModelChain and PyTorchJob, until the block ends."""
    plane = ControlPlane(folder)
    try:
        plane.start()
        install_modelchain(plane)
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def new_plane(tmp_path: Path) -> Iterator[Callable[..., ControlPlane]]:
    """Starts control planes of the test's own: `new_plane(kubeflow=False)`. They end with the test."""
    planes: list[ControlPlane] = []

    def start(*, kubeflow: bool = True) -> ControlPlane:
        plane = ControlPlane(tmp_path / f"plane-{len(planes)}", kubeflow=kubeflow)
        planes.append(plane)
        plane.start()
        install_modelchain(plane)
        return plane

    yield start
    for plane in planes:
        plane.stop()


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """An empty namespace of the test's own; its deletion begins after the test and is not waited for. What this or
    another test has left dead is brought up again.
    """
    name = f"test-{secrets.token_hex(4)}"
    control_plane.restore()
    control_plane.create_namespace(name)
    yield name
    control_plane.restore()
    control_plane.delete_namespace(name)


@pytest.fixture
def pod_runner(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[PodRunner]:
    """Runs the pods of the test's namespace."""
    runner = PodRunner(control_plane, tmp_path / "pods", namespace=namespace)
    runner.start()
    yield runner
    runner.close()


def install_modelchain(plane: ControlPlane) -> None:
    """The CustomResourceDefinition, as an administrator would apply it."""
    plane.kubectl("apply", "--server-side", "-f", str(CRD))
    wait_for_modelchains(plane)


def wait_for_modelchains(plane: ControlPlane) -> None:
    """Until the API server serves them. (`kubectl wait` fails on a definition that has no conditions yet.)"""
    wait_until(
        lambda: plane.kubectl("get", "modelchains", "-A", check=False).returncode == 0,
        "the API server serves ModelChains",
        pause=0.2,
    )
