"""A trainer that was imported beforehand is the one that Python would start, but for the time that this takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelchain.errors import ExitCode
from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE, ResolvedStage
from tests.control_plane.containers import marked
from tests.control_plane.preloaded import LAUNCHER, MARKER, PreloadedTrainer
from tests.trainer.stages import smallest_stage

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("control-plane")]


@pytest.mark.parametrize("code", [ExitCode.USAGE, ExitCode.NO_INPUT])
def test_it_ends_and_says_what_a_started_one_does(code: ExitCode, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    if code == ExitCode.NO_INPUT:  # which a rank finds
        stage = smallest_stage(
            store={"uri": str(tmp_path / "store")}, data={"shards": [str(tmp_path / "0.tar")]}
        )
        environment[STAGE_ENVIRONMENT_VARIABLE] = ResolvedStage.model_validate(stage).to_json()
    preloaded = PreloadedTrainer(tmp_path, tmp_path / "log", environment, "marker/1")
    assert preloaded.pid in set(marked(f"{MARKER}=marker/1"))
    started = subprocess.run(
        [sys.executable, "-m", LAUNCHER], env=environment, capture_output=True, text=True, check=False
    )
    assert preloaded.wait() == started.returncode == code
    assert (tmp_path / "log").read_text().splitlines()[-1] == started.stderr.splitlines()[-1]
    assert not set(marked(f"{MARKER}=marker/1"))
