"""The smallest stage that can be resolved, as JSON."""

from __future__ import annotations

from typing import Any


def smallest_stage(**changes: Any) -> dict[str, Any]:
    """Two steps of a model of one layer, with `changes`."""
    stage: dict[str, Any] = {
        "chain": {"namespace": "default", "name": "digits", "uid": "0123-abcd"},
        "name": "tiny",
        "index": 0,
        "digest": "0" * 64,
        "folder": "stages/tiny-0000000000000000",
        "model": "tiny",
        "modelConfig": {
            "embedDim": 16,
            "vision": {"imageSize": 8, "patchSize": 4, "width": 16, "layers": 1, "headWidth": 16},
            "text": {"contextLength": 8, "width": 16, "layers": 1, "heads": 1},
        },
        "data": {"shards": ["data/0.tar"], "samples": 8},
        "training": {
            "epochs": 1,
            "globalBatchSize": 4,
            "warmupSteps": 0,
            "checkpointEverySteps": 1,
            "stepsPerEpoch": 2,
            "steps": 2,
        },
    }
    return changed(stage, changes)


def changed(stage: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The stage with `changes`: those of a block change its fields, any other value takes the old one's place."""
    blocks = {
        key: {**stage[key], **change} if isinstance(stage.get(key), dict) else change
        for key, change in changes.items()
    }
    return {**stage, **blocks}
