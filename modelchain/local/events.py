"""What happens in a run, as values: the JSON lines of `modelchain run -o json`, and what the other displays
show.

Every event has `event` and `time` (RFC 3339) first. Numbers that are not known are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from modelchain.block import Block
from modelchain.spec import Finite
from modelchain.status import ChainStatus, ModelMeasured, StagePhase, StageStatus


class EventBlock(Block):
    """One event. Fields may be added in later releases."""

    model_config = ConfigDict(extra="ignore")

    time: str


class PlannedStage(Block):
    name: str
    model: str
    digest: str
    steps: int
    processes: int
    micro_batch_size: int | None


class RunStarted(EventBlock):
    """First line: what will be trained, where it goes, where the trainers' logs are."""

    event: Literal["run"] = "run"
    chain: str
    store: str
    logs: str
    stages: tuple[PlannedStage, ...]
    baselines: tuple[PlannedStage, ...] = ()  # models that are trained alone afterwards


class StageChanged(EventBlock):
    """A stage is in another phase, or in the same for another reason."""

    event: Literal["stage"] = "stage"
    stage: str
    phase: StagePhase
    reason: str
    message: str
    attempt: int
    failures: int


class ProgressMade(EventBlock):
    """A running stage has come further."""

    event: Literal["progress"] = "progress"
    stage: str
    attempt: int
    activity: str
    step: int
    steps: int
    samples_per_second: float | None = None
    eta_seconds: int | None = None
    loss: dict[str, Finite] = Field(default_factory=dict)
    metrics: dict[str, Finite] = Field(default_factory=dict)


class AttemptFailed(EventBlock):
    """An attempt has ended before its stage was complete. `tail` are the last lines of its log."""

    event: Literal["failure"] = "failure"
    stage: str
    attempt: int
    counted: bool
    exit_code: int | None
    reason: str
    message: str
    log: str
    tail: tuple[str, ...] = ()


class Note(EventBlock):
    """Something a person should know."""

    event: Literal["note"] = "note"
    message: str


class StageResult(Block):
    name: str
    phase: StagePhase
    step: int | None
    steps: int | None
    attempt: int
    metrics: dict[str, Finite]
    weights_uri: str | None


class SpeedupMeasured(Block):
    """Acceleration at equal quality: the models alone, until they were as good as the chain's, over the chain."""

    factor: float
    at_least: bool  # a model alone did not get there
    metric: str
    chain_macs: float
    models: tuple[ModelMeasured, ...]


class RunEnded(EventBlock):
    """Last line: how it ended, what every stage has reached, and what it cost against training alone."""

    event: Literal["result"] = "result"
    chain: str
    phase: str
    exit_code: int
    message: str
    stages: tuple[StageResult, ...]
    baselines: tuple[StageResult, ...] = ()  # models trained alone
    cost_ratio_planned: float  # the chain over its largest model alone
    speedup_planned: float  # the family, each alone, over the chain
    speedup_measured: SpeedupMeasured | None = None


Event: TypeAlias = Annotated[
    RunStarted | StageChanged | ProgressMade | AttemptFailed | Note | RunEnded, Field(discriminator="event")
]


def to_json(event: Event) -> str:
    """One line of JSON."""
    fields = event.model_dump(mode="json", by_alias=True, exclude_none=True)
    return _dumps({"event": fields.pop("event"), **fields})


def changes(before: ChainStatus | None, after: ChainStatus, time: str) -> Iterator[Event]:
    """What has changed from one status to the next, stage by stage."""
    for stage in after.all_stages:
        known = before.find_stage(stage.name) if before is not None else None
        if known is None or _place(known) != _place(stage):
            yield StageChanged(
                time=time,
                stage=stage.name,
                phase=stage.phase,
                reason=stage.reason,
                message=stage.message,
                attempt=stage.attempt,
                failures=stage.failures,
            )
        if (
            stage.phase is StagePhase.RUNNING
            and stage.activity
            and (known is None or _figures(known) != _figures(stage))
        ):
            yield ProgressMade(
                time=time,
                stage=stage.name,
                attempt=stage.attempt,
                activity=stage.activity,
                step=stage.step or 0,
                steps=stage.steps or 0,
                samples_per_second=stage.samples_per_second,
                eta_seconds=stage.eta_seconds,
                loss=stage.loss,
                metrics=stage.metrics,
            )


def _place(stage: StageStatus) -> tuple[object, ...]:
    reason = "" if stage.phase is StagePhase.RUNNING else stage.reason
    return (stage.phase, reason, stage.message, stage.attempt, stage.digest)


def _figures(stage: StageStatus) -> tuple[object, ...]:
    return (stage.attempt, stage.activity, stage.step, stage.loss, stage.metrics)


def _dumps(fields: dict[str, object]) -> str:
    import json

    return json.dumps(fields, allow_nan=False)
