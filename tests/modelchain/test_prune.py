"""Pruning takes what nothing needs, and never what somebody needs, trains, or wrote lately."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from modelchain.artifacts import (
    CHECKPOINT,
    CheckpointManifest,
    FileEntry,
    Lease,
    Manifest,
    chain_key,
    chain_lease_key,
    checkpoint_folder,
    stage_folder,
)
from modelchain.cli import main
from modelchain.commit import commit_stage, latest_checkpoint, verify_stage
from modelchain.errors import ExitCode, UserDataError
from modelchain.prune import PrunePlan, plan_prune, prune
from modelchain.spec import LearningRateSchedule, LearningRateScheduleType
from modelchain.status import ChainRecord, ChainStatus, RecordedStage, record_of
from modelchain.store import Store
from modelchain.store.folder import FolderStore
from tests.leases import held_lease
from tests.modelchain.documents import resolved
from tests.seaweedfs import SeaweedFS

LATER = time.time() + 10 * 86400
DAY = 86400.0
WINNER = "winner-1"


def digest_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def folder_of(name: str) -> str:
    return stage_folder(name, digest_of(name))


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def attempt(store: Store, name: str, token: str) -> None:
    """What an attempt leaves behind besides checkpoints."""
    place = f"{folder_of(name)}/attempts/{token}"
    for file in (
        "open_clip_model.safetensors",
        "progress.json",
        "metrics-0000000000.jsonl",
        "events.out.tfevents.1",
    ):
        store.put(f"{place}/{file}", b"weights")


def checkpoint(store: Store, name: str, token: str, step: int, *, finish: bool = True) -> str:
    place = checkpoint_folder(folder_of(name), token, step)
    store.put(f"{place}/model.safetensors", b"model")
    if finish:
        manifest = CheckpointManifest(
            digest=digest_of(name), step=step, world_size=1, files=(entry("model.safetensors", b"model"),)
        )
        store.put(f"{place}/{CHECKPOINT}", manifest.model_dump_json(by_alias=True).encode())
    return place


def begun(store: Store, name: str, *, schedule: LearningRateSchedule | None = None) -> None:
    stage = resolved().stages[0]
    training = stage.training.model_copy(
        update={"steps": 100, "schedule": schedule or LearningRateSchedule()}
    )
    stage = stage.model_copy(update={"digest": digest_of(name), "training": training})
    store.put(f"{folder_of(name)}/stage.json", stage.to_json().encode())


def complete(store: Store, name: str) -> Manifest:
    begun(store, name)
    attempt(store, name, WINNER)
    path = f"attempts/{WINNER}/open_clip_model.safetensors"
    manifest = Manifest(
        digest=digest_of(name),
        stage=name,
        model=name,
        chain="default/demo",
        attempt=WINNER,
        files=(entry(path, b"weights"),),
        metrics={},
        steps=1,
        samples=1,
        macs=1.0,
        started_at="2026-01-01T00:00:00Z",
        completed_at="2026-01-01T00:00:00Z",
        train_seconds=1.0,
        versions={},
    )
    return commit_stage(store, folder_of(name), manifest)


def chain(store: Store, *names: str, chain_name: str = "demo") -> None:
    """Record a chain, as the runner does."""
    stages = tuple(
        RecordedStage(name=name, index=index, model=name, digest=digest_of(name), folder=folder_of(name))
        for index, name in enumerate(names)
    )
    record = ChainRecord(
        chain=f"default/{chain_name}",
        uid="u",
        updated_at="2026-01-01T00:00:00Z",
        stages=stages,
        status=ChainStatus(),
    )
    store.put(
        chain_key("default", chain_name), record.model_dump_json(by_alias=True, exclude_none=True).encode()
    )
    store.put(chain_lease_key("default", chain_name), b"{}")


def plan(store: Store, *, now: float = LATER, without_chains: bool = False) -> PrunePlan:
    return plan_prune(store, now=now, min_age_seconds=DAY, without_chains=without_chains)


def places(found: PrunePlan) -> list[str]:
    return sorted(removal.place for removal in found.removals)


def keys(store: Store) -> set[str]:
    return {info.key for info in store.list("")}


def test_a_stage_that_no_chain_refers_to_goes_whole_and_its_neighbours_stay(any_store: Store) -> None:
    complete(any_store, "needed")
    chain(any_store, "needed")
    before = keys(any_store)
    complete(any_store, "forgotten")
    checkpoint(any_store, "forgotten", "winner-1", 5)
    found = plan(any_store)
    assert places(found) == [folder_of("forgotten")]
    assert found.bytes == sum(info.size for info in any_store.list(folder_of("forgotten")))
    prune(any_store, found, min_age_seconds=DAY)
    assert keys(any_store) == before
    assert verify_stage(any_store, folder_of("needed"), digest_of("needed")) is not None


def test_a_complete_stage_keeps_its_files_and_its_history(any_store: Store) -> None:
    manifest = complete(any_store, "stage")
    attempt(any_store, "stage", "loser-1")
    checkpoint(any_store, "stage", "loser-1", 5)
    checkpoint(any_store, "stage", "winner-1", 9)
    chain(any_store, "stage")
    found = plan(any_store)
    base = f"{folder_of('stage')}/attempts"
    assert places(found) == [f"{base}/loser-1", f"{base}/winner-1/checkpoints"]
    prune(any_store, found, min_age_seconds=DAY)
    assert verify_stage(any_store, folder_of("stage"), digest_of("stage")) == manifest
    left = {key.removeprefix(f"{base}/") for key in keys(any_store) if key.startswith(base)}
    assert left == {
        *(f"winner-1/{name}" for name in ("open_clip_model.safetensors", "progress.json")),
        *(f"{token}/metrics-0000000000.jsonl" for token in ("winner-1", "loser-1")),
        *(f"{token}/events.out.tfevents.1" for token in ("winner-1", "loser-1")),
    }
    assert places(plan(any_store)) == []


def test_an_unfinished_stage_keeps_its_trunk(folder_store: FolderStore) -> None:
    begun(
        folder_store,
        "stage",
        schedule=LearningRateSchedule(type=LearningRateScheduleType.WARMUP_STABLE_DECAY, decay_fraction=0.8),
    )
    chain(folder_store, "stage")
    for token, step in (("a-1", 10), ("a-1", 20), ("a-2", 30), ("a-2", 40)):
        checkpoint(folder_store, "stage", token, step)
    assert places(plan(folder_store)) == [checkpoint_folder(folder_of("stage"), "a-1", 10)]


def test_an_unfinished_stage_keeps_the_newest_whole_checkpoints(folder_store: FolderStore) -> None:
    begun(folder_store, "stage")
    chain(folder_store, "stage")
    for token, step in (("a-1", 10), ("a-1", 20), ("a-2", 30)):
        checkpoint(folder_store, "stage", token, step)
    damaged = checkpoint(folder_store, "stage", "a-2", 40)
    folder_store.put(f"{damaged}/model.safetensors", b"mod")
    unfinished = checkpoint(folder_store, "stage", "a-2", 50, finish=False)
    found = plan(folder_store)
    assert places(found) == sorted([checkpoint_folder(folder_of("stage"), "a-1", 10), damaged, unfinished])
    prune(folder_store, found, min_age_seconds=DAY)
    latest = latest_checkpoint(folder_store, folder_of("stage"), digest_of("stage"))
    assert latest is not None
    assert latest[1].step == 30


def test_nothing_young_goes(folder_store: FolderStore) -> None:
    complete(folder_store, "needed")
    attempt(folder_store, "needed", "loser-1")
    complete(folder_store, "forgotten")
    chain(folder_store, "needed")
    found = plan(folder_store, now=time.time())
    assert found.removals == ()
    assert [(kept.place, kept.reason) for kept in found.kept] == [
        (folder_of("forgotten"), "no chain refers to it, but it is too young")
    ]


def test_one_young_file_keeps_a_whole_attempt(folder_store: FolderStore) -> None:
    complete(folder_store, "stage")
    attempt(folder_store, "stage", "zombie-1")
    chain(folder_store, "stage")
    old = time.time() - 5 * DAY
    for path in folder_store.root.rglob("*"):
        os.utime(path, (old, old))
    folder_store.put(f"{folder_of('stage')}/attempts/zombie-1/progress.json", b"{}")
    assert plan(folder_store, now=time.time()).removals == ()
    assert places(plan(folder_store)) == [f"{folder_of('stage')}/attempts/zombie-1"]


def test_a_stage_that_somebody_trains_is_not_touched(any_store: Store) -> None:
    complete(any_store, "other")
    chain(any_store, "other")
    attempt(any_store, "forgotten", "a-1")
    before = keys(any_store)
    key = f"{folder_of('forgotten')}/lease.json"
    with held_lease(any_store, key, holder="a-1", chain="default/x"):
        pruned = prune(any_store, plan(any_store), min_age_seconds=DAY)
        assert pruned.removed == ()
        assert "held by a-1 of chain default/x" in pruned.kept[0].reason
        assert before <= keys(any_store)


def test_a_stage_whose_trainer_died_elsewhere_goes_after_its_lease_ran_out(folder_store: FolderStore) -> None:
    complete(folder_store, "other")
    chain(folder_store, "other")
    attempt(folder_store, "forgotten", "a-1")
    lease = Lease(
        holder="a-1",
        chain="default/x",
        sequence=9,
        duration_seconds=1,
        host="elsewhere",
        process="-/1/-",
        renewed_at="2026-01-01T00:00:00Z",
    )
    folder_store.put(f"{folder_of('forgotten')}/lease.json", lease.model_dump_json(by_alias=True).encode())
    prune(folder_store, plan(folder_store), min_age_seconds=DAY)
    assert not any(key.startswith(folder_of("forgotten")) for key in keys(folder_store))


def test_what_changed_since_the_plan_is_kept(folder_store: FolderStore) -> None:
    chain(folder_store, "other")
    for name in ("claimed", "grown", "forgotten"):
        attempt(folder_store, name, "a-1")
    found = plan(folder_store)
    assert len(found.removals) == 3
    chain(folder_store, "claimed", chain_name="new")
    attempt(folder_store, "grown", "a-2")
    pruned = prune(folder_store, found, min_age_seconds=DAY)
    assert [removal.place for removal in pruned.removed] == [folder_of("forgotten")]
    assert {kept.place for kept in pruned.kept} == {folder_of("claimed"), folder_of("grown")}
    assert {key.split("/")[1] for key in keys(folder_store) if key.startswith("stages/")} == {
        folder_of(name).removeprefix("stages/") for name in ("claimed", "grown")
    }


def test_weights_that_a_chain_starts_from_are_needed(folder_store: FolderStore) -> None:
    complete(folder_store, "origin")
    uri = folder_store.uri_of(f"{folder_of('origin')}/attempts/winner-1")
    folder_store.put("chains/default/demo.json", json.dumps({"spec": {"fromWeights": {"uri": uri}}}).encode())
    assert places(plan(folder_store)) == []


def test_models_that_a_chain_trains_alone_are_needed(folder_store: FolderStore) -> None:
    """With their metrics, which the comparison is made from."""
    found = resolved({("baseline",): {"train": ["small"], "epochs": 9}})
    (alone,) = found.baselines
    for key in (f"{alone.folder}/attempts/w-1/metrics-0000000000.jsonl", f"{alone.folder}/stage.json"):
        folder_store.put(key, b"{}")
    folder_store.put(
        chain_key("default", "family"),
        record_of(found, ChainStatus(), 0).model_dump_json(by_alias=True).encode(),
    )
    assert places(plan(folder_store)) == []
    folder_store.put(
        chain_key("default", "family"),
        record_of(resolved(), ChainStatus(), 0).model_dump_json(by_alias=True).encode(),
    )
    assert places(plan(folder_store)) == [alone.folder]


def test_a_store_that_knows_no_chain_keeps_everything_unless_told(folder_store: FolderStore) -> None:
    complete(folder_store, "stage")
    found = plan(folder_store)
    assert found.removals == ()
    assert "knows no chain at all" in found.kept[0].reason
    assert places(plan(folder_store, without_chains=True)) == [folder_of("stage")]


def test_a_damaged_chain_file_stops_everything(folder_store: FolderStore) -> None:
    complete(folder_store, "stage")
    folder_store.put(chain_key("default", "demo"), b"{ half")
    with pytest.raises(UserDataError, match=r"chains/default/demo\.json: damaged"):
        plan(folder_store)


def test_a_stage_with_a_doubtful_manifest_is_left_alone(folder_store: FolderStore) -> None:
    manifest = complete(folder_store, "stage")
    attempt(folder_store, "stage", "loser-1")
    chain(folder_store, "stage")
    folder_store.delete([f"{folder_of('stage')}/{manifest.weights}"])
    found = plan(folder_store)
    assert found.removals == ()
    assert found.kept[0].reason == "its manifest does not verify, so nothing is certain here"


def test_half_a_deletion_never_looks_complete(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(folder_store, "forgotten")
    chain(folder_store, "other")
    deleted: list[str] = []
    delete = FolderStore.delete

    def stop_after_one(self: FolderStore, names: list[str]) -> None:
        for name in names:
            if deleted:
                raise KeyboardInterrupt
            delete(self, [name])
            deleted.append(name)

    monkeypatch.setattr(FolderStore, "delete", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        prune(folder_store, plan(folder_store), min_age_seconds=DAY)
    assert deleted == [f"{folder_of('forgotten')}/manifest.json"]
    assert verify_stage(folder_store, folder_of("forgotten"), digest_of("forgotten")) is None


class TestTheCommand:
    def test_it_lists_and_deletes_nothing_until_told(
        self, folder_store: FolderStore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        complete(folder_store, "needed")
        complete(folder_store, "forgotten")
        chain(folder_store, "needed")
        before = keys(folder_store)
        assert main(["prune", str(folder_store.root), "--min-age", "0"]) == ExitCode.OK
        shown = capsys.readouterr().out
        assert f"{folder_of('forgotten')}: no chain refers to this stage" in shown
        assert "Nothing was deleted; --yes deletes it." in shown
        assert folder_of("needed") not in shown
        assert keys(folder_store) == before
        assert main(["prune", str(folder_store.root), "--min-age", "0", "--yes"]) == ExitCode.OK
        assert "Deleted " in capsys.readouterr().out
        assert not any(key.startswith(folder_of("forgotten")) for key in keys(folder_store))
        assert main(["prune", str(folder_store.root), "--min-age", "0"]) == ExitCode.OK
        assert "may go; stages in it: 1." in capsys.readouterr().out

    def test_it_works_on_s3_and_speaks_json(
        self, seaweedfs: SeaweedFS, s3_store: Store, capsys: pytest.CaptureFixture[str]
    ) -> None:
        chain(s3_store, "other")
        attempt(s3_store, "forgotten", "a-1")
        command = ["prune", s3_store.uri, "--endpoint-url", seaweedfs.endpoint_url, "--yes", "-o", "json"]
        assert main([*command, "--min-age", "1h"]) == ExitCode.OK
        assert json.loads(capsys.readouterr().out)["removals"] == []
        assert main([*command, "--min-age", "0s"]) == ExitCode.OK
        result = json.loads(capsys.readouterr().out)
        assert result["deleted"] is True
        assert [(one["place"], one["objects"], one["bytes"]) for one in result["removals"]] == [
            (folder_of("forgotten"), 4, 28)
        ]
        assert not any(key.startswith("stages/") for key in keys(s3_store))

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (["--min-age", "soon"], ExitCode.USAGE, "'soon' is no age"),
            (["--yes", "--dry-run"], ExitCode.USAGE, "exclude each other"),
        ],
    )
    def test_wrong_usage_is_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
    ) -> None:
        assert main(["prune", str(tmp_path), *arguments]) == code
        assert says in capsys.readouterr().err

    def test_a_missing_bucket_ends_in_one_line(
        self, seaweedfs: SeaweedFS, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["prune", "s3://no-such-bucket/x", "--endpoint-url", seaweedfs.endpoint_url]
        assert main(command) == ExitCode.NO_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: s3://no-such-bucket/x")
        assert error.count("\n") == 1

    def test_stale_uploads_go_and_young_ones_stay(
        self, folder_store: FolderStore, capsys: pytest.CaptureFixture[str]
    ) -> None:
        chain(folder_store, "other")
        stale, young = (folder_store.root / f".partial-{number:016x}" for number in range(2))
        stale.write_bytes(b"x")
        young.write_bytes(b"x")
        os.utime(stale, (1.0, 1.0))
        assert main(["prune", str(folder_store.root), "--min-age", "0", "--yes"]) == ExitCode.OK
        assert "1 unfinished uploads" in capsys.readouterr().out
        assert (stale.exists(), young.exists()) == (False, True)
