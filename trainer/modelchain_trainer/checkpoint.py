"""Checkpoints: everything a stage needs to go on as if it had never stopped.

    attempts/<token>/checkpoints/<step>/
        model.safetensors      the student's weights
        optimizer.safetensors  moments, projections and averaged weights
        random.safetensors     states of torch's generators
        state.json             CheckpointState
        checkpoint.json        last: bytes and sha256 of the others; without it there is no checkpoint

Which samples come next needs no state: it is a pure function of seed and step (data/order.py). Weights are
equal on all ranks, so rank 0 alone saves; it copies the state and writes it in a thread while the training
goes on.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from modelchain.artifacts import (
    CHECKPOINT,
    CHECKPOINT_MODEL,
    CHECKPOINT_OPTIMIZER,
    CheckpointManifest,
    FileEntry,
    FiniteNumber,
    PassedOver,
    checkpoint_folder,
)
from modelchain.block import Block
from modelchain.commit import StoredCheckpoint, checkpoints, download_verified, hash_file, list_checkpoints
from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedStage
from modelchain.store import Store, StoreError, StoreUnavailable
from modelchain_trainer.failpoints import reach
from modelchain_trainer.model.weights import load_tensors, save_tensors
from modelchain_trainer.retry_policy import RetryPolicy

logger = logging.getLogger(__name__)

RANDOM = "random.safetensors"
STATE = "state.json"


class CheckpointState(Block):
    """state.json: the numbers of a checkpoint."""

    version: int = 1
    step: int  # steps finished
    train_seconds: FiniteNumber  # spent in them, over all attempts
    started_at: str  # RFC 3339, first attempt
    corrupt_samples: dict[str, int]  # by cause
    teacher_steps: int = 0  # see `step.Teaching`
    teacher_margin: FiniteNumber = 0.0
    teacher_surpassed: bool = False
    passed_over: tuple[PassedOver, ...] = ()
    computed_macs: FiniteNumber | None = None  # None: not counted from the beginning
    attempts: tuple[str, ...]  # tokens: the first, those resumed from, the one that saved this


@dataclass(frozen=True)
class Snapshot:
    """A copy of a stage's state at one step, on the CPU: the training may go on while it is written."""

    state: CheckpointState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


def take_snapshot(
    state: CheckpointState, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
) -> Snapshot:
    """Copy tensors and generators. Call it between two steps."""
    return Snapshot(state, _copy(model), _copy(optimizer), _random_state())


class CheckpointWriter:
    """Saves the checkpoints of one attempt, one at a time, and deletes those they replace."""

    def __init__(
        self,
        store: Store,
        stage: ResolvedStage,
        token: str,
        scratch: Path,
        *,
        world_size: int,
        before_commit: Callable[[], None],
        committed: Callable[[int], None],
    ) -> None:
        """Nothing is written yet.

        `before_commit` runs before checkpoint.json is written (metrics must not be younger than it),
        `committed` with the step afterwards; both in the writer's thread.
        """
        self._store = store
        self._stage = stage
        self._token = token
        self._scratch = scratch
        self._world_size = world_size
        self._before_commit = before_commit
        self._committed = committed
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._retry_policy = RetryPolicy()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, snapshot: Snapshot, *, required: bool = False) -> None:
        """Write `snapshot` in a thread, after the one being written, if any.

        A `required` one that can't be written ends the attempt; any other is left out with a warning.
        """
        self.wait()
        self._thread = threading.Thread(
            target=self._run, args=(snapshot, required), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises what went wrong for good (see `check`)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises the error of the last checkpoint, if it does not pass (disk full, forbidden).

        A store that stays away for longer than is waited for it is no such error: the training goes on, and the
        next checkpoint is tried.
        """
        if self._error is not None:
            raise self._error

    def _run(self, snapshot: Snapshot, required: bool) -> None:
        step = snapshot.state.step
        folder = self._scratch / f"checkpoint-{step}"
        try:
            self._save(snapshot, folder)
        except StoreUnavailable as error:
            logger.warning("no checkpoint at step %d: %s", step, error)
            if required:
                self._error = error
        except Exception as error:  # noqa: BLE001 - raised again in the main thread, by `check`
            self._error = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _save(self, snapshot: Snapshot, folder: Path) -> None:
        step = snapshot.state.step
        folder.mkdir()
        save_tensors(snapshot.model, folder / CHECKPOINT_MODEL)
        save_tensors(snapshot.optimizer, folder / CHECKPOINT_OPTIMIZER)
        save_tensors(snapshot.random, folder / RANDOM)
        (folder / STATE).write_text(snapshot.state.model_dump_json(by_alias=True))
        target = checkpoint_folder(self._stage.folder, self._token, step)
        entries = []
        for name in (STATE, RANDOM, CHECKPOINT_MODEL, CHECKPOINT_OPTIMIZER):
            path = folder / name
            entries.append(hash_file(path))
            self._retry_policy.call(lambda key=f"{target}/{name}", path=path: self._store.upload(key, path))
            reach("checkpoint-file")
        manifest = CheckpointManifest(
            digest=self._stage.digest, step=step, world_size=self._world_size, files=tuple(entries)
        )
        data = manifest.model_dump_json(by_alias=True, indent=2).encode()
        self._retry_policy.call(self._before_commit)
        reach("checkpoint-commit")
        self._retry_policy.call(lambda: self._store.put(f"{target}/{CHECKPOINT}", data))
        self._committed(step)
        reach("checkpoint-committed")
        self._delete_replaced(step)

    def _delete_replaced(self, step: int) -> None:
        """Delete what a checkpoint at `step` makes worthless: all up to it, but for our newest few and the trunk.

        We hold the lease, so older attempts are over.
        """
        trunk_steps = self._stage.training.trunk_steps
        try:
            replaced = [c for c in list_checkpoints(self._store, self._stage.folder) if c.step <= step]
            own = [c for c in replaced if c.token == self._token and c.finished]
            for checkpoint in replaced:
                if checkpoint.step == trunk_steps and checkpoint.finished:
                    continue
                if checkpoint not in own[: self._stage.training.keep_checkpoints]:
                    _delete(self._store, checkpoint)
        except StoreError as error:
            logger.warning("checkpoints that are not needed any more stay where they are: %s", error)


def delete_checkpoints(store: Store, folder: str, *, kept: str | None) -> None:
    """Delete the checkpoints of a complete stage but for the folder `kept`, relative to the stage's.

    A store that refuses keeps them, for `modelchain prune`.
    """
    try:
        for checkpoint in list_checkpoints(store, folder):
            if checkpoint_folder(folder, checkpoint.token, checkpoint.step) != f"{folder}/{kept}":
                _delete(store, checkpoint)
    except StoreError as error:
        logger.warning("the stage's checkpoints stay where they are: %s", error)


def last_good_step(store: Store, stage: ResolvedStage, bound: int) -> int:
    """The step of the newest checkpoint of at most `bound` steps; 0: there is none.

    One that is due by its number if there is any: those that were saved because an attempt was asked to end differ from
    run to run.
    """
    trunk, every = stage.training.trunk_steps, stage.training.checkpoint_every_steps
    steps = [found.step for _, found in checkpoints(store, stage.folder, stage.digest) if found.step <= bound]
    due = [step for step in steps if step % every == 0 or step == trunk]
    return max(due or steps, default=0)


def delete_later(store: Store, folder: str, step: int) -> None:
    """Delete the checkpoints of a stage after `step`."""
    for checkpoint in list_checkpoints(store, folder):
        if checkpoint.step > step:
            _delete(store, checkpoint)


@dataclass(frozen=True)
class Trunk:
    """The checkpoint that the decay of a WarmupStableDecay schedule began with: an artifact of its stage."""

    folder: str  # relative to the stage's folder
    files: tuple[FileEntry, ...]  # model and optimizer, paths relative to the stage's folder


def find_trunk(store: Store, stage: ResolvedStage) -> Trunk | None:
    """The stage's trunk, of whichever attempt; None if there is none (yet)."""
    for token, manifest in checkpoints(store, stage.folder, stage.digest):
        if manifest.step == stage.training.trunk_steps:
            folder = checkpoint_folder(stage.folder, token, manifest.step).removeprefix(f"{stage.folder}/")
            files = tuple(
                entry.model_copy(update={"path": f"{folder}/{entry.path}"})
                for entry in manifest.files
                if entry.path in (CHECKPOINT_MODEL, CHECKPOINT_OPTIMIZER)
            )
            return Trunk(folder, files)
    return None


@dataclass(frozen=True)
class Restored:
    """A checkpoint, read back and verified."""

    token: str  # of the attempt that saved it
    state: CheckpointState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]


def restore_latest(store: Store, stage: ResolvedStage, scratch: Path) -> Restored | None:
    """The newest checkpoint of the stage, of whichever attempt, that is whole; None if there is none.

    A damaged one is passed over with a warning, and so is one from the decay whose trunk is gone: the trunk is
    made again then. Raises Forbidden and StoreUnavailable: neither means that
    there is none.
    """
    retry_policy = RetryPolicy()
    trunk_steps = stage.training.trunk_steps
    whole = retry_policy.call(lambda: list(checkpoints(store, stage.folder, stage.digest)))
    has_trunk = any(manifest.step == trunk_steps for _, manifest in whole)
    for token, manifest in whole:
        place = store.uri_of(checkpoint_folder(stage.folder, token, manifest.step))
        if trunk_steps is not None and manifest.step > trunk_steps and not has_trunk:
            logger.warning("%s: passed over: the trunk at step %d is gone", place, trunk_steps)
            continue
        folder = scratch / f"restore-{token}-{manifest.step}"
        try:
            restored = _read(store, stage, token, manifest, folder, retry_policy)
        except UserDataError as error:
            logger.warning("%s: passed over: %s", place, error)
            continue
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("going on from step %d: %s", manifest.step, place)
        return restored
    return None


def restore_random(random: Mapping[str, Tensor]) -> None:
    """Put torch's generators into the state of a checkpoint."""
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def _read(
    store: Store,
    stage: ResolvedStage,
    token: str,
    manifest: CheckpointManifest,
    folder: Path,
    retry_policy: RetryPolicy,
) -> Restored:
    base = checkpoint_folder(stage.folder, token, manifest.step)
    folder.mkdir()
    for entry in manifest.files:
        path = folder / Path(entry.path).name
        retry_policy.call(lambda entry=entry, path=path: download_verified(store, base, entry, path))
    try:
        return Restored(
            token,
            CheckpointState.model_validate_json((folder / STATE).read_bytes()),
            load_tensors(folder / CHECKPOINT_MODEL),
            load_tensors(folder / CHECKPOINT_OPTIMIZER),
            load_tensors(folder / RANDOM),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserDataError(" ".join(str(error).split())) from None


def _delete(store: Store, checkpoint: StoredCheckpoint) -> None:
    """Delete a checkpoint, checkpoint.json first: what is half deleted is no checkpoint any more."""
    store.delete(sorted(checkpoint.sizes, key=lambda key: not key.endswith(f"/{CHECKPOINT}")))


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
