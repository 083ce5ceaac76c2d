"""Tests of TrainJobs with the real Trainer, JobSet and Kueue, on a control plane that has PyTorchJobs too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.control_plane.fixtures import running_plane
from tests.control_plane.plane import ControlPlane
from tests.control_plane.trainer import TrainerStack


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """In the place of the control plane of the other tests."""
    with running_plane(tmp_path_factory.mktemp("trainer-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def installed_stack(control_plane: ControlPlane) -> Iterator[TrainerStack]:
    """The stack of all tests here."""
    stack = TrainerStack(control_plane)
    try:
        stack.install()
        yield stack
    finally:
        stack.kill()


@pytest.fixture
def stack(installed_stack: TrainerStack) -> TrainerStack:
    """The Trainer and JobSet, running."""
    installed_stack.restore()
    return installed_stack
