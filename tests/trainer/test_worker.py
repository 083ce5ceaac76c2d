"""Whole stages, trained in the test's own process (but for the last test) on 64 coloured squares."""

import base64
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from modelchain.artifacts import EvaluationLine, Lease, Manifest, MetricsLine, Progress, TrainLine
from modelchain.commit import commit_stage, hash_file, list_checkpoints, verify_stage
from modelchain.cost import stage_macs
from modelchain.errors import ConfigurationError, HeldError, MissingInputError, ModelChainError, UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.spec import Precision
from modelchain.store.folder import FolderStore
from modelchain_trainer import publish
from modelchain_trainer.attempt import check_precision
from modelchain_trainer.model.weights import load_weights
from modelchain_trainer.position import Position
from modelchain_trainer.telemetry.metrics_log import decode_lines
from tests.leases import held_lease
from tests.processes import PATIENCE_SECONDS, wait_until

StageOf = Callable[..., ResolvedStage]
Train = Callable[..., Position]


def _folder(stage: ResolvedStage) -> Path:
    return Path(stage.store.uri) / stage.folder


def _store(stage: ResolvedStage) -> FolderStore:
    return FolderStore(Path(stage.store.uri))


def _manifest(stage: ResolvedStage) -> Manifest:
    manifest = verify_stage(_store(stage), stage.folder, stage.digest)
    assert manifest is not None
    return manifest


def _attempt_folder(stage: ResolvedStage) -> Path:
    return _folder(stage) / "attempts" / _manifest(stage).attempt


def _lines(stage: ResolvedStage) -> list[MetricsLine]:
    files = sorted(_attempt_folder(stage).glob("metrics-*.jsonl"))
    return [line for file in files for line in decode_lines(file.read_bytes(), 10**9)]


def _metrics_at(stage: ResolvedStage, step: int) -> dict[str, float]:
    (line,) = [line for line in _lines(stage) if isinstance(line, EvaluationLine) and line.step == step]
    return dict(line.metrics)


@pytest.fixture
def small(stage_of: StageOf, trained_small: Path, tmp_path: Path) -> ResolvedStage:
    """A stage that is complete in this test's own store."""
    shutil.copytree(trained_small, tmp_path / "store")
    return stage_of("small")


def test_a_stage_leaves_everything_its_manifest_lists(small: ResolvedStage) -> None:
    manifest = _manifest(small)
    folder = _attempt_folder(small)
    names = {Path(entry.path).name for entry in manifest.files}
    assert {"open_clip_model.safetensors", "open_clip_config.json", "predictions.json"} <= names
    assert {path.name for path in folder.iterdir()} - names == {"progress.json"}
    for entry in manifest.files:
        assert hash_file(_folder(small) / entry.path).sha256 == entry.sha256
    assert (manifest.steps, manifest.samples) == (12, 192)
    assert manifest.macs == stage_macs(small)
    assert manifest.train_seconds > 0
    assert manifest.versions["torch"] == torch.__version__
    asked = ResolvedStage.model_validate_json((_folder(small) / "stage.json").read_bytes())
    assert asked.model_copy(update={"store": small.store}) == small


def test_a_finished_stage_has_let_go_of_lease_and_checkpoints(small: ResolvedStage) -> None:
    assert Lease.model_validate_json((_folder(small) / "lease.json").read_bytes()).released
    assert list_checkpoints(_store(small), small.folder) == []
    progress = Progress.model_validate_json((_attempt_folder(small) / "progress.json").read_bytes())
    assert (progress.phase, progress.step, progress.steps) == ("Complete", 12, 12)
    assert progress.metrics == _manifest(small).metrics


def test_metrics_have_each_step_and_evaluations_at_both_ends_and_between(small: ResolvedStage) -> None:
    lines = _lines(small)
    train = [line for line in lines if isinstance(line, TrainLine)]
    assert [line.step for line in train] == list(range(1, 13))
    assert [line.step for line in lines if isinstance(line, EvaluationLine)] == [0, 6, 12]
    assert [line.samples for line in train] == [16 * step for step in range(1, 13)]
    assert train[3].epoch == 1
    assert train[-1].macs == stage_macs(small)
    computed = [line.computed_macs for line in train if line.computed_macs is not None]
    assert len(computed) == len(train)
    assert computed == sorted(computed)
    assert computed[-1] == _manifest(small).computed_macs
    assert computed[-1] < train[-1].macs
    assert all(after.time > before.time for before, after in pairwise(train))
    assert train[-1].loss["total"] < train[0].loss["total"]
    assert _manifest(small).metrics == _metrics_at(small, 12)


def test_predictions_show_pictures_and_probabilities(small: ResolvedStage) -> None:
    predictions = json.loads((_attempt_folder(small) / "predictions.json").read_bytes())
    assert predictions["set"] == "squares"
    assert len(predictions["samples"]) == 24
    sample = predictions["samples"][0]
    assert base64.b64decode(sample["png"]).startswith(b"\x89PNG")
    assert [name in predictions["classes"] for name, _ in sample["top"]] == [True] * 3
    assert 0 < sum(probability for _, probability in sample["top"]) <= 1.0001


def test_a_successor_begins_where_its_predecessor_ended(
    small: ResolvedStage, stage_of: StageOf, train: Train
) -> None:
    large = stage_of("large", width=32, layers=2, embed_dim=24, predecessor=small)
    train(large)
    manifest = _manifest(large)
    assert manifest.predecessor == small.digest
    assert manifest.macs == stage_macs(large) > stage_macs(large.model_copy(update={"teacher": None}))
    assert _metrics_at(large, 0) == _metrics_at(small, 12)
    first = next(line for line in _lines(large) if isinstance(line, TrainLine))
    assert first.loss["distillation"] < 1e-6, "growth or the projections do not keep the embeddings"
    last = _lines(large)[-2]
    assert isinstance(last, TrainLine)
    assert last.loss["distillation"] > 1e-6


def test_a_stage_of_given_weights_begins_with_them(
    small: ResolvedStage, stage_of: StageOf, train: Train
) -> None:
    weights = _attempt_folder(small)
    sha256 = hash_file(weights / "open_clip_model.safetensors").sha256
    stage = stage_of("foreign", fromWeights={"uri": str(weights), "sha256": sha256})
    train(stage)
    assert _metrics_at(stage, 0) == _metrics_at(small, 12)
    wrong = stage_of("wrong", fromWeights={"uri": str(weights), "sha256": "0" * 64})
    with pytest.raises(UserDataError, match=r"open_clip_model\.safetensors: its sha256 is"):
        train(wrong)


def test_given_weights_with_a_changed_byte_are_refused(
    small: ResolvedStage, stage_of: StageOf, train: Train, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(_attempt_folder(small), weights)
    path = weights / "open_clip_model.safetensors"
    sha256 = hash_file(path).sha256
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserDataError, match=f"not the {sha256} of fromWeights"):
        train(stage_of("damaged", fromWeights={"uri": str(weights), "sha256": sha256}))


def test_without_weight_the_predecessor_is_not_asked(
    small: ResolvedStage, stage_of: StageOf, train: Train
) -> None:
    stage = stage_of("alone", width=32, predecessor=small, distillation={"weight": 0.0})
    train(stage)
    assert all(line.loss["distillation"] == 0 for line in _lines(stage) if isinstance(line, TrainLine))


def test_a_complete_stage_is_not_trained_again(small: ResolvedStage, train: Train) -> None:
    before = {path: path.stat().st_mtime_ns for path in _folder(small).rglob("*")}
    train(small, "uid-2-later")
    assert {path: path.stat().st_mtime_ns for path in _folder(small).rglob("*")} == before


def test_a_stage_that_is_being_trained_is_left_alone(stage_of: StageOf, train: Train) -> None:
    stage = stage_of("held")
    key = f"{stage.folder}/lease.json"
    with (
        held_lease(_store(stage), key, holder="somebody", chain="a/b"),
        pytest.raises(HeldError, match="held by somebody of chain a/b"),
    ):
        train(stage)
    assert not list(_folder(stage).glob("attempts/uid-*"))


def test_whoever_lost_its_lease_stops_and_commits_nothing(stage_of: StageOf, train: Train) -> None:
    stage = stage_of("zombie", epochs=400)
    lease = _folder(stage) / "lease.json"

    def take_over() -> None:
        wait_until(lease.exists, "it is trained")
        held = Lease.model_validate_json(lease.read_bytes())
        stolen = held.model_copy(update={"holder": "other", "process": "elsewhere/1/1", "host": "elsewhere"})
        _store(stage).put(f"{stage.folder}/lease.json", stolen.model_dump_json(by_alias=True).encode())

    thief = threading.Thread(target=take_over)
    thief.start()
    with pytest.raises(HeldError, match="taken over the lease"):
        train(stage)
    thief.join()
    assert not (_folder(stage) / "manifest.json").exists()
    assert Lease.model_validate_json(lease.read_bytes()).holder == "other"


def test_the_slower_of_two_attempts_leaves_the_manifest_as_it_is(
    stage_of: StageOf, train: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = stage_of("race")
    real = publish._manifest

    def be_late(*arguments: object) -> Manifest:
        mine = real(*arguments)  # type: ignore[arg-type]
        folder = _folder(stage) / "attempts"
        shutil.copytree(folder / mine.attempt, folder / "faster")
        files = [e.model_copy(update={"path": e.path.replace(mine.attempt, "faster")}) for e in mine.files]
        theirs = mine.model_copy(update={"attempt": "faster", "files": tuple(files)})
        assert commit_stage(_store(stage), stage.folder, theirs) == theirs
        return mine

    monkeypatch.setattr(publish, "_manifest", be_late)
    with caplog.at_level(logging.WARNING):
        train(stage)
    assert _manifest(stage).attempt == "faster"
    assert "completed by attempt faster" in caplog.text


def test_retrieval_is_measured_and_class_names_may_lie_in_a_file(
    stage_of: StageOf, train: Train, squares: str, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\nyellow\n")
    data = {"shards": [squares]}
    evaluation = [
        {"name": "pairs", "type": "Retrieval", "data": {**data, "captionKeys": ["long.txt"], "samples": 40}},
        {"name": "colours", "type": "ZeroShot", "data": data, "classesUri": f"{tmp_path}/names.txt"},
    ]
    stage = stage_of("both", epochs=1, evaluation=evaluation, data={"captionKeys": ["txt", "long.txt"]})
    train(stage)
    metrics = _manifest(stage).metrics
    assert {"pairs/loss", "pairs/imageToText@5", "pairs/textToImage@1", "colours/top1"} <= set(metrics)
    assert metrics == _metrics_at(stage, 4)
    (tmp_path / "names.txt").write_text("red\n\nblue\n")
    with pytest.raises(UserDataError, match="one class name a line"):
        train(stage_of("unnamed", epochs=1, evaluation=evaluation))


def test_corrupt_samples_are_counted_in_the_progress(
    stage_of: StageOf, train: Train, squares: str, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(Path(squares).parent, folder)
    shard = folder / "000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"\x89PNG", b"\x89PNX", 1))
    stage = stage_of(
        "damaged", epochs=1, data={"shards": [f"{folder}/{{000..001}}.tar"], "maxCorruptFraction": 0.5}
    )
    train(stage)
    progress = Progress.model_validate_json((_attempt_folder(stage) / "progress.json").read_bytes())
    assert progress.corrupt_samples == {"BadImage": 1}


def _cut_weights(stage: ResolvedStage) -> None:
    path = _attempt_folder(stage) / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _change_weights(stage: ResolvedStage) -> None:
    path = _attempt_folder(stage) / "open_clip_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _swap_manifest(stage: ResolvedStage) -> None:
    path = _folder(stage) / "manifest.json"
    path.write_text(path.read_text().replace(stage.digest, "f" * 64))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_cut_weights, UserDataError, "open_clip_model.safetensors"),
        (_change_weights, UserDataError, "open_clip_model.safetensors"),
        (_swap_manifest, UserDataError, "manifest.json: manifest from another stage"),
        (
            lambda stage: shutil.rmtree(_folder(stage)),
            MissingInputError,
            "needs the weights of small, which is not complete",
        ),
    ],
    ids=["weights cut short", "weights changed by one bit", "manifest of another stage", "no predecessor"],
)
def test_a_predecessor_that_is_not_what_it_should_be_is_named(
    damage: Callable[[ResolvedStage], None],
    error: type[ModelChainError],
    message: str,
    small: ResolvedStage,
    stage_of: StageOf,
    train: Train,
) -> None:
    large = stage_of("large", width=32, predecessor=small)
    damage(small)
    with pytest.raises(error, match=message) as raised:
        train(large)
    assert "\n" not in str(raised.value)
    assert not (_folder(large) / "manifest.json").exists()


def test_a_missing_shard_is_named(stage_of: StageOf, train: Train, squares: str) -> None:
    pattern = squares.replace("{000..001}", "{000..002}")
    with pytest.raises(MissingInputError, match=r"002\.tar"):
        train(stage_of("missing", data={"shards": [pattern]}))


def test_a_loss_that_diverges_ends_the_stage_without_a_checkpoint_of_it(
    stage_of: StageOf, train: Train
) -> None:
    stage = stage_of("hot", training={"learningRate": 1e30, "minimumLearningRate": 1e30, "warmupSteps": 0})
    with pytest.raises(ModelChainError, match=r"training\.learningRate") as raised:
        train(stage)
    assert raised.value.exit_code == 78
    assert list_checkpoints(_store(stage), stage.folder) == []


def test_a_gpu_that_is_asked_for_must_be_there(
    stage_of: StageOf, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELCHAIN_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="finds no GPU"):
        train(stage_of("gpu"))


def test_a_gpu_without_bf16_is_named_with_what_to_write() -> None:
    check_precision(Precision.FP32, False, "Tesla T4")
    check_precision(Precision.BF16, True, "NVIDIA H100")
    with pytest.raises(
        ConfigurationError, match=r"training\.precision is Bf16, which Tesla T4 .* write Fp32"
    ):
        check_precision(Precision.BF16, False, "Tesla T4")


def test_a_stage_in_bf16_on_such_a_gpu_ends_before_it_trains(
    stage_of: StageOf, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what torch says of a Tesla T4 in the place of one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation)
    with pytest.raises(ConfigurationError, match="Bf16, which Tesla T4 does not compute"):
        train(stage_of("bf16", job={"gpusPerNode": 1}, training={"precision": "Bf16"}))


TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


def test_a_driver_that_is_too_old_is_told_in_torchs_words(
    stage_of: StageOf, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what torch raises where it finds one."""

    def refuse() -> None:
        raise RuntimeError(TOO_OLD)

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    with pytest.raises(
        ConfigurationError,
        match=r"built for CUDA .*driver on your system is too old \(found version 12020\)\); check",
    ):
        train(stage_of("driver", job={"gpusPerNode": 8}))


def test_a_pod_that_should_have_gpus_does_not_train_on_the_cpu(
    stage_of: StageOf, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigurationError, match=r"job\.gpusPerNode is 8, but .* finds no GPU here.*gpusPerNode: 0"
    ):
        train(stage_of("gpus", job={"gpusPerNode": 8}))
    train(stage_of("none", epochs=1, job={"gpusPerNode": 0}))


@pytest.mark.slow
def test_the_real_program_trains_a_stage_and_stops_when_asked(stage_of: StageOf, tmp_path: Path) -> None:
    stage = stage_of("program", epochs=2000)
    environment = {
        **os.environ,
        "MODELCHAIN_STAGE": stage.to_json(),
        "MODELCHAIN_ATTEMPT": "uid-3",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "modelchain_trainer"]
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def has_checkpoint() -> bool:
        assert launcher.poll() is None
        return bool(list_checkpoints(_store(stage), stage.folder))

    wait_until(has_checkpoint, "a checkpoint is written")
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 143
    assert "the next attempt goes on from the checkpoint at step" in errors
    (token,) = {checkpoint.token for checkpoint in list_checkpoints(_store(stage), stage.folder)}
    assert token.startswith("uid-3-")
    assert (_folder(stage) / "attempts" / token / "failure.json").exists()


def test_weights_load_again(small: ResolvedStage) -> None:
    _, config = load_weights(_attempt_folder(small))
    assert config == small.model_config_
