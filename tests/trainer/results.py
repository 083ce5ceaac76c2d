"""What a stage came to, for comparisons of two ways to train it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelchain.artifacts import Manifest
from modelchain.commit import verify_stage
from modelchain.resolved import ResolvedStage
from modelchain.store.folder import FolderStore

CLOCKS = {"time", "wallTime", "samplesPerSecond", "dataWaitFraction"}

Lines = list[dict[str, Any]]


def manifest_of(stage: ResolvedStage) -> Manifest | None:
    """Its manifest; None where it is not complete."""
    return verify_stage(FolderStore(Path(stage.store.uri)), stage.folder, stage.digest)


def metrics_of(stage: ResolvedStage) -> Lines:
    """All metrics of a complete stage but for clocks."""
    manifest = manifest_of(stage)
    assert manifest is not None
    folder = Path(stage.store.uri) / stage.folder / "attempts" / manifest.attempt
    files = sorted(folder.glob("metrics-*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def assert_alike(one: Lines, other: Lines) -> None:
    """The same steps, with the same figures to rounding."""
    for mine, theirs in zip(one, other, strict=True):
        assert mine["step"] == theirs["step"]
        if mine["kind"] == "train":
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4, abs=1e-6)
            assert theirs["gradientNorm"] == pytest.approx(mine["gradientNorm"], rel=1e-3)
