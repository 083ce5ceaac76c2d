"""What makes a stage complete, and which checkpoint to go on from.

A stage is complete exactly when its manifest verifies: it parses, names this digest, and every file it
lists is there with the size that it lists. The manifest is written once and last; whoever reads a file also
checks its sha256 (`download_verified`). A checkpoint works the same way: its checkpoint.json is written last,
and without it there is no checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from modelchain.artifacts import (
    CHECKPOINT,
    MANIFEST,
    CheckpointManifest,
    FileEntry,
    Manifest,
    attempt_folder,
    checkpoint_folder,
)
from modelchain.block import first_problem
from modelchain.errors import ConfigurationError, MissingInputError, UserDataError
from modelchain.store import ConflictError, MissingBucket, NotFound, ObjectInfo, Store, StoreError

log = logging.getLogger(__name__)


class DamagedManifestError(UserDataError):
    """A manifest.json that is unreadable, or that belongs to another stage."""


class MissingArtifactsError(UserDataError):
    """A manifest whose files are gone, or have another size than it lists."""


class VanishedUploadError(StoreError):
    """A file of an attempt was deleted before the attempt could commit; another attempt writes it again."""


def require_conditional_writes(store: Store, *, accept_risk: bool) -> None:
    """Refuse a store that does not honour conditional writes, unless the chain accepts the risk.

    Raises ConfigurationError.
    """
    if not accept_risk and not store.check_conditional_writes():
        raise ConfigurationError(
            f"{store.uri}: the store ignores conditional writes (If-None-Match), so two trainers of a stage "
            "could overwrite each other; use another store, or set store.allowUnconditionalWrites"
        )


def verify_stage(store: Store, folder: str, digest: str) -> Manifest | None:
    """The manifest of the stage in `folder` if the stage is complete; None if it has no manifest.

    Raises DamagedManifestError if the manifest can't be read or is another stage's, MissingArtifactsError
    if a file is gone or has another size, and what the store raises: Forbidden is not absent.
    """
    manifest = read_manifest(store, folder, digest)
    if manifest is not None:
        require_files(store, folder, manifest)
    return manifest


def read_manifest(store: Store, folder: str, digest: str) -> Manifest | None:
    """As `verify_stage`, without looking at the files."""
    key = f"{folder}/{MANIFEST}"
    found = store.find(key)
    if found is None:
        return None
    try:
        manifest = Manifest.model_validate_json(found[0])
    except ValidationError as error:
        raise DamagedManifestError(
            f"{store.uri_of(key)}: damaged: {first_problem(error)}; restore it. Only where that can't be "
            f"done, delete the folder {folder}, with all that is left in it, to train the stage again"
        ) from error
    if manifest.digest != digest:
        raise DamagedManifestError(
            f"{store.uri_of(key)}: manifest from another stage: {manifest.stage} of chain {manifest.chain}, "
            f"digest {manifest.digest[:16]}, expected {digest[:16]}; was it copied here? Restore the "
            f"stage's own, or move the folder {folder} away"
        )
    return manifest


def require_files(
    store: Store, folder: str, manifest: Manifest, files: Iterable[ObjectInfo] | None = None
) -> None:
    """Raise MissingArtifactsError unless every file of the manifest is there with its size.

    `files`: a listing of the winning attempt, where there is one already.
    """
    problem = _missing_file(store, folder, manifest, files)
    if problem is not None:
        raise MissingArtifactsError(
            f"{problem}, though the manifest of stage {manifest.stage} lists it; restore it. Only where that can't be "
            f"done, delete the folder {folder}, with all that is left in it, to train the stage again"
        )


def _missing_file(
    store: Store, folder: str, manifest: Manifest, files: Iterable[ObjectInfo] | None
) -> str | None:
    """What is wrong with the first file of the manifest that is missing or has another size; None if all are there."""
    if files is None:
        files = store.list(f"{attempt_folder(folder, manifest.attempt)}/")
    sizes = {info.key: info.size for info in files}
    for entry in manifest.files:
        key = f"{folder}/{entry.path}"
        size = sizes.get(key)
        if size is None:
            info = store.head(key)  # refuses names that leave the store
            size = None if info is None else info.size
        if size != entry.bytes:
            found = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
            return f"{store.uri_of(key)}: {found}"
    return None


def commit_stage(store: Store, folder: str, manifest: Manifest) -> Manifest:
    """Make the stage complete with `manifest`, unless another attempt was faster. Returns the manifest that is in
    the store.

    The caller has won if that one names its own attempt. Raises VanishedUploadError, and writes nothing, if a
    file of the manifest is missing or has another size.
    """
    problem = _missing_file(store, folder, manifest, None)
    if problem is not None:
        raise VanishedUploadError(
            f"{problem}, though this attempt has just written it: let nothing delete under the store while a stage is "
            "trained. The training is not lost: the next attempt goes on from the latest checkpoint"
        )
    key = f"{folder}/{MANIFEST}"
    data = manifest.model_dump_json(by_alias=True, indent=2).encode()
    while True:
        try:
            store.put(key, data, if_absent=True)
        except ConflictError:
            winner = verify_stage(store, folder, manifest.digest)
            if winner is not None:
                return winner
            # deleted between the write and the read: there is no manifest now
        else:
            return manifest


def hash_file(path: Path) -> FileEntry:
    """Name, size and sha256 of a local file. Raises MissingInputError if there is none."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return FileEntry(path=path.name, bytes=file.tell(), sha256=sha256)
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such file") from error


def download_verified(store: Store, folder: str, entry: FileEntry, path: Path) -> None:
    """Download a file listed by a manifest in `folder` to `path`, and check its size and sha256.

    Raises MissingArtifactsError if it is gone, UserDataError if it is damaged; then `path` does not exist.
    """
    key = f"{folder}/{entry.path}"
    try:
        sha256 = store.download(key, path)
    except MissingBucket:
        raise
    except NotFound as error:
        raise MissingArtifactsError(f"{store.uri_of(key)}: listed in a manifest, but not there") from error
    size = path.stat().st_size
    if size == entry.bytes and sha256 == entry.sha256:
        return
    path.unlink()
    found = f"{size} bytes instead of {entry.bytes}" if size != entry.bytes else f"sha256 {sha256[:16]}..."
    raise UserDataError(
        f"{store.uri_of(key)}: damaged: {found}, the manifest says sha256 {entry.sha256[:16]}...; restore it "
        f"or delete the folder {folder}"
    )


@dataclass(frozen=True)
class StoredCheckpoint:
    """The files of one checkpoint, as a listing shows them; nothing is verified."""

    token: str  # of the attempt that wrote it
    step: int
    sizes: Mapping[str, int]  # bytes of each file, by its key in the store
    modified: float  # of its youngest file, seconds since the epoch by the store's clock

    @property
    def finished(self) -> bool:
        """Whether its checkpoint.json is there."""
        return any(key.endswith(f"/{CHECKPOINT}") for key in self.sizes)

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(self.sizes.values())


def list_checkpoints(store: Store, folder: str) -> list[StoredCheckpoint]:
    """All checkpoints of all attempts at the stage in `folder`, newest step first, unfinished ones too."""
    return group_checkpoints(folder, store.list(f"{folder}/attempts/"))


def group_checkpoints(folder: str, files: Iterable[ObjectInfo]) -> list[StoredCheckpoint]:
    """As `list_checkpoints`, from a listing of the stage."""
    prefix = f"{folder}/attempts/"
    sizes: dict[tuple[int, str], dict[str, int]] = {}
    modified: dict[tuple[int, str], float] = {}
    for info in files:
        match info.key.removeprefix(prefix).split("/"):
            case [token, "checkpoints", step, *_] if step.isdecimal():
                place = (int(step), token)
                sizes.setdefault(place, {})[info.key] = info.size
                modified[place] = max(modified.get(place, 0.0), info.modified)
    places = sorted(sizes, key=lambda place: (place[0], modified[place], place[1]), reverse=True)
    return [StoredCheckpoint(place[1], place[0], sizes[place], modified[place]) for place in places]


def verify_checkpoint(
    store: Store, folder: str, digest: str, stored: StoredCheckpoint
) -> CheckpointManifest | None:
    """The checkpoint's manifest if it is whole; None if not, with a warning in the log unless it is unfinished."""
    place = checkpoint_folder(folder, stored.token, stored.step)
    found = store.find(f"{place}/{CHECKPOINT}") if stored.finished else None
    if found is None:
        return None
    try:
        manifest = CheckpointManifest.model_validate_json(found[0])
    except ValidationError as error:
        log.warning("%s: passed over: damaged: %s", store.uri_of(place), first_problem(error))
        return None
    if manifest.digest != digest or manifest.step != stored.step:
        log.warning("%s: passed over: it belongs to another stage or step", store.uri_of(place))
        return None
    for entry in manifest.files:
        size = stored.sizes.get(f"{place}/{entry.path}")
        if size != entry.bytes:
            wrong = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
            log.warning("%s: passed over: %s %s", store.uri_of(place), entry.path, wrong)
            return None
    return manifest


def checkpoints(store: Store, folder: str, digest: str) -> Iterator[tuple[str, CheckpointManifest]]:
    """Attempt token and manifest of each whole checkpoint of the stage, of any attempt, newest step first."""
    for stored in list_checkpoints(store, folder):
        manifest = verify_checkpoint(store, folder, digest, stored)
        if manifest is not None:
            yield stored.token, manifest


def latest_checkpoint(store: Store, folder: str, digest: str) -> tuple[str, CheckpointManifest] | None:
    """The newest whole checkpoint, as `checkpoints` yields it; None if there is none."""
    return next(checkpoints(store, folder, digest), None)
