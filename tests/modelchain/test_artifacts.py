"""What a store says of a stage is read only where a status can hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from modelchain.artifacts import MANIFEST, Failure, Lease, Manifest, Progress, TrainLine
from modelchain.commit import DamagedManifestError, read_manifest, verify_stage
from modelchain.errors import UserDataError
from modelchain.reconcile.observation import JobPhase, StageFacts
from modelchain.store.folder import FolderStore
from modelchain.times import from_rfc3339
from tests.modelchain.reconcile.chains import Play, chain, job, manifest, progress

ONE = (("tiny", None),)
TWO = (("tiny", None), ("small", "tiny"))
HUGE = 10**25
WRONG_TIMES = (
    "yesterday",
    "",
    "9" * 500,
    "2027-13-01T00:00:00Z",
    "2027-01-15 08:00:00Z",
    "2027-01-15T08:00:00",
)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name in ("steps", "samples") for value in (HUGE, 2**63, -1)),
        *({name: text} for name in ("startedAt", "completedAt") for text in WRONG_TIMES),
        *({"attempt": text} for text in ("../..", "", "x" * 2000, "a\x1b", "a/b")),
        {"macs": -1.0},
        {"macs": 1e40},
        {"computedMacs": -1.0},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_manifest_that_no_status_could_hold_is_damaged(
    changes: dict[str, Any], folder_store: FolderStore
) -> None:
    stage = chain(ONE).stages[0]
    written = json.loads(manifest(stage).model_dump_json(by_alias=True))
    folder_store.put(f"{stage.folder}/{MANIFEST}", json.dumps(written).encode())
    assert read_manifest(folder_store, stage.folder, stage.digest) is not None
    folder_store.put(f"{stage.folder}/{MANIFEST}", json.dumps({**written, **changes}).encode())
    with pytest.raises(DamagedManifestError):
        read_manifest(folder_store, stage.folder, stage.digest)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *(
            (Progress, {name: value})
            for name in ("step", "steps", "sequence", "checkpointStep")
            for value in (HUGE, -5)
        ),
        (Progress, {"updatedAt": "yesterday"}),
        (Progress, {"etaSeconds": math.nan}),
        (Failure, {"exitCode": 10**30}),
        (Failure, {"exitCode": -1}),
        (Failure, {"step": HUGE}),
        (Lease, {"durationSeconds": 10**400}),
        (Lease, {"durationSeconds": -1}),
        (TrainLine, {"macs": -1.0}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_no_status_could_hold_is_not_read(kind: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate_json(json.dumps({**WRITTEN[kind], **changes}))


@pytest.mark.parametrize("name", ["stage", "model", "chain"])
def test_a_manifest_moves_no_cursor_of_whoever_reads_what_is_wrong_with_it(
    name: str, folder_store: FolderStore
) -> None:
    stage = chain(ONE).stages[0]
    written = json.loads(manifest(stage).model_dump_json(by_alias=True))
    for wrong in ({"digest": "0" * 64}, {"files": [{"path": "gone", "bytes": 1, "sha256": "0" * 64}]}):
        forged = {**written, **wrong, name: "x\x1b[2J\r\nerror: of another\u202e"}
        folder_store.put(f"{stage.folder}/{MANIFEST}", json.dumps(forged).encode())
        with pytest.raises(UserDataError) as told:
            verify_stage(folder_store, stage.folder, stage.digest)
        assert str(told.value).isprintable()
    too_long = json.dumps({**written, name: "x" * 10**6}).encode()
    folder_store.put(f"{stage.folder}/{MANIFEST}", too_long)
    with pytest.raises(DamagedManifestError):
        read_manifest(folder_store, stage.folder, stage.digest)


def test_what_is_written_is_read() -> None:
    for kind, written in WRITTEN.items():
        assert kind.model_validate_json(json.dumps(written))


WRITTEN: dict[Any, dict[str, Any]] = {
    Progress: json.loads(progress(3).model_dump_json(by_alias=True)),
    Failure: {"exitCode": 65, "reason": "DataError", "message": "shard 7"},
    Lease: {
        "holder": "a-1-b",
        "chain": "default/family",
        "sequence": 1,
        "durationSeconds": 30,
        "host": "node",
        "process": "1/2/3",
        "renewedAt": "2027-01-15T08:00:00Z",
    },
    TrainLine: {
        "step": 1,
        "epoch": 0.5,
        "samples": 8,
        "macs": 1e9,
        "time": 1,
        "wallTime": 1,
        "learningRate": 1e-3,
        "loss": {"total": 1},
        "distillationWeight": 0,
        "gradientNorm": 1,
        "samplesPerSecond": 8,
        "dataWaitFraction": 0,
    },
}


@pytest.mark.parametrize(
    "figures",
    [
        {"eta_seconds": 1e300},
        {"eta_seconds": -1e300},
        {"samples_per_second": 5e-324, "eta_seconds": 10.0},
        {"samples_per_second": -1e300, "eta_seconds": 10.0},
        {"metrics": {"digits/top1": 1e300}},
        {"metrics": {"digits/top1": -1e300}},
        {"loss": {"total": 1e308, "x\x1b": 1.0, "k" * 5000: 1.0}},
        {"checkpoint_step": 2**63 - 1},
    ],
    ids=lambda figures: str(figures)[:40],
)
def test_figures_beyond_all_bounds_make_a_status_that_kubernetes_takes(figures: dict[str, Any]) -> None:
    play = Play(chain(TWO))
    play.more = {"macs": {"tiny": 1e9, "small": 1e9}}
    play.look()
    play.look(job(play.stage("tiny"), phase=JobPhase.RUNNING))
    play.look(
        job(play.stage("tiny"), phase=JobPhase.RUNNING),
        tiny=StageFacts(progress=progress(3, **figures), progress_attempt=1),
    )
    assert play["tiny"].step == 3
    assert play.status is not None
    assert list(unfit(json.loads(play.status.model_dump_json(by_alias=True)))) == []


def unfit(value: Any) -> Iterator[Any]:
    """What no JSON of Kubernetes holds: its integers have 64 bits, its numbers are finite, its text is printed."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from unfit(name)
            yield from unfit(item)
    elif isinstance(value, list):
        for item in value:
            yield from unfit(item)
    elif isinstance(value, str):
        if len(value) > 2048 or not value.isprintable():
            yield value
    elif (
        value is not None
        and not -(2**63) <= value < 2**63
        and not (isinstance(value, float) and math.isfinite(value))
    ):
        yield value


def test_a_time_that_another_has_put_into_a_status_does_not_end_the_pass() -> None:
    play = Play(chain(ONE))
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    assert play.status is not None
    written = json.loads(play.status.model_dump_json(by_alias=True))
    written["stages"][0]["completedAt"] = "yesterday"
    play.status = type(play.status).model_validate(written)
    play.look(job(play.stage("tiny")), tiny=StageFacts(present=True))
    assert play["tiny"].completed_at is None or from_rfc3339(play["tiny"].completed_at)


def test_a_manifest_is_a_manifest_whatever_the_zone_of_its_times() -> None:
    made = manifest(chain(ONE).stages[0])
    for time in (
        "2026-11-24T02:00:00.000000+00:00",
        "2026-11-24T02:00:00.123456789Z",
        "2026-11-24T02:00:00-07:00",
    ):
        assert Manifest.model_validate({**made.model_dump(), "completed_at": time}).completed_at == time
