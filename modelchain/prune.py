"""What can be deleted from a store: stages that no chain refers to, attempts that did not win, old checkpoints.

`plan_prune` reads and decides, `prune` deletes. Nothing younger than the minimum age is deleted, and nothing of a stage
that is being trained: `prune` holds the stage's lease while it deletes, so that no trainer starts there. Manifests are
deleted first, so that nothing partly deleted looks complete. Metrics and TensorBoard events of attempts that did not
win are kept as long as the stage: the winner may have continued from them, and they are its history.
"""

from __future__ import annotations

import fnmatch
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from modelchain.artifacts import (
    CHECKPOINT,
    DIGEST_LENGTH,
    LEASE,
    MANIFEST,
    METRICS_FILES,
    STAGE,
    Manifest,
    attempt_folder,
    checkpoint_folder,
)
from modelchain.commit import StoredCheckpoint, group_checkpoints, require_files, verify_checkpoint
from modelchain.errors import HeldError, UserDataError
from modelchain.lease import LeaseKeeper
from modelchain.resolved import ResolvedStage
from modelchain.store import NotFound, ObjectInfo, Store

STALE_UPLOAD_SECONDS = 86400.0
KEEP_CHECKPOINTS = 2  # of a stage that is not complete: the newest, and one more in case it is damaged
LEASE_SECONDS = 30
HISTORY = (METRICS_FILES, "events.*")

_STAGE_FOLDER = re.compile(r"stages/[A-Za-z0-9.-]+-[0-9a-f]{16}")


@dataclass(frozen=True)
class Removal:
    """Something that can be deleted. `stage` is the folder of the stage to which it belongs; empty if none."""

    place: str  # its folder in the store
    reason: str
    keys: tuple[str, ...]
    bytes: int
    stage: str


@dataclass(frozen=True)
class Kept:
    """Something that is kept, and why, though it is not needed or could not be checked."""

    place: str
    reason: str


@dataclass(frozen=True)
class PrunePlan:
    removals: tuple[Removal, ...]
    kept: tuple[Kept, ...]
    stages: int  # that the store holds

    @property
    def bytes(self) -> int:
        """Bytes that would become free."""
        return sum(removal.bytes for removal in self.removals)


@dataclass(frozen=True)
class Pruned:
    """What `prune` did."""

    removed: tuple[Removal, ...]
    kept: tuple[Kept, ...]  # in use, or changed since the plan was made
    uploads: int  # unfinished uploads aborted


def plan_prune(
    store: Store, *, now: float, min_age_seconds: float, without_chains: bool = False
) -> PrunePlan:
    """What can be deleted from `store`. Reads only.

    `now` is in seconds since the epoch; `without_chains` allows every stage to be deleted if the store's chains
    refer to none. Raises UserDataError if a chain's file can't be parsed: which stages it needs is then unknown.
    """
    needed = _needed_stages(store)
    too_young = now - min_age_seconds
    removals: list[Removal] = []
    kept: list[Kept] = []
    stages: dict[str, list[ObjectInfo]] = {}
    for info in store.list("stages/"):
        stages.setdefault("/".join(info.key.split("/")[:2]), []).append(info)
    for folder, files in stages.items():
        if folder in needed:
            found, reason = _superfluous(store, folder, files, too_young)
            removals += found
            kept += [Kept(folder, reason)] if reason else []
        elif not needed and not without_chains:
            kept.append(
                Kept(folder, "the store knows no chain at all, so nothing says that it is not needed")
            )
        elif _youngest(files) > too_young:
            kept.append(Kept(folder, "no chain refers to it, but it is too young"))
        else:
            removals.append(_removal(folder, "no chain refers to this stage", files, folder))
    probes = [info for info in store.list(".probe/") if info.modified <= too_young]
    if probes:
        removals.append(_removal(".probe", "left over from a probe of conditional writes", probes, ""))
    return PrunePlan(tuple(removals), tuple(kept), len(stages))


def prune(store: Store, plan: PrunePlan, *, min_age_seconds: float) -> Pruned:
    """Delete what `plan` lists, stage by stage, each while its lease is held; then abort stale unfinished uploads.

    Watches a lease that looks held for at most its duration, until it expires or is renewed.
    """
    removed: list[Removal] = []
    kept: list[Kept] = []
    needed = _needed_stages(store)
    for stage in dict.fromkeys(removal.stage for removal in plan.removals):
        parts = [removal for removal in plan.removals if removal.stage == stage]
        whole = any(part.place == stage for part in parts)
        if whole and stage in needed:
            kept.append(Kept(stage, "a chain has come to need it"))
            continue
        lease = _hold(store, stage) if stage else None
        if isinstance(lease, Kept):
            kept.append(lease)
            continue
        try:
            if whole and _has_changed(store, stage, parts):
                whole = False
                kept.append(Kept(stage, "something was written there just now"))
                continue
            for part in parts:
                _delete(store, part.keys)
                removed.append(part)
        finally:
            if lease is not None:
                if whole:
                    lease.remove()
                else:
                    lease.release()
    uploads = store.abort_stale_uploads("", max(STALE_UPLOAD_SECONDS, min_age_seconds))
    return Pruned(tuple(removed), tuple(kept), uploads)


def _needed_stages(store: Store) -> set[str]:
    """Folders of all stages that any chain's file mentions, as its own or as weights to start from."""
    needed: set[str] = set()
    for info in store.list("chains/"):
        if not info.key.endswith(".json") or info.key.endswith(".lease.json"):
            continue
        found = store.find(info.key)
        if found is None:
            continue
        try:
            text = found[0].decode()
            json.loads(text)
        except ValueError as error:
            raise UserDataError(
                f"{store.uri_of(info.key)}: damaged, so nobody knows which stages this chain needs; repair or delete it"
            ) from error
        needed.update(_STAGE_FOLDER.findall(text))
    return needed


def _superfluous(
    store: Store, folder: str, files: list[ObjectInfo], too_young: float
) -> tuple[list[Removal], str]:
    """What can be deleted of a stage that is needed; or, if its manifest is damaged, why nothing can."""
    names = {info.key for info in files}
    if f"{folder}/{MANIFEST}" not in names:
        return _superfluous_checkpoints(store, folder, files, too_young), ""
    try:
        manifest = Manifest.model_validate_json(store.get(f"{folder}/{MANIFEST}")[0])
        require_files(store, folder, manifest, files)
    except (ValidationError, UserDataError, NotFound):
        return [], "its manifest does not verify, so nothing is certain here"
    if not folder.endswith(manifest.digest[:DIGEST_LENGTH]):
        return [], "its manifest is another stage's, so nothing is certain here"
    trunk = manifest.trunk
    listed = {f"{folder}/{entry.path}" for entry in manifest.files}
    attempts: dict[str, list[ObjectInfo]] = {}
    for info in files:
        parts = info.key.removeprefix(f"{folder}/").split("/")
        if parts[0] == "attempts" and len(parts) > 2:
            attempts.setdefault(parts[1], []).append(info)
    removals: list[Removal] = []
    for token, found in attempts.items():
        place = attempt_folder(folder, token)
        if token == manifest.attempt:
            place += "/checkpoints"
            reason = "checkpoints of a stage that is complete"
            found = [info for info in found if info.key.startswith(f"{place}/")]
        else:
            reason = "this attempt did not win"
        gone = [
            info
            for info in found
            if info.key not in listed
            and not _is_history(info.key)
            and not (trunk is not None and info.key.startswith(f"{folder}/{trunk}/"))
        ]
        if gone and _youngest(found) <= too_young:
            removals.append(_removal(place, reason, gone, folder))
    return removals, ""


def _superfluous_checkpoints(
    store: Store, folder: str, files: list[ObjectInfo], too_young: float
) -> list[Removal]:
    """What can be deleted of an incomplete stage: all checkpoints but the newest whole ones and the trunk."""
    stage = _stage_in(store, folder)
    if stage is None:
        return []
    whole = 0
    gone: list[tuple[StoredCheckpoint, str]] = []
    for stored in group_checkpoints(folder, files):
        if stored.step == stage.training.trunk_steps and stored.finished:
            continue  # an artifact of the stage, once it is complete
        if whole >= KEEP_CHECKPOINTS:
            gone.append((stored, "newer checkpoints of its stage are whole"))
        elif verify_checkpoint(store, folder, stage.digest, stored) is not None:
            whole += 1
        else:
            gone.append((stored, "a checkpoint that is not whole"))
    return [
        Removal(
            checkpoint_folder(folder, stored.token, stored.step),
            reason,
            tuple(stored.sizes),
            stored.bytes,
            folder,
        )
        for stored, reason in gone
        if stored.modified <= too_young
    ]


def _stage_in(store: Store, folder: str) -> ResolvedStage | None:
    """The stage that stage.json describes; None where it can't be parsed or is another stage's."""
    found = store.find(f"{folder}/{STAGE}")
    try:
        stage = ResolvedStage.model_validate_json(found[0]) if found is not None else None
    except ValidationError:
        return None
    return stage if stage is not None and folder.endswith(stage.digest[:DIGEST_LENGTH]) else None


def _hold(store: Store, stage: str) -> LeaseKeeper | Kept:
    lease = LeaseKeeper(
        store,
        f"{stage}/{LEASE}",
        holder=f"prune-{secrets.token_hex(4)}",
        chain="modelchain prune",
        duration_seconds=LEASE_SECONDS,
    )
    try:
        lease.acquire()
    except HeldError as error:
        return Kept(stage, str(error))
    return lease


def _has_changed(store: Store, stage: str, parts: Iterable[Removal]) -> bool:
    planned = {key for part in parts for key in part.keys}
    return {info.key for info in store.list(f"{stage}/")} - {f"{stage}/{LEASE}"} != planned


def _delete(store: Store, keys: Iterable[str]) -> None:
    commits = [key for key in keys if key.endswith((f"/{MANIFEST}", f"/{CHECKPOINT}"))]
    store.delete(commits)
    store.delete(key for key in keys if key not in set(commits))


def _removal(place: str, reason: str, files: list[ObjectInfo], stage: str) -> Removal:
    keys = tuple(info.key for info in files if info.key != f"{stage}/{LEASE}")
    return Removal(place, reason, keys, sum(info.size for info in files), stage)


def _youngest(files: list[ObjectInfo]) -> float:
    return max(info.modified for info in files)


def _is_history(key: str) -> bool:
    name = key.rpartition("/")[2]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in HISTORY)
