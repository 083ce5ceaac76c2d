"""Kubernetes Events of a chain, from the difference of two statuses; `kubectl describe modelchain` shows them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from modelchain.reconcile.baseline import FINAL_REASONS, MEASURED
from modelchain.reconcile.observation import StoreProblem
from modelchain.status import (
    ChainPhase,
    ChainStatus,
    ConditionType,
    StagePhase,
    StageReason,
    StageStatus,
    cut,
)
from modelchain.times import rfc3339
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.kinds import CHAIN

COMPONENT = "modelchain-operator"
NORMAL, WARNING = "Normal", "Warning"
MAX_NOTE = 1000  # the API allows 1024
_NORMAL_ENDS = frozenset({StageReason.SUSPENDED, StageReason.SUPERSEDED})


@dataclass(frozen=True)
class Note:
    """What one Event says."""

    type: str  # Normal or Warning
    reason: str
    message: str
    once: bool = False  # one Event for each version of the spec, whatever its words


def notes(before: ChainStatus | None, after: ChainStatus) -> tuple[Note, ...]:
    """What has happened between two statuses of a chain, in the order in which it is reported."""
    return (
        *_refusal(before, after),
        *_stages(before, after),
        *_comparison(before, after),
        *_warnings(before, after),
        *_end(before, after),
    )


def event_of(chain: Object, note: Note, *, time: float, instance: str) -> Object:
    """The Event of a note about a chain.

    Its name follows from the chain's state and the note, so that posting it twice (after a crash, by a second operator)
    makes one Event.
    """
    metadata = chain["metadata"]
    said = (str(metadata.get("generation")),) if note.once else (metadata["resourceVersion"], note.message)
    what = "\n".join((metadata["uid"], *said, note.reason))
    name = f"{metadata['name'][:200]}.{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    now = rfc3339(time)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": metadata["namespace"], "name": name},
        "involvedObject": {
            "apiVersion": CHAIN.api_version,
            "kind": CHAIN.kind,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": note.type,
        "reason": note.reason,
        "message": cut(note.message, MAX_NOTE),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _refusal(before: ChainStatus | None, after: ChainStatus) -> Iterator[Note]:
    condition = after.condition(ConditionType.ACCEPTED)
    if condition is None:
        return
    known = before.condition(ConditionType.ACCEPTED) if before is not None else None
    if condition.status == "False":
        if known is None or (known.status, known.message) != (condition.status, condition.message):
            yield Note(WARNING, "Refused", condition.message)
    elif known is None or known.status != "True":
        names = ", ".join(stage.name for stage in after.stages)
        alone = ", ".join(stage.name for stage in after.baselines)
        then = f"; then, to compare, {alone}" if alone else ""
        yield Note(NORMAL, "Accepted", f"the chain is valid: stages {names}{then}")


def _stages(before: ChainStatus | None, after: ChainStatus) -> Iterator[Note]:
    for stage in after.all_stages:
        known = before.find_stage(stage.name) if before is not None else None
        yield from _stage(known or StageStatus(name=stage.name), stage)


def _stage(before: StageStatus, stage: StageStatus) -> Iterator[Note]:
    name = f"stage {stage.name}"
    ended = stage.last_ended
    if ended is not None and ended != before.last_ended:
        kind = NORMAL if ended.reason in _NORMAL_ENDS else WARNING
        code = f" (exit code {ended.exit_code})" if ended.exit_code is not None else ""
        counted = "" if ended.counted or kind == NORMAL else "; this does not count as a failure"
        text = f"{name}: attempt {ended.attempt} ended: {ended.reason}{code}: {ended.message}{counted}"
        yield Note(kind, "AttemptEnded", text)
    if stage.job is not None and (stage.job, stage.attempt) != (before.job, before.attempt):
        yield Note(NORMAL, "JobCreated", f"{name}: attempt {stage.attempt} is job {stage.job}")
    if stage.phase is before.phase and stage.reason == before.reason:
        return
    if stage.phase is StagePhase.RUNNING and stage.reason == StageReason.RUNNING:
        yield Note(NORMAL, "StageRunning", f"{name} is training, attempt {stage.attempt}")
    elif stage.phase is StagePhase.COMPLETE and not before.finished:
        figures = "".join(f", {metric} {value:.4g}" for metric, value in sorted(stage.metrics.items())[:4])
        yield Note(NORMAL, "StageComplete", f"{name} is complete after {stage.steps} steps{figures}")
    elif stage.phase is StagePhase.CACHED and not before.finished:
        yield Note(NORMAL, "StageCached", f"{name} is not trained: {stage.message}")
    elif stage.phase is StagePhase.FAILED:
        yield Note(WARNING, "StageFailed", f"{name}: {stage.message}")
    elif stage.phase is StagePhase.QUEUED:
        yield Note(NORMAL, "StageQueued", f"{name}: {stage.message}")
    elif stage.phase is StagePhase.WAITING:
        yield Note(NORMAL, "StageWaiting", f"{name}: {stage.message}")


def _warnings(before: ChainStatus | None, after: ChainStatus) -> Iterator[Note]:
    for kind in (ConditionType.UNRESPONSIVE, ConditionType.ARTIFACTS_MISSING):
        condition = after.condition(kind)
        if (
            condition is not None
            and after.is_true(kind)
            and not (before is not None and before.is_true(kind))
        ):
            yield Note(WARNING, kind.value, condition.message)
    progressing = after.condition(ConditionType.PROGRESSING)
    known = before.condition(ConditionType.PROGRESSING) if before is not None else None
    if (
        progressing is not None
        and progressing.reason
        in (
            StageReason.BACKEND_UNAVAILABLE,
            StageReason.DELETION_STUCK,
            StageReason.NODE_UNREACHABLE,
            StoreProblem.FORBIDDEN,
            StoreProblem.MISCONFIGURED,
            StoreProblem.UNREADABLE,
            StoreProblem.DAMAGED,
        )
        and (known is None or known.reason != progressing.reason)
    ):
        yield Note(WARNING, progressing.reason, progressing.message)


def _comparison(before: ChainStatus | None, after: ChainStatus) -> Iterator[Note]:
    """What models trained alone have shown, or why they show nothing."""
    condition = after.condition(ConditionType.BASELINE_COMPLETE)
    known = before.condition(ConditionType.BASELINE_COMPLETE) if before is not None else None
    if (
        condition is None
        or condition.reason not in FINAL_REASONS
        or (known and known.reason == condition.reason)
    ):
        return
    kind = NORMAL if condition.reason == MEASURED else WARNING
    yield Note(kind, f"Baseline{condition.reason}", condition.message)


def _end(before: ChainStatus | None, after: ChainStatus) -> Iterator[Note]:
    known = before.phase if before is not None else None
    if after.phase is known:
        return
    if after.phase is ChainPhase.COMPLETE:
        yield Note(NORMAL, "Complete", after.message)
    elif after.phase is ChainPhase.FAILED:
        yield Note(WARNING, "Failed", after.message)
    elif after.phase is ChainPhase.SUSPENDED:
        yield Note(NORMAL, "Suspended", "no stage runs; unset spec.suspend to go on")
    elif known is ChainPhase.SUSPENDED:
        yield Note(NORMAL, "Resumed", "the chain goes on")
