"""Stages whose data and artifacts lie in S3: the same bits as with a folder, and a server that may go away."""

import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelchain.artifacts import Manifest
from modelchain.commit import verify_stage
from modelchain.errors import ExitCode
from modelchain.resolved import ResolvedStage
from modelchain.store import Store, open_store
from modelchain.store.folder import FolderStore
from tests.processes import wait_until
from tests.seaweedfs import SeaweedFS

pytestmark = pytest.mark.slow

StageIn = Callable[..., ResolvedStage]

EPOCHS = 10  # 40 steps

as_calm = pytest.mark.xdist_group("s3-calm")  # they share the run that nobody disturbs


@pytest.fixture(scope="module")
def calm_weights(stage_in: StageIn, fork_server: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the weights that the stage ends with in a folder, undisturbed."""
    folder = tmp_path_factory.mktemp("calm")
    stage = stage_in(folder / "store", "small", epochs=EPOCHS)
    assert fork_server.run(stage, folder / "run") == 0
    return _weights(FolderStore(folder / "store"), stage)


@pytest.fixture
def stage(stage_in: StageIn, squares: str, seaweedfs: SeaweedFS) -> ResolvedStage:
    """The same stage with everything in S3."""
    access = seaweedfs.access(f"trainer/{secrets.token_hex(6)}")
    data = f"s3://modelchain/squares-{secrets.token_hex(6)}"
    for path in Path(squares).parent.glob("*.tar"):
        open_store(access.model_copy(update={"uri": data})).upload(path.name, path)
    shards = [f"{data}/{{000..001}}.tar"]
    stage = stage_in(access, "small", epochs=EPOCHS, data={"shards": shards})
    (evaluation,) = stage.evaluation
    on_s3 = evaluation.data.model_copy(update={"shards": shards})
    return stage.model_copy(update={"evaluation": (evaluation.model_copy(update={"data": on_s3}),)})


def _weights(store: Store, stage: ResolvedStage) -> str:
    manifest = verify_stage(store, stage.folder, stage.digest)
    assert isinstance(manifest, Manifest)
    (sha256,) = [entry.sha256 for entry in manifest.files if entry.path == manifest.weights]
    return sha256


@as_calm
def test_killed_attempts_on_s3_end_with_the_bits_of_a_calm_one_on_a_folder(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, calm_weights: str
) -> None:
    for number, failpoint in enumerate(("checkpoint-file:2", "checkpoint-commit:2", "step:2", "manifest")):
        assert fork_server.run(stage, tmp_path / f"run-{number}", failpoint=failpoint) == -9
        assert verify_stage(open_store(stage.store), stage.folder, stage.digest) is None
    assert fork_server.run(stage, tmp_path / "last") == 0
    assert _weights(open_store(stage.store), stage) == calm_weights


@as_calm
def test_a_stage_survives_a_server_that_is_killed_and_started_again(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, calm_weights: str, seaweedfs: SeaweedFS
) -> None:
    (rank,) = fork_server.start(stage, tmp_path / "run", failpoint="step:10:STOP")
    store = open_store(stage.store)
    status = Path(f"/proc/{rank.pid}/status")
    wait_until(lambda: "\nState:\tT" in status.read_text(), "the rank has stopped itself")
    seaweedfs.kill()
    os.kill(rank.pid, signal.SIGCONT)
    time.sleep(3)  # longer than its lease
    seaweedfs.start()
    assert rank.wait() == 0
    assert _weights(store, stage) == calm_weights


def test_wrong_keys_are_a_permanent_error_that_names_the_store(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (rank,) = fork_server.start(stage, tmp_path / "run")
    assert rank.wait() == ExitCode.NO_PERMISSION
    failure = json.loads(rank.report.read_bytes())["failure"]
    assert "s3://modelchain/trainer/" in failure["message"]
    assert "\n" not in failure["message"]
    assert "Traceback" not in rank.log.read_text()


def test_a_bucket_that_does_not_exist_is_named(
    stage: ResolvedStage, fork_server: Any, tmp_path: Path
) -> None:
    elsewhere = stage.store.model_copy(update={"uri": "s3://no-such-bucket/x"})
    (rank,) = fork_server.start(stage.model_copy(update={"store": elsewhere}), tmp_path / "run")
    assert rank.wait() == ExitCode.NO_INPUT
    assert "no-such-bucket" in json.loads(rank.report.read_bytes())["failure"]["message"]
