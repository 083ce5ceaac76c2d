"""The digest of a stage: sha256 over a canonical form of all that decides its weights, and of nothing else.

The store is addressed by it, so it must never change for a stage that means the same: neither with a new
release, nor with the way a value is written (1 or 1.0, a default written out or left out, shards as a range
or one by one). So the canonical form has a version, and the tables below are frozen with it. A new field that
decides weights is added with the value that reproduces what was trained before it existed; then it is left
out of the form, and old digests stand. Raising DIGEST_VERSION trains every stage of every chain again.

Where a stage runs (job, nodes, micro-batches), what only watches it (evaluation, logs, checkpoints) and where
its data is served from (endpoint) is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from modelchain.block import memoised
from modelchain.digest_form import REQUIRED, Table, deciding
from modelchain.families import AnyConfig, family_of
from modelchain.resolved import ResolvedData, ResolvedDistillation, ResolvedExpansion, ResolvedTraining
from modelchain.shards import count, expand_all
from modelchain.spec import WeightsSpec

DIGEST_VERSION = 2
FORMS = 64  # kept of each kind of block


_TRAINING: Final[Table] = {
    "epochs": REQUIRED,
    "globalBatchSize": 1024,
    "learningRate": 1e-3,
    "minimumLearningRate": 3e-6,
    "warmupSteps": REQUIRED,
    "weightDecay": 0.1,
    "beta1": 0.9,
    "beta2": 0.98,
    "epsilon": 1e-6,
    "gradientClipNorm": None,
    "precision": "Fp32",
    "seed": 0,
    "emaDecay": None,
    "loss": "Contrastive",
    "patchDropout": 0.0,
    "lockedTower": None,
}
_LEARNING_RATE_SCHEDULE: Final[Table] = {"type": "Cosine", "decayFraction": REQUIRED}
_DATA: Final[Table] = {  # shards and sources are added apart
    "samples": REQUIRED,
    "captionKeys": ["txt"],
    "imageKeys": None,
    "classKey": "cls",
    "tokens": None,
    "textKey": None,
    "blockMebibytes": 4,
    "windowBlocks": 128,
    "randomCropScale": [0.9, 1.0],
    "draftDecoding": True,
}
_SOURCE: Final[Table] = {"samples": REQUIRED, "repeat": 1.0}
_TOKENIZER: Final[Table] = {"sha256": REQUIRED, "endOfText": "<|endoftext|>"}
_DISTILLATION: Final[Table] = {"weight": 1.0, "logitsWeight": 1.0, "surpassWindowSteps": None}
_DISTILLATION_SCHEDULE: Final[Table] = {"type": "Constant", "until": 1.0, "endWeight": 0.0}
_EXPANSION: Final[Table] = {
    "width": "Exact",
    "depth": "Identity",
    "weights": "Published",
    "optimizerState": "Reset",
}
_EXPANSION_OF_WEIGHTS: Final[Table] = {
    "width": "Exact",
    "depth": "Identity",
}  # there is no trunk beside them


def stage_digest(
    *,
    task: str,
    model: AnyConfig,
    data: ResolvedData,
    training: ResolvedTraining,
    distillation: ResolvedDistillation,
    expansion: ResolvedExpansion,
    predecessor: str | None = None,
    teacher: str | None = None,
    from_weights: WeightsSpec | None = None,
) -> str:
    """The digest of a stage, 64 hex digits. `predecessor` and `teacher` are the digests of those stages.

    Raises ShardPatternError for a pattern without shards.
    """
    form = canonical_form(
        task=task,
        model=model,
        data=data,
        training=training,
        distillation=distillation,
        expansion=expansion,
        predecessor=predecessor,
        teacher=teacher,
        from_weights=from_weights,
    )
    return hashlib.sha256(form).hexdigest()


def canonical_form(
    *,
    task: str,
    model: AnyConfig,
    data: ResolvedData,
    training: ResolvedTraining,
    distillation: ResolvedDistillation,
    expansion: ResolvedExpansion,
    predecessor: str | None,
    teacher: str | None,
    from_weights: WeightsSpec | None,
) -> bytes:
    """What `stage_digest` hashes: JSON with sorted keys, without spaces, in UTF-8."""
    form: dict[str, object] = {
        "digestVersion": DIGEST_VERSION,
        "task": task,
        "model": _model_form(model),
        "data": _data_form(data),
        "training": _training_form(training),
    }
    if from_weights is not None:
        form["fromWeights"] = from_weights.sha256
        form["expansion"] = deciding(expansion, _EXPANSION_OF_WEIGHTS)
    if predecessor is not None:
        form["predecessor"] = predecessor
        form["expansion"] = _expansion_form(expansion)
    if teacher is not None:  # nothing to learn from otherwise
        form["distillation"] = _distillation_form(distillation)
        if teacher != predecessor:
            form["teacher"] = teacher
    return json.dumps(
        form, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


# The stages of a chain share most of their blocks, and so do the chains of an operator.


@memoised(FORMS)
def _model_form(model: AnyConfig) -> dict[str, object]:
    return family_of(model).digest_form(model)


@memoised(FORMS)
def _data_form(data: ResolvedData) -> dict[str, object]:
    return deciding(data, _DATA) | {"shards": _shards_digest(data.shards)} | _sources(data) | _tokenizer(data)


@memoised(FORMS)
def _training_form(training: ResolvedTraining) -> dict[str, object]:
    schedule = deciding(training.schedule, _LEARNING_RATE_SCHEDULE)
    return deciding(training, _TRAINING) | {"schedule": schedule}


@memoised(FORMS)
def _expansion_form(expansion: ResolvedExpansion) -> dict[str, object]:
    return deciding(expansion, _EXPANSION)


@memoised(FORMS)
def _distillation_form(distillation: ResolvedDistillation) -> dict[str, object]:
    schedule = deciding(distillation.schedule, _DISTILLATION_SCHEDULE)
    return deciding(distillation, _DISTILLATION) | {"schedule": schedule}


def _tokenizer(data: ResolvedData) -> dict[str, object]:
    """By its content, wherever it lies."""
    if data.tokenizer is None:
        return {}
    return {"tokenizer": deciding(data.tokenizer, _TOKENIZER)}


def _sources(data: ResolvedData) -> dict[str, object]:
    """Which shards are repeated how often. Sources that all are seen once are one, and read as such."""
    if all(source.repeat == 1 for source in data.sources):
        return {}
    forms: list[dict[str, object]] = []
    first = 0
    for source in data.sources:
        patterns = data.shards[first : first + source.patterns]
        first += source.patterns
        forms.append({"shards": sum(map(count, patterns))} | deciding(source, _SOURCE))
    return {"sources": forms}


def _shards_digest(patterns: tuple[str, ...]) -> str:
    """Of the shards that the patterns stand for, in order: there may be hundreds of thousands."""
    lines = hashlib.sha256()
    for shard in expand_all(patterns):
        lines.update(shard.removeprefix("file://").encode() + b"\n")
    return lines.hexdigest()
