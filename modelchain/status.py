"""The status of a `ModelChain`: what `kubectl get modelchains` shows and what the next look starts from.

Written by the operator into the resource and by the local runner into the store
(`chains/<namespace>/<name>.json`). Bounded in size: stages and metrics are counted, texts are cut. Two
equal statuses mean that nothing has to be written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from modelchain import status_salvage
from modelchain.acceleration import Acceleration, Reached, acceleration
from modelchain.block import Block
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.spec import MAX_BASELINES, MAX_STAGES, Finite
from modelchain.text import one_line
from modelchain.times import Rfc3339, rfc3339

WHOLE = {
    "whole": True
}  # as the context of reading: a status that this version does not understand is an error
MAX_MESSAGE = 1024
MAX_CONDITION_MESSAGE = 8192  # a refused chain names everything that is wrong with it; the API allows 32768
MAX_REASON = 64
MAX_FORMER_STAGES = 64
MAX_METRICS = 48
MAX_METRIC_NAME = 128

Text = Annotated[str, Field(max_length=MAX_MESSAGE)]
Reason = Annotated[str, Field(max_length=MAX_REASON)]
Time = Annotated[Rfc3339, Field(max_length=40, json_schema_extra={"format": "date-time"})]
Numbers = Annotated[dict[str, Finite], Field(max_length=MAX_METRICS)]


class StatusBlock(Block):
    """A part of the status. Unknown fields are carried along: a newer release may have written them."""

    model_config = ConfigDict(extra="allow")


class ChainPhase(StrEnum):
    REFUSED = "Refused"
    PENDING = "Pending"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class StagePhase(StrEnum):
    PENDING = "Pending"
    WAITING = "Waiting"
    QUEUED = "Queued"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUSPENDED = "Suspended"
    CACHED = "Cached"
    COMPLETE = "Complete"
    FAILED = "Failed"


class StageReason(StrEnum):
    """Why a stage is where it is, or why an attempt ended, as `decide` puts it.

    Reasons of trainers, of Kubernetes and of Kueue, and those of StoreProblem, come beside these.
    """

    ARTIFACTS_MISSING = "ArtifactsMissing"
    BACK_OFF = "BackOff"
    BACKEND_UNAVAILABLE = "BackendUnavailable"
    CACHED = "Cached"
    CHAIN_INCOMPLETE = "ChainIncomplete"
    COMMITTING = "Committing"
    COMPLETE = "Complete"
    DELETION_STUCK = "DeletionStuck"
    DISRUPTED = "Disrupted"
    DISRUPTIONS_EXHAUSTED = "DisruptionsExhausted"
    ENDING = "Ending"
    JOB_PENDING = "JobPending"
    JOB_VANISHED = "JobVanished"
    LEASE_HELD = "LeaseHeld"
    MANIFEST_MISSING = "ManifestMissing"
    NAMESPACE_LIMIT = "NamespaceLimit"
    NODE_UNREACHABLE = "NodeUnreachable"
    NOT_OBSERVED = "NotObserved"
    PARALLEL_LIMIT = "ParallelLimit"
    PREDECESSOR_ENDING = "PredecessorEnding"
    PREDECESSOR_FAILED = "PredecessorFailed"
    PREDECESSOR_INCOMPLETE = "PredecessorIncomplete"
    QUEUED = "Queued"
    REMOVING_JOB = "RemovingJob"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    RUNNING = "Running"
    SPEC_REFUSED = "SpecRefused"
    STAGE_COMPLETE = "StageComplete"
    STALLED = "Stalled"
    STATUS_REFUSED = "StatusRefused"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    STARTING = "Starting"
    STOPPING = "Stopping"
    SUPERSEDED = "Superseded"
    SUSPENDED = "Suspended"
    TIMED_OUT = "TimedOut"
    TRAINER_FAILED = "TrainerFailed"
    UNSCHEDULABLE = "Unschedulable"


class ConditionType(StrEnum):
    READY = "Ready"  # what kstatus (and with it Flux) and `kubectl wait` look at
    STALLED = "Stalled"  # as kstatus means it: for good, until somebody acts
    ACCEPTED = "Accepted"
    PROGRESSING = "Progressing"
    COMPLETE = "Complete"
    FAILED = "Failed"
    UNRESPONSIVE = "Unresponsive"  # for a while: an attempt hung, and the next has shown no progress yet
    ARTIFACTS_MISSING = "ArtifactsMissing"
    DISRUPTED = "Disrupted"
    BASELINE_COMPLETE = "BaselineComplete"  # only of a chain that trains models alone


class Condition(StatusBlock):
    """As metav1.Condition: `last_transition_time` changes only when `status` does."""

    type: Annotated[
        str,
        Field(
            pattern="^[A-Z][A-Za-z]*$",
            max_length=MAX_REASON,
            description="What is said; those of this version are listed on this page.",
        ),
    ]
    status: Annotated[str, Field(pattern="^(True|False|Unknown)$", description="True, False or Unknown.")]
    reason: Annotated[
        Reason,
        Field(
            min_length=1,
            pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            description="Why, in one CamelCase word.",
        ),
    ]
    message: Annotated[
        str,
        Field(
            max_length=MAX_CONDITION_MESSAGE,
            description="Why, in a sentence that a person can act on; may be empty.",
        ),
    ]
    last_transition_time: Annotated[Time, Field(description="When status last changed, RFC 3339.")]
    observed_generation: Annotated[
        int | None, Field(description="Generation of the spec that this was said about.")
    ] = None


class EndedAttempt(StatusBlock):
    """How the last attempt ended that did not finish its stage."""

    attempt: Annotated[int, Field(ge=1, description="Number of the attempt.")]
    reason: Annotated[Reason, Field(description="Why it ended, in one CamelCase word.")]
    message: Annotated[Text, Field(description="Why it ended, for people.")] = ""
    exit_code: Annotated[int | None, Field(description="Exit code of the trainer, where one is known.")] = (
        None
    )
    counted: Annotated[bool, Field(description="Whether it counts against retry.limit.")]
    checkpoint_step: Annotated[
        int | None, Field(description="Step of the latest checkpoint that was seen by then.")
    ] = None
    time: Annotated[Time, Field(description="When its end was seen, RFC 3339.")]


class StageStatus(StatusBlock):
    name: Annotated[str, Field(max_length=30, description="Name of the stage.")]
    phase: Annotated[StagePhase, Field(description="Where the stage stands.")] = StagePhase.PENDING
    reason: Annotated[Reason, Field(description="Why it stands there, in one CamelCase word.")] = ""
    message: Annotated[Text, Field(description="Why it stands there, for people.")] = ""
    digest: Annotated[
        str, Field(max_length=64, description="SHA-256 of everything that decides its weights.")
    ] = ""
    attempt: Annotated[int, Field(ge=0, description="Number of the last attempt; it only grows.")] = 0
    failures: Annotated[
        int, Field(ge=0, description="Attempts that failed; eviction, preemption and node loss do not count.")
    ] = 0
    disruptions: Annotated[
        int,
        Field(ge=0, description="Attempts since the last new checkpoint that ended without having failed."),
    ] = 0
    resolved_sha256: Annotated[
        str | None,
        Field(
            max_length=64,
            description="SHA-256 of all that attempt resolvedAttempt was told, but for the file of the store's "
            "certificates: while the chain is refused, a job of it counts only if it says the same.",
        ),
    ] = None
    resolved_attempt: Annotated[
        int | None,
        Field(
            description="Attempt that resolvedSha256 is of. Of any other nothing is recorded: its job counts if it "
            "has the stage's digest, and the store of the chain as it is written now."
        ),
    ] = None
    job: Annotated[
        str | None, Field(max_length=256, description="Job of the last attempt, once it was seen.")
    ] = None
    last_ended: Annotated[
        EndedAttempt | None, Field(description="How the last unfinished attempt ended.")
    ] = None
    retry_at: Annotated[Time | None, Field(description="The next attempt starts no earlier, RFC 3339.")] = (
        None
    )
    started_at: Annotated[Time | None, Field(description="When its first attempt was started, RFC 3339.")] = (
        None
    )
    completed_at: Annotated[Time | None, Field(description="When it was seen complete, RFC 3339.")] = None
    step: Annotated[int | None, Field(description="Steps done.")] = None
    steps: Annotated[int | None, Field(description="Steps of the whole stage.")] = None
    activity: Annotated[
        str | None,
        Field(max_length=32, description="What the trainer is doing: Indexing, Training, Evaluating ..."),
    ] = None
    samples_per_second: Annotated[
        Finite | None, Field(description="Samples a second, over all processes.")
    ] = None
    eta_seconds: Annotated[int | None, Field(description="Estimated seconds to its end.")] = None
    checkpoint_step: Annotated[int | None, Field(description="Step of the latest checkpoint.")] = None
    loss: Numbers = Field(default_factory=dict, description="Terms of the loss.")
    metrics: Numbers = Field(default_factory=dict, description="Latest evaluation, e.g. imagenet/top1.")
    weights_uri: Annotated[
        str | None,
        Field(
            max_length=2048, description="Folder of the finished weights; open_clip loads it as local-dir:."
        ),
    ] = None

    @property
    def finished(self) -> bool:
        """Whether its weights are there: it needs no training."""
        return self.phase in (StagePhase.COMPLETE, StagePhase.CACHED)

    @property
    def last_ended_attempt(self) -> int:
        """The last attempt whose end is accounted for; it must not live, and no other outcome of it
        matters.
        """
        return self.last_ended.attempt if self.last_ended else 0

    @property
    def told_sha256(self) -> str | None:
        """What is recorded of all that the last attempt was told; None if nothing is."""
        return self.resolved_sha256 if self.resolved_attempt == self.attempt else None


class ModelMeasured(StatusBlock):
    """What a model took alone to become as good as the chain's."""

    name: Annotated[str, Field(max_length=30, description="The chain's stage whose model it is.")]
    target: Annotated[Finite, Field(description="What the chain's model ended with, by the metric.")]
    macs: Annotated[
        Finite,
        Field(description="Multiply-accumulates at which the model alone was as good, or all that it took."),
    ]
    reached: Annotated[bool, Field(description="Whether the model alone became as good.")]


class Measurement(StatusBlock):
    """Acceleration at equal quality: what models took alone to become as good as the chain's, over the chain."""

    metric: Annotated[
        str, Field(max_length=MAX_METRIC_NAME, description="What equal quality is measured by.")
    ]
    chain_macs: Annotated[
        Finite, Field(gt=0, description="Multiply-accumulates of the stages without which they would not be.")
    ]
    models: Annotated[
        tuple[ModelMeasured, ...],
        Field(min_length=1, max_length=MAX_STAGES, description="The models that were trained alone too."),
    ]

    @property
    def acceleration(self) -> Acceleration:
        """Summed over the models."""
        return acceleration([Reached(model.macs, model.reached) for model in self.models], self.chain_macs)


class FormerStage(StatusBlock):
    """A stage that was removed from the chain. A job's name follows from stage and attempt, and never comes twice."""

    name: Annotated[str, Field(max_length=30, description="Name of the stage.")]
    attempt: Annotated[int, Field(ge=1, description="Number of its last attempt.")]


class Quality(StatusBlock):
    """How good the latest model is that was evaluated, by one metric."""

    metric: Annotated[
        str, Field(max_length=MAX_METRIC_NAME, description="Name of the metric, e.g. digits/top1.")
    ]
    value: Annotated[Finite, Field(description="Its value; a share of 1 where it is an accuracy.")]
    higher_is_better: Annotated[bool, Field(description="Whether a higher value is better.")]


class Columns(StatusBlock):
    """Texts for people, as the columns of kubectl show them. Programs read the numbers beside."""

    progress: Annotated[str | None, Field(max_length=64, description="Steps of status.stage, done/all.")] = (
        None
    )
    eta: Annotated[str | None, Field(max_length=32, description="status.etaSeconds, e.g. 2h05m.")] = None
    top1: Annotated[
        str | None,
        Field(max_length=16, description="Latest zero-shot accuracy on the first such set, e.g. 93.3%."),
    ] = None
    speedup_planned: Annotated[
        str | None, Field(max_length=16, description="status.speedupPlanned, e.g. 2.09x.")
    ] = None
    speedup_measured: Annotated[
        str | None,
        Field(
            max_length=16,
            description="status.speedupMeasured, e.g. 1.75x; with >= where a model alone did not get there.",
        ),
    ] = None


class ChainStatus(StatusBlock):
    """Reading one never fails because another version wrote it: fields that this version does not know are
    kept, and values that it does not understand are left out (unless it is read with WHOLE as context).
    """

    @model_validator(mode="wrap")
    @classmethod
    def _salvage(
        cls, value: Any, handler: ModelWrapValidatorHandler[ChainStatus], info: ValidationInfo
    ) -> ChainStatus:
        if info.context is WHOLE:
            return handler(value)
        for _ in range(status_salvage.ROUNDS):
            try:
                return handler(value)
            except ValidationError as error:
                if not isinstance(value, Mapping):
                    raise
                value = status_salvage.without_unreadable(value, error.errors())
        return handler(value)

    phase: Annotated[ChainPhase, Field(description="Where the chain stands.")] = ChainPhase.PENDING
    message: Annotated[Text, Field(description="Why it stands there, for people.")] = ""
    observed_generation: Annotated[
        int | None, Field(description="Generation of the spec that was last acted on.")
    ] = None
    stage: Annotated[str | None, Field(max_length=30, description="The stage that is worked on.")] = None
    step: Annotated[int | None, Field(description="Steps of that stage that are done.")] = None
    steps: Annotated[int | None, Field(description="Steps of that stage in all.")] = None
    eta_seconds: Annotated[int | None, Field(description="Estimated seconds to the end of the chain.")] = None
    quality: Annotated[
        Quality | None, Field(description="How good the latest model is that was evaluated.")
    ] = None
    speedup_planned: Annotated[
        Finite | None,
        Field(
            description="Planned cost of training every model alone, for the baseline's epochs, over that of the "
            "chain; whether the models are as good is not known.",
        ),
    ] = None
    speedup_measured: Annotated[
        Finite | None,
        Field(
            description="Measured compute of the models alone to become as good as the chain's, over that of the "
            "chain; at least that where a model alone did not get there (measurement.models[].reached).",
        ),
    ] = None
    columns: Annotated[Columns, Field(description="The same as texts, for the columns of kubectl.")] = (
        Columns()
    )
    measurement: Annotated[
        Measurement | None, Field(description="What was measured, once spec.baseline.train is done.")
    ] = None
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=MAX_STAGES, description="The stages.")] = ()
    baselines: Annotated[
        tuple[StageStatus, ...],
        Field(
            max_length=MAX_BASELINES,
            description="The models trained alone, after the chain, as spec.baseline.train asks.",
        ),
    ] = ()
    former_stages: Annotated[
        tuple[FormerStage, ...],
        Field(
            max_length=MAX_FORMER_STAGES,
            description="Stages that were removed from the chain, should one be added again.",
        ),
    ] = ()
    retrained: Annotated[
        str | None,
        Field(
            max_length=MAX_MESSAGE,
            description="Value of the annotation modelchain.dev/retrain-missing that was last acted on; each is good "
            "for once.",
        ),
    ] = None
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16, description="Conditions.")] = ()

    @property
    def all_stages(self) -> tuple[StageStatus, ...]:
        """The chain's stages, then its baselines."""
        return (*self.stages, *self.baselines)

    @property
    def last_attempts(self) -> dict[str, int]:
        """By name, the number of the last attempt of every stage that the chain has or had; 0 if there was none."""
        former = {stage.name: stage.attempt for stage in self.former_stages}
        return former | {stage.name: stage.attempt for stage in self.all_stages}

    def find_stage(self, name: str) -> StageStatus | None:
        """The status of the stage or baseline of that name."""
        return next((stage for stage in self.all_stages if stage.name == name), None)

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether the condition of that type is there with status True."""
        condition = self.condition(kind)
        return condition is not None and condition.status == "True"


class RecordedStage(StatusBlock):
    """Which folder of the store belongs to a stage of a chain."""

    name: str
    index: int
    model: str
    digest: str
    folder: str  # relative to the store
    predecessor: str | None = None  # name of the stage it grows out of


class RecordedBaseline(RecordedStage):
    """The same of a stage that trains a model of the chain alone; it may be one of the chain's own."""

    measures: str  # the chain's stage whose model it is
    budget_matched: bool = False


class ChainRecord(StatusBlock):
    """chains/<namespace>/<name>.json: which stage lies where, and how the chain stands."""

    version: int = 1
    chain: str  # namespace/name
    uid: str
    updated_at: Time
    baseline_epochs: int | None = None  # epochs of a model alone, for the cost comparison
    metric: str | None = None  # by which models are compared that were trained alone too
    stages: tuple[RecordedStage, ...]
    baselines: tuple[RecordedBaseline, ...] = ()
    status: ChainStatus


def record_of(chain: ResolvedChain, status: ChainStatus, now: float) -> ChainRecord:
    """What is written into the store for people, for `modelchain report` and for the next run."""
    return ChainRecord(
        chain=chain.chain.full_name,
        uid=chain.chain.uid,
        updated_at=rfc3339(now),
        baseline_epochs=chain.baseline_epochs,
        metric=chain.baseline.metric if chain.baseline else None,
        stages=tuple(RecordedStage.model_validate(_recorded(stage)) for stage in chain.stages),
        baselines=tuple(
            RecordedBaseline.model_validate(
                _recorded(chain.stage(run.run))
                | {"measures": run.stage, "budget_matched": run.budget_macs is not None}
            )
            for run in (chain.baseline.runs if chain.baseline else ())
        ),
        status=status,
    )


def _recorded(stage: ResolvedStage) -> dict[str, object]:
    return {
        "name": stage.name,
        "index": stage.index,
        "model": stage.model,
        "digest": stage.digest,
        "folder": stage.folder,
        "predecessor": stage.predecessor.name if stage.predecessor else None,
    }


def without_progress(status: ChainStatus) -> ChainStatus:
    """The status less what changes all the time: two that are equal then need no immediate write."""
    idle = {"step": None, "activity": None, "samples_per_second": None, "eta_seconds": None, "loss": {}}

    def still(stages: tuple[StageStatus, ...]) -> tuple[StageStatus, ...]:
        return tuple(
            stage
            if stage.finished
            else stage.model_copy(update={**idle, "checkpoint_step": None, "metrics": {}})
            for stage in stages
        )

    return status.model_copy(
        update={
            "stages": still(status.stages),
            "baselines": still(status.baselines),
            "step": None,
            "steps": None,
            "eta_seconds": None,
            "quality": None,
            "columns": status.columns.model_copy(update={"progress": None, "eta": None, "top1": None}),
        }
    )


def commitment(stage: StageStatus) -> tuple[object, ...]:
    """What later decisions about a stage build on."""
    return (
        stage.name,
        stage.digest,
        stage.attempt,
        stage.failures,
        stage.disruptions,
        stage.last_ended,
        stage.retry_at,
        stage.finished,
        stage.phase is StagePhase.FAILED,
        stage.weights_uri,
    )


def cut(text: str, length: int = MAX_MESSAGE) -> str:
    """`text` on one line, without control characters, and short enough for a status."""
    line = one_line(text)
    return line if len(line) <= length else line[: length - 3] + "..."


def word(reason: str) -> str:
    """A reason as the API demands it, in one word: it may come from a kubelet, or out of a failure.json."""
    letters = re.sub(r"^[^A-Za-z]+|[^A-Za-z0-9_,:]+", "", reason)[:MAX_REASON]
    return letters.rstrip("_,:") or "Unknown"


def whole_seconds(seconds: float | None) -> int | None:
    """An estimate as a status holds it, in an integer of 64 bits; None if there is none, or one beyond all bounds."""
    if seconds is None or not seconds < 2.0**53:
        return None
    return max(0, round(max(0.0, seconds)))


def bounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """The first metrics or loss terms, as many as a status may hold."""
    names = [name for name in numbers if len(name) <= MAX_METRIC_NAME and name.isprintable()][:MAX_METRICS]
    return {name: numbers[name] for name in names}
