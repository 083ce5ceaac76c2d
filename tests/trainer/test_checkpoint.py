"""Checkpoints of a small made-up state in a real folder store."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modelchain.artifacts import checkpoint_folder
from modelchain.commit import list_checkpoints
from modelchain.errors import DiskFullError
from modelchain.resolved import ResolvedStage
from modelchain.store import Forbidden, StoreUnavailable
from modelchain.store.folder import FolderStore
from modelchain_trainer import checkpoint as module
from modelchain_trainer.checkpoint import (
    CheckpointState,
    CheckpointWriter,
    Snapshot,
    delete_checkpoints,
    restore_latest,
    restore_random,
    take_snapshot,
)
from modelchain_trainer.retry_policy import RetryPolicy
from tests.processes import PATIENCE_SECONDS

FOLDER = "stages/tiny-0000000000000000"


@pytest.fixture
def stage() -> ResolvedStage:
    return ResolvedStage.model_validate(
        {
            "chain": {"namespace": "default", "name": "digits", "uid": "uid"},
            "name": "tiny",
            "index": 0,
            "digest": "0" * 64,
            "folder": FOLDER,
            "model": "tiny",
            "modelConfig": {
                "embedDim": 16,
                "vision": {"imageSize": 8, "patchSize": 4, "width": 16, "layers": 1, "headWidth": 16},
                "text": {"width": 16, "layers": 1, "heads": 1},
            },
            "store": {"uri": "store"},
            "data": {"shards": ["data/0.tar"], "samples": 8},
            "training": {
                "epochs": 1,
                "globalBatchSize": 4,
                "warmupSteps": 0,
                "checkpointEverySteps": 1,
                "keepCheckpoints": 2,
                "stepsPerEpoch": 2,
                "steps": 2,
            },
        }
    )


class _Store(FolderStore):
    """A folder whose server can be told to answer an upload with an error."""

    before_upload: Callable[[str], None] | None = None

    def upload(self, key: str, path: Path) -> None:
        if self.before_upload is not None:
            self.before_upload(key)
        super().upload(key, path)


@pytest.fixture
def store(tmp_path: Path) -> _Store:
    return _Store(tmp_path / "store")


def _snapshot(step: int) -> Snapshot:
    state = CheckpointState(
        step=step,
        train_seconds=step * 0.25,
        started_at="2026-01-01T00:00:00Z",
        corrupt_samples={"BadImage": 1},
        attempts=("a",),
    )
    model = {"weight": torch.full((2, 3), float(step)), "logit_scale": torch.tensor(step / 7)}
    return take_snapshot(state, model, {"optimizer.steps": torch.tensor(float(step))})


def _writer(
    store: FolderStore,
    stage: ResolvedStage,
    scratch: Path,
    token: str = "uid-1-a",  # noqa: S107
    before_commit: Callable[[], None] = lambda: None,
    committed: Callable[[int], None] = lambda _: None,
) -> CheckpointWriter:
    folder = scratch / token
    folder.mkdir(exist_ok=True, parents=True)
    return CheckpointWriter(
        store, stage, token, folder, world_size=1, before_commit=before_commit, committed=committed
    )


def _save(writer: CheckpointWriter, *steps: int) -> None:
    for step in steps:
        writer.start(_snapshot(step))
        writer.wait()


def _steps(store: FolderStore, token: str | None = None) -> list[int]:
    return [c.step for c in list_checkpoints(store, FOLDER) if token in (None, c.token)]


def test_everything_comes_back_bit_for_bit(store: _Store, stage: ResolvedStage, tmp_path: Path) -> None:
    torch.manual_seed(5)
    snapshot = _snapshot(7)
    expected = torch.rand(4)  # what the generator gives right after the snapshot
    writer = _writer(store, stage, tmp_path)
    writer.start(snapshot)
    writer.wait()
    torch.rand(9)
    restored = restore_latest(store, stage, tmp_path)
    assert restored is not None
    assert restored.state == snapshot.state
    assert all(torch.equal(restored.model[name], tensor) for name, tensor in snapshot.model.items())
    assert torch.equal(restored.optimizer["optimizer.steps"], torch.tensor(7.0))
    restore_random(restored.random)
    assert torch.equal(torch.rand(4), expected)


def test_a_snapshot_does_not_change_with_the_model() -> None:
    weight = torch.ones(3)
    state = _snapshot(1).state
    snapshot = take_snapshot(state, {"weight": weight}, {})
    weight += 1
    assert torch.equal(snapshot.model["weight"], torch.ones(3))


def test_there_is_none_at_first(store: _Store, stage: ResolvedStage, tmp_path: Path) -> None:
    assert restore_latest(store, stage, tmp_path) is None


def test_only_the_newest_are_kept(store: _Store, stage: ResolvedStage, tmp_path: Path) -> None:
    _save(_writer(store, stage, tmp_path), 1, 2, 3, 4)
    assert _steps(store) == [4, 3]


def test_a_later_attempt_replaces_older_ones_once_it_is_further(
    store: _Store, stage: ResolvedStage, tmp_path: Path
) -> None:
    _save(_writer(store, stage, tmp_path, "uid-1-a"), 4, 6)
    second = _writer(store, stage, tmp_path, "uid-2-b")
    _save(second, 5)
    assert (_steps(store, "uid-1-a"), _steps(store, "uid-2-b")) == ([6], [5])
    _save(second, 7)
    assert (_steps(store, "uid-1-a"), _steps(store, "uid-2-b")) == ([], [7, 5])


def test_what_a_killed_attempt_left_unfinished_is_no_checkpoint_and_is_removed(
    store: _Store, stage: ResolvedStage, tmp_path: Path
) -> None:
    _save(_writer(store, stage, tmp_path, "uid-1-a"), 4)
    store.put(f"{checkpoint_folder(FOLDER, 'uid-1-a', 5)}/model.safetensors", b"half")
    restored = restore_latest(store, stage, tmp_path)
    assert restored is not None
    assert restored.state.step == 4
    _save(_writer(store, stage, tmp_path, "uid-2-b"), 5)
    assert _steps(store) == [5]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]
)
@pytest.mark.parametrize("damage", ["byte", "cut"])
def test_a_damaged_checkpoint_is_passed_over(
    name: str,
    damage: str,
    store: _Store,
    stage: ResolvedStage,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _save(_writer(store, stage, tmp_path), 3, 4)
    path = store.root / checkpoint_folder(FOLDER, "uid-1-a", 4) / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data if damage == "byte" else data[:-1])
    with caplog.at_level(logging.WARNING):
        restored = restore_latest(store, stage, tmp_path)
    assert restored is not None
    assert restored.state.step == 3
    assert name in caplog.text
    assert "0000000004" in caplog.text


def test_a_refusing_store_is_not_taken_for_an_empty_one(
    store: _Store, stage: ResolvedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(_writer(store, stage, tmp_path), 3)

    def refuse(key: str, path: Path) -> str:
        raise Forbidden(f"{key}: refused")

    monkeypatch.setattr(store, "download", refuse)
    with pytest.raises(Forbidden):
        restore_latest(store, stage, tmp_path)


def test_metrics_are_flushed_before_the_commit_and_the_commit_is_announced(
    store: _Store, stage: ResolvedStage, tmp_path: Path
) -> None:
    seen: list[object] = []
    writer = _writer(
        store,
        stage,
        tmp_path,
        before_commit=lambda: seen.append([c.finished for c in list_checkpoints(store, FOLDER)]),
        committed=seen.append,
    )
    _save(writer, 1)
    assert seen == [[False], 1]


def test_training_goes_on_while_a_checkpoint_is_written(
    store: _Store, stage: ResolvedStage, tmp_path: Path
) -> None:
    go = threading.Event()
    store.before_upload = lambda _: None if go.wait(PATIENCE_SECONDS) else pytest.fail("never told to go on")
    writer = _writer(store, stage, tmp_path)
    writer.start(_snapshot(1))
    assert writer.busy
    assert _steps(store) == []
    go.set()
    writer.wait()
    assert not writer.busy
    assert _steps(store) == [1]


def test_an_outage_of_the_store_is_waited_out(store: _Store, stage: ResolvedStage, tmp_path: Path) -> None:
    failures = iter([StoreUnavailable("refused"), StoreUnavailable("refused")])

    def fail_twice(_: str) -> None:
        error = next(failures, None)
        if error is not None:
            raise error

    store.before_upload = fail_twice
    _save(_writer(store, stage, tmp_path), 1)
    assert _steps(store) == [1]


def test_a_store_that_stays_away_costs_the_checkpoint_but_not_the_training(
    store: _Store, stage: ResolvedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RetryPolicy", lambda: RetryPolicy(0.01))

    def fail(_: str) -> None:
        raise StoreUnavailable("refused")

    store.before_upload = fail
    writer = _writer(store, stage, tmp_path)
    _save(writer, 1)
    store.before_upload = None
    _save(writer, 2)
    assert [c.step for c in list_checkpoints(store, FOLDER) if c.finished] == [2]


def test_a_full_disk_ends_the_training(store: _Store, stage: ResolvedStage, tmp_path: Path) -> None:
    def fail(_: str) -> None:
        raise DiskFullError("store: no space left")

    store.before_upload = fail
    writer = _writer(store, stage, tmp_path)
    writer.start(_snapshot(1))
    with pytest.raises(DiskFullError):
        writer.wait()


def test_a_complete_stage_has_no_checkpoints(store: _Store, stage: ResolvedStage, tmp_path: Path) -> None:
    _save(_writer(store, stage, tmp_path, "uid-1-a"), 2)
    _save(_writer(store, stage, tmp_path, "uid-2-b"), 1)
    delete_checkpoints(store, FOLDER, kept=None)
    assert _steps(store) == []


def test_nothing_is_left_in_the_scratch_folder(store: _Store, stage: ResolvedStage, tmp_path: Path) -> None:
    _save(_writer(store, stage, tmp_path / "scratch"), 1)
    restore_latest(store, stage, tmp_path / "scratch")
    assert [path.name for path in (tmp_path / "scratch").rglob("*")] == ["uid-1-a"]
