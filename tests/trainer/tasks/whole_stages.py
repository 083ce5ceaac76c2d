"""What whole stages of any task have in common."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from modelchain.commit import verify_stage
from modelchain.resolved import ResolvedStage
from modelchain.store.folder import FolderStore


def published(stage: ResolvedStage) -> Path:
    """The folder of the published weights of a stage that is complete; they are safetensors."""
    store = Path(stage.store.uri)
    manifest = verify_stage(FolderStore(store), stage.folder, stage.digest)
    assert manifest is not None
    assert manifest.weights.endswith("model.safetensors")
    return (store / stage.folder / manifest.weights).parent


def check_a_kill_changes_no_bit(stage: ResolvedStage, fork_server: Any, folder: Path) -> None:
    """Two ranks, killed at a step and started again, end with the weights of two that nobody disturbed."""
    assert fork_server.run(stage, folder / "calm", ranks=2) == 0
    expected = (published(stage) / "model.safetensors").read_bytes()
    shutil.rmtree(Path(stage.store.uri))
    assert fork_server.run(stage, folder / "killed", ranks=2, failpoint="step:7") == -9
    assert fork_server.run(stage, folder / "again", ranks=2) == 0
    assert (published(stage) / "model.safetensors").read_bytes() == expected
