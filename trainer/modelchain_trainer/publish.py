"""What a finished stage leaves behind: weights for open_clip, what was measured, and the manifest.

Everything is uploaded under the attempt's own folder first. The manifest is written last and once: until then
the stage is not complete, and if another attempt was faster, its manifest stands.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import modelchain
from modelchain.artifacts import PREDICTIONS, FileEntry, Manifest
from modelchain.commit import commit_stage, hash_file
from modelchain.cost import stage_macs
from modelchain.errors import MissingInputError
from modelchain.times import rfc3339
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.checkpoint import Trunk, delete_checkpoints, find_trunk
from modelchain_trainer.evaluation.evaluation_set import ClassifiedImages, EvaluationSet, Run
from modelchain_trainer.evaluation.examples import example_predictions
from modelchain_trainer.failpoints import reach
from modelchain_trainer.model.weights import save_weights
from modelchain_trainer.tasks import task_of
from modelchain_trainer.train_state import TrainState

logger = logging.getLogger(__name__)


def publish(attempt: Attempt, state: TrainState, sets: Sequence[EvaluationSet], run: Run) -> None:
    """Export, upload and commit. All ranks call it; rank 0 writes, the others return at once.

    Raises HeldError if another process has taken the stage over, StoreUnavailable if the store stays away.
    """
    folder = attempt.scratch / "export"
    folder.mkdir()
    model = state.published
    classified = next((one for one in sets if isinstance(one, ClassifiedImages)), None)
    if classified is not None:
        example_predictions(model, classified, folder / PREDICTIONS, run)
    if not attempt.ranks.first:
        return
    attempt.telemetry.phase("Uploading")
    save_weights(model, attempt.stage.model_config_, folder)
    for name, content in task_of(attempt.stage).companions(attempt.stage, attempt.retry_policy).items():
        (folder / name).write_bytes(content)
    attempt.check_lease()
    files = _upload(attempt, folder)
    attempt.check_lease()
    reach("manifest")
    trunk = _trunk(attempt)
    manifest = _manifest(attempt, state, files, trunk)
    winner = attempt.retry_policy.call(lambda: commit_stage(attempt.store, attempt.stage.folder, manifest))
    reach("manifest-committed")
    if winner.attempt != attempt.token:
        logger.warning(
            "stage %s was completed by attempt %s in the meantime; what this one made is not used",
            attempt.stage.name,
            winner.attempt,
        )
        return
    attempt.telemetry.phase("Complete")
    delete_checkpoints(attempt.store, attempt.stage.folder, kept=trunk and trunk.folder)
    logger.info("stage %s is complete: %s", attempt.stage.name, attempt.store.uri_of(attempt.stage.folder))


def _trunk(attempt: Attempt) -> Trunk | None:
    stage = attempt.stage
    if stage.training.trunk_steps is None:
        return None
    trunk = attempt.retry_policy.call(lambda: find_trunk(attempt.store, stage))
    if trunk is None:
        raise MissingInputError(
            f"stage {stage.name}: its checkpoint at step {stage.training.trunk_steps}, the trunk, was deleted while it "
            "was trained; run it again, and let nothing delete under the store"
        )
    return trunk


def _upload(attempt: Attempt, folder: Path) -> tuple[FileEntry, ...]:
    """Upload what is in `folder`, and the metrics; entries with paths relative to the stage's folder."""
    base = attempt.folder.removeprefix(f"{attempt.stage.folder}/")
    entries: list[FileEntry] = []
    for path in sorted(folder.iterdir()):
        attempt.retry_policy.call(
            lambda path=path: attempt.store.upload(f"{attempt.folder}/{path.name}", path)
        )
        entries.append(hash_file(path).model_copy(update={"path": f"{base}/{path.name}"}))
        attempt.telemetry.advance()
        reach("upload-file")
    attempt.retry_policy.call(attempt.telemetry.flush)
    measured = attempt.telemetry.files()
    attempt.retry_policy.call(lambda: _write_missing(attempt, measured))
    for name, data in measured.items():
        sha256 = hashlib.sha256(data).hexdigest()
        entries.append(FileEntry(path=f"{base}/{name}", bytes=len(data), sha256=sha256))
    return tuple(entries)


def _write_missing(attempt: Attempt, files: Mapping[str, bytes]) -> None:
    """Write again what a purge or a bucket's lifecycle rule has taken of the metrics since they were written."""
    there = {info.key: info.size for info in attempt.store.list(f"{attempt.folder}/")}
    for name, data in files.items():
        key = f"{attempt.folder}/{name}"
        if there.get(key) != len(data):
            logger.warning(
                "%s was deleted while the stage was trained; written again", attempt.store.uri_of(key)
            )
            attempt.store.put(key, data)


def _manifest(
    attempt: Attempt, state: TrainState, files: tuple[FileEntry, ...], trunk: Trunk | None
) -> Manifest:
    stage = attempt.stage
    return Manifest(
        digest=stage.digest,
        stage=stage.name,
        model=stage.model,
        chain=stage.chain.full_name,
        attempt=attempt.token,
        predecessor=stage.predecessor.digest if stage.predecessor else None,
        teacher=stage.teacher.digest if stage.teacher else None,
        files=files + (trunk.files if trunk else ()),
        trunk=trunk and trunk.folder,
        metrics=attempt.telemetry.metrics(),
        steps=stage.training.steps,
        samples=stage.training.steps * stage.training.global_batch_size,
        macs=float(stage_macs(stage, teacher_steps=state.train_step.teacher_steps)),
        computed_macs=state.computed_macs,
        started_at=state.started_at,
        completed_at=rfc3339(time.time()),
        train_seconds=state.train_seconds,
        passed_over=state.passed_over,
        versions={
            "modelchain": modelchain.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    )
