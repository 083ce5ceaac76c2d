"""From what a user wrote to what is trained: stage over chain over defaults, field by field, and the digests.

Pure. The defaults stand in `modelchain.resolved`, and here where they depend on other fields. Those that
decide weights are frozen within a digest version (see `modelchain.digest`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar
from uuid import NAMESPACE_URL, uuid5

from modelchain import catalogue
from modelchain.artifacts import stage_folder
from modelchain.baselines import resolve_baseline
from modelchain.block import Block
from modelchain.digest import stage_digest
from modelchain.errors import UserDataError
from modelchain.families import FAMILIES, AnyConfig, DualEncoderConfig
from modelchain.resolved import (
    DEFAULT_BATCH,
    DEFAULT_DECAY_FRACTION,
    MAX_STAGE_BYTES,
    ChainReference,
    ResolvedChain,
    ResolvedData,
    ResolvedDistillation,
    ResolvedExpansion,
    ResolvedJob,
    ResolvedRetry,
    ResolvedSource,
    ResolvedStage,
    ResolvedStore,
    ResolvedTraining,
    StageReference,
    decay_steps,
    default_baseline_epochs,
)
from modelchain.spec import (
    DataSpec,
    DistillationSchedule,
    DistillationScheduleType,
    DistillationSpec,
    EvaluationDataSpec,
    EvaluationSpec,
    JobSpec,
    LearningRateSchedule,
    LearningRateScheduleType,
    LossName,
    ModelChain,
    ObjectMeta,
    OptimizerState,
    StageSpec,
    StoreSpec,
    TaskName,
    TrainingSpec,
    WeightsSpec,
    WidthExpansion,
)
from modelchain.tasks import Task, task_of
from modelchain.tasks.task import samples_of as samples_of_data

B = TypeVar("B", bound=Block)

DEFAULT_WARMUP_STEPS_ALONE = 8000
DEFAULT_WARMUP_STEPS_IN_CHAIN = 1000
DEFAULT_CHECKPOINT_STEPS = 2000


class UnresolvableError(UserDataError):
    """The chain can't be resolved; `modelchain.validation` finds all reasons, this names the first.

    `path` is the field it is about.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ("spec",)) -> None:
        super().__init__(message)
        self.path = path


def resolve(chain: ModelChain, *, base: Path | None = None) -> ResolvedChain:
    """Every stage with every default filled in.

    Relative paths (store, shards, weights, class lists) stay as written, relative to the working directory;
    with `base` they become absolute, below `base`. Digests are those of the paths as written either way.

    Raises UserDataError (UnresolvableError, UnknownModelError, ShardPatternError) for the first thing that is
    wrong.
    """
    if base is not None:
        _check_name(base)
    reference = chain_reference(chain.metadata)
    store = resolve_store(chain.spec.store, base)
    stages: list[ResolvedStage] = []
    for index, stage in enumerate(chain.spec.stages):
        position = predecessor_position(chain.spec.stages, index)
        before = None if position is None else stages[position]
        teacher = _teacher(chain, index, stages) or before
        predecessor = None if starts_fresh(chain, index) else before
        stages.append(_resolve_stage(chain, index, stage, predecessor, teacher, reference, store, base))

    def alone(stage: ResolvedStage, epochs: int) -> ResolvedStage:
        spec = _alone(chain, stage, epochs)
        return _resolve_stage(chain, stage.index, spec, None, None, reference, store, base).model_copy(
            update={"model": stage.model}
        )

    given = chain.spec.baseline.epochs if chain.spec.baseline else None
    epochs = given or default_baseline_epochs(stages)
    baseline, baselines = resolve_baseline(chain.spec.baseline, stages, epochs, alone)
    return ResolvedChain(
        chain=reference,
        suspend=chain.spec.suspend or False,
        max_parallel_stages=chain.spec.max_parallel_stages,
        store=store,
        baseline_epochs=epochs,
        stages=tuple(stages),
        baselines=baselines,
        baseline=baseline,
    )


def chain_reference(metadata: ObjectMeta) -> ChainReference:
    """Which chain this is.

    A chain from a file has no uid from a server; its name gives one that stays the same.
    """
    uid = metadata.uid or str(uuid5(NAMESPACE_URL, f"modelchain.dev/{metadata.namespace}/{metadata.name}"))
    return ChainReference(namespace=metadata.namespace, name=metadata.name, uid=uid)


def predecessor_position(stages: list[StageSpec], index: int) -> int | None:
    """Where the predecessor of stage `index` stands; None for the first.

    Raises UnresolvableError for a wrong `from`.
    """
    wanted = stages[index].from_
    if wanted is None:
        return index - 1 if index else None
    for position in range(index):
        if stages[position].name == wanted:
            return position
    raise UnresolvableError(f"spec.stages[{index}].from: no stage before this one is named {wanted!r}")


def starts_fresh(chain: ModelChain, index: int) -> bool:
    """Whether the stage before stage `index` only teaches it: its first weights are those of its seed."""
    expansion = merged(chain.spec.expansion, chain.spec.stages[index].expansion)
    return expansion is not None and expansion.width is WidthExpansion.FRESH


def teacher_name(chain: ModelChain, index: int) -> str | None:
    """The stage that `distillation.teacher` names for stage `index`; None: its predecessor, if any."""
    distillation = merged(chain.spec.distillation, chain.spec.stages[index].distillation)
    return distillation.teacher if distillation else None


def _teacher(chain: ModelChain, index: int, before: list[ResolvedStage]) -> ResolvedStage | None:
    """The stage that `distillation.teacher` names. Raises UnresolvableError for one that is not before."""
    wanted = teacher_name(chain, index)
    if wanted is None:
        return None
    for stage in before:
        if stage.name == wanted:
            return stage
    raise UnresolvableError(
        f"spec.stages[{index}].distillation.teacher: no stage before this one is named {wanted!r}"
    )


def _alone(chain: ModelChain, stage: ResolvedStage, epochs: int) -> StageSpec:
    """The stage as its model is trained alone: from its first weights, for so many epochs. A warm-up that does not end
    within them is as long as it would be by default.
    """
    spec = chain.spec.stages[stage.index]
    training = merged(chain.spec.training, spec.training) or TrainingSpec()
    steps = epochs * stage.training.steps_per_epoch
    rising = steps if training.schedule is None else steps - decay_steps(training.schedule, steps) or steps
    update: dict[str, object] = {"epochs": epochs}
    if training.warmup_steps is not None and training.warmup_steps >= rising:
        update["warmup_steps"] = min(DEFAULT_WARMUP_STEPS_ALONE, steps // 10)
    return spec.model_copy(
        update={"from_": None, "distillation": None, "training": training.model_copy(update=update)}
    )


def merged(chain: B | None, stage: B | None) -> B | None:
    """`chain` with the fields that `stage` sets.

    Nested values (a schedule, a pod template) are replaced whole.
    """
    if chain is None or stage is None:
        return stage or chain
    return chain.model_copy(update=_given(stage))


def resolve_model(stage: StageSpec) -> tuple[str, AnyConfig]:
    """The stage's model and its name for people. Raises UnknownModelError, UnresolvableError."""
    written = written_models(stage)
    if len(written) == 1 and stage.model is None:
        return stage.name, next(iter(written.values()))
    if stage.model is not None and not written:
        return stage.model, catalogue.find_any(stage.model)
    raise UnresolvableError(f"stage {stage.name}: give one model, by name or written out")


def with_loss(config: AnyConfig, training: TrainingSpec | None) -> AnyConfig:
    """The model as it is trained with that loss: SigLIP's learns a bias of the logits."""
    if training is None or training.loss is not LossName.SIGMOID or not isinstance(config, DualEncoderConfig):
        return config
    return config.model_copy(update={"logit_bias": True})


def samples_of(chain: ModelChain, stage: StageSpec) -> int | None:
    """Samples of an epoch of a stage; None where the chain does not say, or has no such model."""
    task = task_of(chain.spec.task or TaskName.CLIP)
    data = merged(chain.spec.data, stage.data)
    if data is None:
        return None
    if task.size_field == "samples":
        return samples_of_data(data)
    config = next((model for model in models_of(stage).values() if isinstance(model, task.config)), None)
    return None if config is None else task.samples(data, config)


def written_models(stage: StageSpec) -> dict[str, AnyConfig]:
    """The models that a stage writes out, by field: one, in a valid chain whose model has no name."""
    return {
        family.field: config for family in FAMILIES if (config := stage.written(family.field)) is not None
    }


def models_of(stage: StageSpec) -> dict[str, AnyConfig]:
    """The models that a stage writes out or, if none, names, by the field that says so; a name may be unknown."""
    written = written_models(stage)
    if written or stage.model is None:
        return written
    try:
        return {"model": catalogue.find_any(stage.model)}
    except catalogue.UnknownModelError:
        return {}


def resolve_training(
    training: TrainingSpec | None, samples: int, *, has_predecessor: bool, warm_optimizer: bool = False
) -> ResolvedTraining:
    """How a stage is trained on `samples` samples an epoch. `warm_optimizer`: its moments are carried over.

    Raises UnresolvableError.
    """
    if training is None or training.epochs is None:
        raise UnresolvableError("training.epochs is missing")
    given = _given(training)
    batch = training.global_batch_size or DEFAULT_BATCH
    steps_per_epoch = samples // batch
    if steps_per_epoch == 0:
        raise UnresolvableError(
            f"the {samples} samples of an epoch are less than training.globalBatchSize ({batch})"
        )
    steps = training.epochs * steps_per_epoch
    warmup = DEFAULT_WARMUP_STEPS_IN_CHAIN if has_predecessor else DEFAULT_WARMUP_STEPS_ALONE
    warmup = min(warmup, steps // 10)
    if training.schedule and training.schedule.type is LearningRateScheduleType.WARMUP_STABLE_DECAY:
        fraction = training.schedule.decay_fraction or DEFAULT_DECAY_FRACTION
        schedule = LearningRateSchedule(type=training.schedule.type, decay_fraction=fraction)
        given["schedule"] = schedule
        if trunk := steps - decay_steps(schedule, steps):
            warmup = min(warmup, trunk - 1)  # a long decay leaves a short trunk
    given.setdefault("warmup_steps", 0 if warm_optimizer else warmup)
    given.setdefault("checkpoint_every_steps", max(1, min(DEFAULT_CHECKPOINT_STEPS, steps // 20)))
    return ResolvedTraining.model_validate(given | {"steps_per_epoch": steps_per_epoch, "steps": steps})


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`: of a batch, what processes can share."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def resolve_job(job: JobSpec | None) -> ResolvedJob:
    """How many processes train a stage: one a GPU unless the chain says otherwise."""
    given = _given(job, only=set(ResolvedJob.model_fields))
    gpus = given.get("gpus_per_node", ResolvedJob.model_fields["gpus_per_node"].default)
    given.setdefault("processes_per_node", gpus or 1)
    return ResolvedJob.model_validate(given)


def resolve_distillation(distillation: DistillationSpec | None) -> ResolvedDistillation:
    """The distillation of a stage, with a linear schedule's end written out."""
    resolved = ResolvedDistillation.model_validate(
        _given(distillation, only=set(ResolvedDistillation.model_fields))
    )
    schedule = resolved.schedule
    if schedule.type is not DistillationScheduleType.LINEAR:
        return resolved
    written = DistillationSchedule(
        type=schedule.type,
        until=1.0 if schedule.until is None else schedule.until,
        end_weight=0.0 if schedule.end_weight is None else schedule.end_weight,
    )
    return resolved.model_copy(update={"schedule": written})


def resolve_store(store: StoreSpec, base: Path | None = None) -> ResolvedStore:
    """Where artifacts are kept.

    Certificates are mounted by whoever starts the job, which sets `ca_bundle`.
    """
    given = _given(store, only=set(ResolvedStore.model_fields))
    return ResolvedStore.model_validate(given | {"uri": _located(store.uri, base)})


def _resolve_stage(
    chain: ModelChain,
    index: int,
    stage: StageSpec,
    predecessor: ResolvedStage | None,
    teacher: ResolvedStage | None,
    reference: ChainReference,
    store: ResolvedStore,
    base: Path | None,
) -> ResolvedStage:
    spec = chain.spec
    task = spec.task or TaskName.CLIP
    name, config = resolve_model(stage)
    if not isinstance(config, task_of(task).config):
        raise UnresolvableError(f"stage {stage.name}: its model is none of task {task}")
    config = with_loss(config, merged(spec.training, stage.training))
    if predecessor is not None and stage.from_weights is not None:
        raise UnresolvableError(f"stage {stage.name}: fromWeights is only for a stage without predecessor")
    data = _resolve_data(stage.name, merged(spec.data, stage.data), task_of(task), config)
    expansion = ResolvedExpansion.model_validate(_given(merged(spec.expansion, stage.expansion)))
    training = resolve_training(
        merged(spec.training, stage.training),
        data.samples,
        has_predecessor=predecessor is not None,
        warm_optimizer=predecessor is not None and expansion.optimizer_state is OptimizerState.CARRIED,
    )
    if predecessor is None and stage.from_weights is None:  # there is nothing yet that is worth keeping
        training = training.model_copy(update={"locked_tower": None})
    distillation = resolve_distillation(merged(spec.distillation, stage.distillation))
    digest = stage_digest(
        task=task,
        model=config,
        data=data,
        training=training,
        distillation=distillation,
        expansion=expansion,
        predecessor=predecessor.digest if predecessor else None,
        teacher=teacher.digest if teacher else None,
        from_weights=stage.from_weights,
    )
    resolved = ResolvedStage(
        chain=reference,
        name=stage.name,
        index=index,
        digest=digest,
        folder=stage_folder(catalogue.size_name(config), digest),
        task=task,
        model=name,
        modelConfig=config,
        predecessor=predecessor and _reference_to(predecessor),
        teacher=teacher and _reference_to(teacher),
        from_weights=_located_weights(stage.from_weights, base),
        image=stage.image or spec.image,
        store=store,
        data=_located_data(data, base),
        evaluation=tuple(
            _located_evaluation(one, base)
            for one in (spec.evaluation if stage.evaluation is None else stage.evaluation) or ()
        ),
        training=training,
        distillation=distillation,
        expansion=expansion,
        retry=ResolvedRetry.model_validate(_given(merged(spec.retry, stage.retry))),
        job=resolve_job(merged(spec.job, stage.job)),
    )
    size = len(resolved.to_json().encode())
    if size > MAX_STAGE_BYTES:
        raise UnresolvableError(
            f"stage {stage.name}: {size} bytes once resolved, over the {MAX_STAGE_BYTES} that a job carries; "
            "give long class lists as classesUri",
            ("spec", "stages", index),
        )
    return resolved


def _resolve_data(stage: str, data: DataSpec | None, task: Task, config: AnyConfig) -> ResolvedData:
    samples = None if data is None else task.samples(data, config)
    if data is None or (data.shards is None and data.sources is None) or samples is None:
        raise UnresolvableError(
            f"stage {stage}: data.shards and data.{task.size_field} are needed, here or in spec.data"
        )
    if data.sources is None:
        return ResolvedData.model_validate(_given(data) | {"samples": samples})
    if data.shards is not None or data.samples is not None:
        raise UnresolvableError(f"stage {stage}: data.sources take the place of data.shards and data.samples")
    sources = [
        ResolvedSource.model_validate(
            _given(source, {"samples", "repeat"}) | {"patterns": len(source.shards)}
        )
        for source in data.sources
    ]
    shards = [pattern for source in data.sources for pattern in source.shards]
    return ResolvedData.model_validate(
        _given(data) | {"samples": samples, "shards": shards, "sources": sources}
    )


def _reference_to(stage: ResolvedStage) -> StageReference:
    return StageReference(
        name=stage.name, digest=stage.digest, folder=stage.folder, modelConfig=stage.model_config_
    )


def _given(block: Block | None, only: set[str] | None = None) -> dict[str, object]:
    """The fields that are set, as they are."""
    if block is None:
        return {}
    return {
        name: value
        for name, value in vars(block).items()
        if value is not None and (only is None or name in only)
    }


def _check_name(folder: Path) -> None:
    """Raises UnresolvableError for a folder whose name can't be written: a resolved stage travels as JSON."""
    name = str(folder)
    written = name.encode("utf-8", "backslashreplace").decode()
    if written != name:
        raise UnresolvableError(f"{written}: the folder's name is not UTF-8; rename it, e.g. with convmv")


def _located(location: str, base: Path | None) -> str:
    """A relative path below `base`; URIs and absolute paths as they are."""
    if base is None or "://" in location or location.startswith("/"):
        return location
    return str(base / location)


def _located_data(data: ResolvedData, base: Path | None) -> ResolvedData:
    tokenizer = data.tokenizer and data.tokenizer.model_copy(
        update={"uri": _located(data.tokenizer.uri, base)}
    )
    shards = tuple(_located(shard, base) for shard in data.shards)
    return data.model_copy(update={"shards": shards, "tokenizer": tokenizer})


def _located_weights(weights: WeightsSpec | None, base: Path | None) -> WeightsSpec | None:
    return weights and weights.model_copy(update={"uri": _located(weights.uri, base)})


def _located_evaluation(evaluation: EvaluationSpec, base: Path | None) -> EvaluationSpec:
    def located(data: EvaluationDataSpec) -> EvaluationDataSpec:
        return data.model_copy(update={"shards": [_located(shard, base) for shard in data.shards]})

    return evaluation.model_copy(
        update={
            "data": located(evaluation.data),
            "train_data": evaluation.train_data and located(evaluation.train_data),
            "classes_uri": evaluation.classes_uri and _located(evaluation.classes_uri, base),
        }
    )
