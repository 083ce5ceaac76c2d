"""Tests with the real Kueue: a control plane of their own, since its webhooks stand before every job and pod."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.control_plane.fixtures import running_plane
from tests.control_plane.kueue import Kueue
from tests.control_plane.plane import ControlPlane
from tests.control_plane.trainer import TrainerStack
from tests.operator.kueue.queues import Queues


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """In the place of the control plane of the other tests: the training operator is in it too."""
    with running_plane(tmp_path_factory.mktemp("kueue-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def installed_kueue(control_plane: ControlPlane) -> Iterator[Kueue]:
    """The Kueue of all tests here, beside the Trainer and JobSet."""
    stack, kueue = TrainerStack(control_plane), Kueue(control_plane)
    try:
        stack.install()
        kueue.install()
        yield kueue
    finally:
        kueue.kill()
        stack.kill()


@pytest.fixture
def kueue(installed_kueue: Kueue) -> Iterator[Kueue]:
    """Kueue as it is usually configured; what a test makes of it lasts until its end."""
    installed_kueue.restore()
    yield installed_kueue
    if installed_kueue.is_changed:
        installed_kueue.kill()
        installed_kueue.configure()


@pytest.fixture
def queues(kueue: Kueue, namespace: str) -> Iterator[Queues]:
    """Quotas and queues of the test's namespace."""
    own = Queues(kueue.plane, namespace)
    yield own
    own.remove()
