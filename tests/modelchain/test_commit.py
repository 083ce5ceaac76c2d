"""A stage is complete exactly when its manifest verifies; a checkpoint counts exactly when all of it is there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from modelchain.artifacts import (
    CHECKPOINT,
    MANIFEST,
    CheckpointManifest,
    FileEntry,
    Manifest,
    checkpoint_folder,
    stage_folder,
)
from modelchain.commit import (
    DamagedManifestError,
    MissingArtifactsError,
    VanishedUploadError,
    checkpoints,
    commit_stage,
    download_verified,
    hash_file,
    latest_checkpoint,
    list_checkpoints,
    require_conditional_writes,
    verify_stage,
)
from modelchain.errors import ConfigurationError, ExitCode, MissingInputError, UserDataError, is_permanent
from modelchain.resolved import ResolvedStore
from modelchain.store import Forbidden, MissingBucket, Store, open_store
from modelchain.store.folder import FolderStore
from tests.race import race
from tests.seaweedfs import SeaweedFS

DIGEST = hashlib.sha256(b"this stage").hexdigest()
OTHER = hashlib.sha256(b"another stage").hexdigest()
FOLDER = stage_folder("ViT-T-16", DIGEST)


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def finished(store: Store, token: str, *, digest: str = DIGEST, data: bytes = b"weights") -> Manifest:
    """The manifest of an attempt whose files are in the store; the manifest itself is not."""
    path = f"attempts/{token}/open_clip_model.safetensors"
    store.put(f"{FOLDER}/{path}", data)
    return Manifest(
        digest=digest,
        stage="vit-t",
        model="ViT-T-16",
        chain="default/demo",
        attempt=token,
        files=(entry(path, data),),
        metrics={"digits/top1": 0.5},
        steps=10,
        samples=640,
        macs=1e9,
        started_at="2026-01-01T00:00:00Z",
        completed_at="2026-01-01T00:01:00Z",
        train_seconds=42.0,
        versions={"modelchain": "0.1.0"},
    )


def checkpoint(
    store: Store, token: str, step: int, *, digest: str = DIGEST, data: bytes = b"model", finish: bool = True
) -> str:
    """Write a checkpoint; returns its folder."""
    folder = checkpoint_folder(FOLDER, token, step)
    store.put(f"{folder}/model.safetensors", data)
    if finish:
        files = (entry("model.safetensors", data),)
        manifest = CheckpointManifest(digest=digest, step=step, world_size=1, files=files)
        store.put(f"{folder}/{CHECKPOINT}", manifest.model_dump_json(by_alias=True).encode())
    return folder


class TestAStage:
    def test_without_a_manifest_it_is_not_complete(self, any_store: Store) -> None:
        finished(any_store, "a-1")
        assert verify_stage(any_store, FOLDER, DIGEST) is None

    def test_once_committed_it_is_complete_and_says_whose_it_is(self, any_store: Store) -> None:
        manifest = finished(any_store, "a-1")
        assert commit_stage(any_store, FOLDER, manifest) == manifest
        assert verify_stage(any_store, FOLDER, DIGEST) == manifest
        assert manifest.weights == "attempts/a-1/open_clip_model.safetensors"

    def test_a_zombie_gets_the_winners_manifest_and_changes_nothing(self, any_store: Store) -> None:
        winner = commit_stage(any_store, FOLDER, finished(any_store, "a-2", data=b"good"))
        late = finished(any_store, "a-1", data=b"late")
        assert commit_stage(any_store, FOLDER, late) == winner
        assert verify_stage(any_store, FOLDER, DIGEST) == winner

    def test_of_attempts_that_commit_at_once_one_wins_and_all_agree_which(self, any_store: Store) -> None:
        manifests = [finished(any_store, f"a-{number}", data=b"%d" % number) for number in range(4)]
        answers: list[Manifest] = []
        race(len(manifests), lambda i: answers.append(commit_stage(any_store, FOLDER, manifests[i])))
        assert len(answers) == len(manifests)
        assert {answer.attempt for answer in answers} == {answers[0].attempt}
        assert verify_stage(any_store, FOLDER, DIGEST) in manifests

    def test_it_is_not_committed_while_a_file_is_missing_or_short(self, folder_store: FolderStore) -> None:
        manifest = finished(folder_store, "a-1", data=b"weights")
        key = f"{FOLDER}/{manifest.weights}"
        folder_store.put(key, b"weigh")
        with pytest.raises(VanishedUploadError, match=r"safetensors: has 5 bytes instead of 7"):
            commit_stage(folder_store, FOLDER, manifest)
        folder_store.delete([key])
        with pytest.raises(VanishedUploadError, match=r"safetensors: is missing") as caught:
            commit_stage(folder_store, FOLDER, manifest)
        assert not is_permanent(caught.value.exit_code), "the next attempt goes on from the latest checkpoint"
        assert "delete the folder" not in str(caught.value)
        assert folder_store.head(f"{FOLDER}/{MANIFEST}") is None

    def test_a_file_that_went_missing_is_told_and_not_taken_for_not_trained(self, any_store: Store) -> None:
        manifest = commit_stage(any_store, FOLDER, finished(any_store, "a-1"))
        any_store.delete([f"{FOLDER}/{manifest.weights}"])
        with pytest.raises(MissingArtifactsError, match=r"is missing, though the manifest .* lists it"):
            verify_stage(any_store, FOLDER, DIGEST)

    def test_the_manifest_of_another_stage_is_told(self, folder_store: FolderStore) -> None:
        foreign = finished(folder_store, "a-1", digest=OTHER)
        commit_stage(folder_store, FOLDER, foreign)
        for look in (
            lambda: verify_stage(folder_store, FOLDER, DIGEST),
            lambda: commit_stage(folder_store, FOLDER, finished(folder_store, "a-2")),
        ):
            with pytest.raises(DamagedManifestError, match="manifest from another stage") as caught:
                look()
            assert OTHER[:16] in str(caught.value)
            assert caught.value.exit_code is ExitCode.DATA

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 1}'])
    def test_a_damaged_manifest_is_told_in_one_line(self, folder_store: FolderStore, damage: bytes) -> None:
        folder_store.put(f"{FOLDER}/{MANIFEST}", damage)
        with pytest.raises(DamagedManifestError, match=rf"{FOLDER}/{MANIFEST}: damaged: ") as caught:
            verify_stage(folder_store, FOLDER, DIGEST)
        assert "\n" not in str(caught.value)

    def test_a_manifest_cut_short_at_any_byte_never_verifies(self, folder_store: FolderStore) -> None:
        manifest = commit_stage(folder_store, FOLDER, finished(folder_store, "a-1"))
        whole = folder_store.get(f"{FOLDER}/{MANIFEST}")[0]
        assert Manifest.model_validate_json(whole) == manifest
        for length in range(0, len(whole) - 1, 13):
            folder_store.put(f"{FOLDER}/{MANIFEST}", whole[:length])
            with pytest.raises(DamagedManifestError):
                verify_stage(folder_store, FOLDER, DIGEST)

    def test_a_manifest_that_points_out_of_the_store_is_refused(self, folder_store: FolderStore) -> None:
        manifest = finished(folder_store, "a-1")
        files = (entry("../../../../etc/passwd", b"x"),)
        evil = manifest.model_copy(update={"files": files})
        folder_store.put(f"{FOLDER}/{MANIFEST}", evil.model_dump_json(by_alias=True).encode())
        with pytest.raises(UserDataError, match="does not name an object in the store"):
            verify_stage(folder_store, FOLDER, DIGEST)
        with pytest.raises(UserDataError, match="does not name an object in the store"):
            download_verified(folder_store, FOLDER, files[0], Path("/nowhere"))

    def test_a_store_that_can_not_be_read_is_not_an_empty_one(
        self, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(MissingBucket):
            verify_stage(open_store(seaweedfs.access("x", bucket="no-such-bucket")), FOLDER, DIGEST)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(Forbidden):
            verify_stage(open_store(seaweedfs.access("x")), FOLDER, DIGEST)


class TestADownload:
    def test_it_is_checked_and_kept(self, any_store: Store, tmp_path: Path) -> None:
        manifest = finished(any_store, "a-1")
        download_verified(any_store, FOLDER, manifest.files[0], tmp_path / "weights")
        assert (tmp_path / "weights").read_bytes() == b"weights"

    @pytest.mark.parametrize(
        ("there", "says"),
        [(b"weightz", "sha256"), (b"weight", "6 bytes instead of 7"), (b"", "0 bytes instead")],
    )
    def test_damage_is_told_with_the_name_and_leaves_no_file(
        self, any_store: Store, tmp_path: Path, there: bytes, says: str
    ) -> None:
        manifest = finished(any_store, "a-1")
        any_store.put(f"{FOLDER}/{manifest.weights}", there)
        with pytest.raises(UserDataError, match=rf"{manifest.weights}: damaged: {says}"):
            download_verified(any_store, FOLDER, manifest.files[0], tmp_path / "weights")
        assert not (tmp_path / "weights").exists()

    def test_a_missing_file_is_told(self, any_store: Store, tmp_path: Path) -> None:
        with pytest.raises(MissingArtifactsError, match="listed in a manifest, but not there"):
            download_verified(any_store, FOLDER, entry("attempts/a/x", b""), tmp_path / "x")


class TestCheckpoints:
    def test_the_newest_step_of_any_attempt_is_found(self, any_store: Store) -> None:
        for token, step in (("a-1", 20), ("a-2", 9), ("a-1", 100), ("a-3", 30)):
            checkpoint(any_store, token, step)
        found = latest_checkpoint(any_store, FOLDER, DIGEST)
        assert found is not None
        assert (found[0], found[1].step) == ("a-1", 100)
        assert [(token, manifest.step) for token, manifest in checkpoints(any_store, FOLDER, DIGEST)] == [
            ("a-1", 100),
            ("a-3", 30),
            ("a-1", 20),
            ("a-2", 9),
        ]

    def test_no_checkpoint_is_no_error(self, any_store: Store) -> None:
        finished(any_store, "a-1")
        assert latest_checkpoint(any_store, FOLDER, DIGEST) is None
        assert list_checkpoints(any_store, FOLDER) == []

    @pytest.mark.parametrize(
        "damage", ["unfinished", "not json", "another stage", "another step", "file short", "file missing"]
    )
    def test_a_damaged_one_is_passed_over(self, folder_store: FolderStore, damage: str) -> None:
        checkpoint(folder_store, "a-1", 10)
        digest = OTHER if damage == "another stage" else DIGEST
        bad = checkpoint(folder_store, "a-2", 20, digest=digest, finish=damage != "unfinished")
        if damage == "not json":
            folder_store.put(f"{bad}/{CHECKPOINT}", b"{")
        elif damage == "another step":
            folder_store.put(
                f"{bad}/{CHECKPOINT}",
                folder_store.get(f"{checkpoint(folder_store, 'a-1', 10)}/{CHECKPOINT}")[0],
            )
        elif damage == "file short":
            folder_store.put(f"{bad}/model.safetensors", b"mod")
        elif damage == "file missing":
            folder_store.delete([f"{bad}/model.safetensors"])
        found = latest_checkpoint(folder_store, FOLDER, DIGEST)
        assert found is not None
        assert found[1].step == 10

    def test_the_listing_counts_bytes_and_knows_the_unfinished(self, folder_store: FolderStore) -> None:
        checkpoint(folder_store, "a-1", 10, data=b"12345", finish=False)
        checkpoint(folder_store, "a-1", 5)
        unfinished, whole = list_checkpoints(folder_store, FOLDER)
        assert (unfinished.step, unfinished.finished, unfinished.bytes) == (10, False, 5)
        assert (whole.step, whole.finished) == (5, True)
        assert list(unfinished.sizes) == [f"{checkpoint_folder(FOLDER, 'a-1', 10)}/model.safetensors"]


def test_a_file_is_hashed_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    assert hash_file(tmp_path / "file") == entry("file", b"weights")
    with pytest.raises(MissingInputError, match="no such file"):
        hash_file(tmp_path / "other")


def test_a_store_without_conditional_writes_is_refused_unless_accepted(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_conditional_writes(folder_store, accept_risk=False)
    monkeypatch.setattr(FolderStore, "check_conditional_writes", lambda self: False)  # noqa: ARG005
    with pytest.raises(ConfigurationError, match="allowUnconditionalWrites"):
        require_conditional_writes(folder_store, accept_risk=False)
    require_conditional_writes(folder_store, accept_risk=True)


def test_the_store_of_a_chain_is_opened_from_its_resolved_form(tmp_path: Path) -> None:
    manifest = finished(open_store(ResolvedStore(uri=str(tmp_path))), "a-1")
    assert (tmp_path / FOLDER / manifest.weights).read_bytes() == b"weights"
