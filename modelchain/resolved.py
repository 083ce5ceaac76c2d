"""Resolved stages: a stage with every default filled in, as it travels to the trainer.

`modelchain.resolve` makes these from a `ModelChain`; the trainer reads one as JSON from the environment variable
MODELCHAIN_STAGE or from a file. Everything a stage needs to know stands in it; secrets never do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import Field

from modelchain.block import Block
from modelchain.evaluations import higher_is_better
from modelchain.families import AnyConfig, LockedTower
from modelchain.spec import (
    DepthExpansion,
    DistillationSchedule,
    EvaluationSpec,
    InitialWeights,
    LearningRateSchedule,
    LearningRateScheduleType,
    LossName,
    OptimizerState,
    Precision,
    Sha256,
    Sharding,
    TaskName,
    TokenizerSpec,
    WeightsSpec,
    WidthExpansion,
)

# What whoever starts the trainer tells it by the environment.
STAGE_ENVIRONMENT_VARIABLE = "MODELCHAIN_STAGE"  # the resolved stage
ATTEMPT_VARIABLE = "MODELCHAIN_ATTEMPT"  # prefix of the attempt's token, <chain uid>-<attempt>
PARENT_PIPE_VARIABLE = "MODELCHAIN_PARENT_PIPE"  # file descriptor whose end means: whoever started us is gone
TERMINATION_LOG_VARIABLE = "MODELCHAIN_TERMINATION_LOG"  # file for the reason of its end
MAX_STAGE_BYTES = 64 * 1024
DEFAULT_DECAY_FRACTION = 0.2


class ChainReference(Block):
    """Which chain asked for this stage. Not part of the digest."""

    namespace: str
    name: str
    uid: str

    @property
    def full_name(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"


class ResolvedStore(Block):
    uri: str
    endpoint_url: str | None = None
    region: str | None = None
    ca_bundle: str | None = None  # a file
    allow_unconditional_writes: bool = False

    def uri_of(self, key: str) -> str:
        """The full URI of an object or a folder in the store, for messages."""
        return f"{self.uri.rstrip('/')}/{key}"


class ResolvedSource(Block):
    """One of several sources of a stage's data."""

    patterns: int  # how many of `ResolvedData.shards`, in their order
    samples: int  # in its shards
    repeat: float = 1.0  # how often an epoch sees each


class ResolvedData(Block):
    shards: tuple[str, ...]  # patterns, as written; expand with modelchain.shards.expand
    samples: int  # that an epoch sees, repetitions counted; without sources those in the shards
    sources: tuple[ResolvedSource, ...] = ()  # none: all shards are one, seen once
    caption_keys: tuple[str, ...] = ("txt",)
    image_keys: tuple[str, ...] | None = None  # None: the trainer's own list of image formats
    class_key: str = "cls"
    tokens: int | None = None  # of a language model; `samples` are sequences then
    text_key: str | None = None  # None: txt, or the field text of lines of JSON
    tokenizer: TokenizerSpec | None = None  # None: bytes
    block_mebibytes: int = 4
    window_blocks: int = 128
    random_crop_scale: tuple[float, float] = (0.9, 1.0)
    draft_decoding: bool = True
    max_corrupt_fraction: float = 0.01
    max_missing_shards: int = 0


class ResolvedTraining(Block):
    epochs: int
    global_batch_size: int = 1024
    micro_batch_size: int | None = None  # None: the whole share; FOUND_BY_TRAINER: by a trial
    learning_rate: float = 1e-3
    minimum_learning_rate: float = 3e-6
    warmup_steps: int
    loss: LossName = LossName.CONTRASTIVE
    schedule: LearningRateSchedule = LearningRateSchedule()
    ema_decay: float | None = None
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    gradient_clip_norm: float | None = None
    patch_dropout: float = 0.0
    locked_tower: LockedTower | None = None
    precision: Precision = Precision.FP32
    seed: int = 0
    checkpoint_every_steps: int
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    gradient_checkpointing: bool = False
    sharding: Sharding | None = None  # None: by size (modelchain.memory)
    compile: bool = False
    data_workers: int = 4
    steps_per_epoch: int  # samples // global_batch_size: the incomplete last batch of an epoch is left out
    steps: int  # epochs * steps_per_epoch

    @property
    def trunk_steps(self) -> int | None:
        """Steps before the decay of a WarmupStableDecay schedule: those that make the trunk. None without one."""
        return self.steps - decay_steps(self.schedule, self.steps) or None


DEFAULT_BATCH: int = ResolvedTraining.model_fields["global_batch_size"].default


def decay_steps(schedule: LearningRateSchedule, steps: int) -> int:
    """How many of a stage's last steps decay: all of them where there is no trunk."""
    if schedule.type is not LearningRateScheduleType.WARMUP_STABLE_DECAY:
        return steps
    fraction = DEFAULT_DECAY_FRACTION if schedule.decay_fraction is None else schedule.decay_fraction
    return min(steps, max(1, round(fraction * steps)))


class ResolvedDistillation(Block):
    weight: float = 1.0
    logits_weight: float = 1.0
    schedule: DistillationSchedule = DistillationSchedule()
    surpass_window_steps: int | None = None


class ResolvedExpansion(Block):
    width: WidthExpansion = WidthExpansion.EXACT
    depth: DepthExpansion = DepthExpansion.IDENTITY
    weights: InitialWeights = InitialWeights.PUBLISHED
    optimizer_state: OptimizerState = OptimizerState.RESET


class ResolvedRetry(Block):
    limit: int = 3
    backoff_seconds: int = 30
    disruption_limit: int = 100
    stall_seconds: int = 1800
    lease_seconds: int = 30


class ResolvedJob(Block):
    """How many processes train the stage. The rest of spec.job stays with the operator."""

    nodes: int = 1
    processes_per_node: int = 1
    gpus_per_node: int = 1
    start_deadline_seconds: int | None = None
    active_deadline_seconds: int | None = None
    termination_grace_period_seconds: int = 120


class StageReference(Block):
    """Another stage of the chain: the predecessor that a stage grows out of, or its teacher."""

    name: str
    digest: Sha256
    folder: str  # its artifact folder, relative to the store: stages/<model>-<digest, shortened>
    model_config_: AnyConfig = Field(alias="modelConfig")


class ResolvedStage(Block):
    version: int = 2
    chain: ChainReference
    name: str
    index: int
    digest: Sha256
    folder: str  # relative to the store: stages/<model>-<digest, shortened>
    task: TaskName = TaskName.CLIP
    model: str  # name for people, e.g. ViT-B-16; the stage's name where the model is written out
    model_config_: AnyConfig = Field(alias="modelConfig")
    predecessor: StageReference | None = None
    teacher: StageReference | None = None  # the predecessor unless the chain names another stage
    from_weights: WeightsSpec | None = None
    image: str | None = None
    store: ResolvedStore
    data: ResolvedData
    evaluation: tuple[EvaluationSpec, ...] = ()
    training: ResolvedTraining
    distillation: ResolvedDistillation = ResolvedDistillation()
    expansion: ResolvedExpansion = ResolvedExpansion()
    retry: ResolvedRetry = ResolvedRetry()
    job: ResolvedJob = ResolvedJob()

    @property
    def needs(self) -> tuple[StageReference, ...]:
        """The stages that must be complete first: the predecessor, and the teacher if it is another one."""
        names = {other.name: other for other in (self.predecessor, self.teacher) if other is not None}
        return tuple(names.values())

    def to_json(self) -> str:
        """Compact JSON for the environment of a job; read it back with `ResolvedStage.model_validate_json`."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def sha256(self) -> str:
        """Of all that it says, in hexadecimal, but for the file in which its pods have the store's certificates.

        Neither defaults nor `version` are in it: in a release with more fields it stays the same.
        """
        store = self.store.model_copy(update={"ca_bundle": None})
        said = self.model_copy(update={"store": store}).model_dump_json(
            by_alias=True, exclude_defaults=True, exclude={"version"}
        )
        return hashlib.sha256(said.encode()).hexdigest()


def default_baseline_epochs(stages: Sequence[ResolvedStage]) -> int:
    """For how many epochs models are taken to be trained alone: as many as the first stage that is trained."""
    return next((stage.training.epochs for stage in stages if stage.training.epochs), 0)


class BaselineRun(Block):
    """One training of a model of the chain alone."""

    stage: str  # the chain's stage whose model it is
    run: str  # the stage that trains it alone: of `ResolvedChain.baselines`, or one of the chain's that is the same
    budget_macs: int | None = (
        None  # budget-matched: what the chain spends up to and with its stage; else None
    )


class ResolvedBaseline(Block):
    """Which models are trained alone, and by which metric the chain's are compared with them."""

    metric: str  # <set>/<metric>
    runs: tuple[BaselineRun, ...]

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of the metric is better: of all but a loss."""
        return higher_is_better(self.metric)

    @property
    def stages(self) -> tuple[str, ...]:
        """The chain's stages whose models are trained alone."""
        return tuple(dict.fromkeys(run.stage for run in self.runs))


class ResolvedChain(Block):
    chain: ChainReference
    suspend: bool = False
    max_parallel_stages: int | None = None  # None: as many as there are branches
    store: ResolvedStore
    baseline_epochs: int
    stages: tuple[ResolvedStage, ...]
    baselines: tuple[ResolvedStage, ...] = ()  # models trained alone, after the chain: ordinary stages
    baseline: ResolvedBaseline | None = None  # what they are trained for; None: nothing is trained alone

    @property
    def all_stages(self) -> tuple[ResolvedStage, ...]:
        """Everything that is trained: the chain's stages, then its baselines. Their names are distinct."""
        return (*self.stages, *self.baselines)

    def stage(self, name: str) -> ResolvedStage:
        """The stage or baseline of that name. KeyError if there is none."""
        for stage in self.all_stages:
            if stage.name == name:
                return stage
        raise KeyError(name)


def needed_for(names: Iterable[str], stages: Sequence[ResolvedStage]) -> tuple[ResolvedStage, ...]:
    """The stages without which those of these names would not be: they, what they grow out of, their teachers."""
    found = set(names)
    for stage in reversed(stages):  # what a stage needs stands before it
        if stage.name in found:
            found |= {other.name for other in stage.needs}
    return tuple(stage for stage in stages if stage.name in found)
