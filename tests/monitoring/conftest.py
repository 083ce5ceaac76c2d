"""What the operator exports after a life in which every metric has had a sample; promtool."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.control_plane import binaries
from tests.monitoring.exported import Labels, labels_of
from tests.monitoring.life import families, whole_life

Promtool = Callable[..., str]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """Labels of every sample, by its name."""
    return labels_of(families(whole_life(tmp_path_factory.mktemp("store"))).values())


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Runs promtool in a folder and returns what it says; fails if it fails."""
    program = binaries.path("promtool")

    def run(*arguments: str, folder: Path) -> str:
        done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
