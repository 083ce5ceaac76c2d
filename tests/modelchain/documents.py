"""Chain documents for the tests: a valid one as JSON, with changes by path."""

from __future__ import annotations

import copy
from typing import Any

from modelchain.resolve import resolve
from modelchain.resolved import ResolvedChain
from modelchain.spec import ModelChain

Path = tuple[str | int, ...]


class _Removed:
    """Its text is the same in every process: it names tests."""

    def __repr__(self) -> str:
        return "REMOVED"


REMOVED = _Removed()

_BASE: dict[str, Any] = {
    "apiVersion": "modelchain.dev/v1alpha1",
    "kind": "ModelChain",
    "metadata": {"name": "family"},
    "spec": {
        "store": {"uri": "s3://models/chains"},
        "data": {
            "shards": ["s3://data/{000..003}.tar"],
            "samples": 100000,
            "captionKeys": ["txt", "long.txt"],
        },
        "evaluation": [
            {"name": "val", "type": "Retrieval", "data": {"shards": ["s3://data/val.tar"]}},
            {
                "name": "pets",
                "type": "ZeroShot",
                "data": {"shards": ["s3://data/pets.tar"]},
                "classes": ["cat", "dog"],
                "templates": ["a photo of a {}."],
            },
        ],
        "training": {"epochs": 4, "globalBatchSize": 256, "learningRate": 0.001},
        "distillation": {"weight": 0.98, "schedule": {"type": "Linear", "until": 0.5, "endWeight": 0.1}},
        "expansion": {"width": "Exact", "depth": "Identity"},
        "job": {"nodes": 1, "gpusPerNode": 2},
        "stages": [
            {"name": "tiny", "model": "ViT-T-16", "training": {"epochs": 8}},
            {"name": "small", "model": "ViT-S-16"},
            {
                "name": "base",
                "modelConfig": {
                    "embedDim": 512,
                    "vision": {"width": 768, "layers": 12},
                    "text": {"width": 512, "layers": 12, "heads": 8},
                },
            },
        ],
    },
}


def document(changes: dict[Path, Any] | None = None) -> dict[str, Any]:
    """A valid chain of three stages, with values set (or REMOVED) below `spec`."""
    value = copy.deepcopy(_BASE)
    for path, new in (changes or {}).items():
        part: Any = value["spec"]
        for step in path[:-1]:
            part = part.setdefault(step, {}) if isinstance(part, dict) else part[step]
        if new is REMOVED:
            del part[path[-1]]
        else:
            part[path[-1]] = new
    return value


def chain(changes: dict[Path, Any] | None = None) -> ModelChain:
    """The same as types."""
    return ModelChain.model_validate(document(changes))


def resolved(changes: dict[Path, Any] | None = None) -> ResolvedChain:
    """The same, resolved."""
    return resolve(chain(changes))


def digests(changes: dict[Path, Any] | None = None) -> list[str]:
    """The digests of its stages."""
    return [stage.digest for stage in resolved(changes).stages]
