"""The rules that the types can't say: the chain as a whole, then each stage with its defaults filled in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from modelchain import catalogue
from modelchain.errors import UserDataError
from modelchain.families import FAMILIES, AnyConfig, family_of
from modelchain.growth import START_FRESH, TAUGHT_ALONE, unbuildable, ungrowable, unteachable
from modelchain.resolve import (
    UnresolvableError,
    merged,
    predecessor_position,
    resolve,
    resolve_model,
    samples_of,
    starts_fresh,
    teacher_name,
    with_loss,
    written_models,
)
from modelchain.resolved import DEFAULT_BATCH, ResolvedChain, decay_steps
from modelchain.spec import (
    ExpansionSpec,
    InitialWeights,
    LearningRateSchedule,
    LearningRateScheduleType,
    ModelChain,
    OptimizerState,
    StageSpec,
    TaskName,
    TrainingSpec,
    WidthExpansion,
)
from modelchain.tasks import CLIP, Task, task_of, tasks_for
from modelchain.validation.baseline import check_baseline
from modelchain.validation.blocks import check_blocks
from modelchain.validation.names import TEACHER_OF_ALL, earlier_stages, unknown_stage
from modelchain.validation.problem import STAGE_NAMES, Finding, quoted
from modelchain.validation.tasks import check_task_fields
from modelchain.validation.training import check_training
from modelchain.yaml_reader import FieldPath

MAX_CHAIN_NAME = 63  # the name is a label of the chain's jobs


def check_rules(chain: ModelChain) -> tuple[ResolvedChain | None, list[Finding]]:
    """All that is wrong with a chain whose fields and types are right; the resolved chain, if nothing is."""
    findings = [
        *_check_name(chain),
        *_check_stages(chain),
        *_check_anything_is_trained(chain),
        *check_blocks(chain),
        *check_task_fields(chain),
        *check_training(chain),
        *check_baseline(chain),
    ]
    if findings:
        return None, _once(findings)
    try:  # what only the whole shows, such as the size of a resolved stage
        return resolve(chain), []
    except UserDataError as error:
        path = error.path if isinstance(error, UnresolvableError) else ("spec",)
        message, _, remedy = str(error).partition("; ")
        return None, [Finding(path, message, remedy)]


def _once(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))


def _check_name(chain: ModelChain) -> Iterator[Finding]:
    name = chain.metadata.name
    if len(name) > MAX_CHAIN_NAME:
        message = f"the name has {len(name)} characters, and its jobs carry it as a label"
        yield Finding(
            ("metadata", "name"), message, f"write at most {MAX_CHAIN_NAME}", frozenset({"metadata"})
        )


def _check_stages(chain: ModelChain) -> Iterator[Finding]:
    stages = chain.spec.stages
    if chain.spec.distillation is not None and chain.spec.distillation.teacher is not None:
        yield Finding(("spec", "distillation", "teacher"), *TEACHER_OF_ALL, frozenset({"teacher"}))
    first_of: dict[str, int] = {}
    models: list[AnyConfig | None] = []
    for index, stage in enumerate(stages):
        at: FieldPath = ("spec", "stages", index)
        if stage.name in first_of:
            yield Finding(
                (*at, "name"),
                f"{quoted(stage.name)} is the name of spec.stages[{first_of[stage.name]}] too",
                "give each stage a name of its own",
                frozenset({"name"}),
            )
        first_of.setdefault(stage.name, index)
        yield from _check_from(stages, index, at)
        yield from _check_teacher(stages, index, at)
        before = _predecessor(stages, index)
        fresh = before is not None and starts_fresh(chain, index)
        if before is not None:
            yield from _check_foreign_weights(stage, stages[before].name, at)
            yield from (
                _check_fresh(chain, index, stages[before].name)
                if fresh
                else _check_initial_weights(chain, index, before)
            )
        else:
            yield from _check_idle_blocks(stage, index, at)
            yield from _check_locked_tower(stage, at)
            yield from _check_held_weights(chain, stage, at)
        found = list(_check_model(task_of(chain.spec.task or TaskName.CLIP), stage, at))
        yield from found
        training = merged(chain.spec.training, stage.training)
        models.append(None if found else with_loss(resolve_model(stage)[1], training))
        source = _teacher_position(chain, index, before) if fresh else before
        small, large = None if source is None else models[source], models[index]
        if small is not None and large is not None and source is not None:
            yield from _check_models(stage, stages[source].name, small, large, at, taught=fresh)


def _predecessor(stages: list[StageSpec], index: int) -> int | None:
    """Where the predecessor stands; None if there is none, or if `from` is wrong."""
    try:
        return predecessor_position(stages, index)
    except UnresolvableError:
        return None


def _teacher_position(chain: ModelChain, index: int, before: int | None) -> int | None:
    """Where the teacher of stage `index` stands: the one that it names, or the stage before it."""
    names = [stage.name for stage in chain.spec.stages[:index]]
    wanted = teacher_name(chain, index)
    return before if wanted is None else names.index(wanted) if wanted in names else None


def _check_from(stages: list[StageSpec], index: int, at: FieldPath) -> Iterator[Finding]:
    wanted = stages[index].from_
    return _check_earlier(stages, index, wanted, (*at, "from"), "a stage can't grow out of itself")


def _check_teacher(stages: list[StageSpec], index: int, at: FieldPath) -> Iterator[Finding]:
    distillation = stages[index].distillation
    wanted = distillation.teacher if distillation is not None else None
    path = (*at, "distillation", "teacher")
    return _check_earlier(stages, index, wanted, path, "a stage can't be its own teacher")


def _check_earlier(
    stages: list[StageSpec], index: int, wanted: str | None, path: FieldPath, itself: str
) -> Iterator[Finding]:
    """Whether `wanted`, named at `path`, is a stage before this one."""
    names = [stage.name for stage in stages]
    if wanted is None or wanted in names[:index]:
        return
    about = frozenset({str(path[-1])})
    earlier = earlier_stages(names[:index])
    if wanted == stages[index].name:
        yield Finding(path, itself, earlier, about)
    elif wanted in names:
        position = names.index(wanted)
        message = f"{quoted(wanted)} is spec.stages[{position}], which is trained later"
        yield Finding(path, message, f"move it up, or {earlier}", about)
    else:
        message, remedy = unknown_stage(wanted, names[:index], earlier)
        yield Finding(path, message, remedy, about | {STAGE_NAMES})


def _check_initial_weights(chain: ModelChain, index: int, before: int) -> Iterator[Finding]:
    """A trunk to start from, where expansion.weights asks for one."""
    spec, stage = chain.spec, chain.spec.stages[index]
    expansion = merged(spec.expansion, stage.expansion) or ExpansionSpec()

    def path(field: str, value: object) -> FieldPath:
        own = stage.expansion is not None and getattr(stage.expansion, field) == value
        name = "weights" if field == "weights" else "optimizerState"
        return ("spec", "stages", index, "expansion", name) if own else ("spec", "expansion", name)

    trunk = expansion.weights is InitialWeights.TRUNK
    if expansion.optimizer_state is OptimizerState.CARRIED and not trunk:
        yield Finding(
            path("optimizer_state", OptimizerState.CARRIED),
            "the optimizer's state is kept with the trunk, and the stage starts from published weights",
            "write weights: Trunk beside it, or remove it",
            frozenset({"optimizerState", "weights"}),
        )
    if not trunk:
        return
    predecessor = spec.stages[before]
    if not _has_trunk(chain, predecessor):
        yield Finding(
            path("weights", InitialWeights.TRUNK),
            f"{quoted(predecessor.name)} has no trunk to start from",
            "give it epochs, training.schedule.type: WarmupStableDecay and a decayFraction below 1, "
            "or write weights: Published",
            frozenset({"weights", "schedule", "type", "decayFraction"}),
        )


def _check_fresh(chain: ModelChain, index: int, predecessor: str) -> Iterator[Finding]:
    """A stage that is only taught: it has to learn from its teacher, and nothing says how it would grow."""
    spec, stage = chain.spec, chain.spec.stages[index]
    own = stage.expansion is not None and stage.expansion.width is WidthExpansion.FRESH
    block = stage.expansion if own else spec.expansion
    at: FieldPath = ("spec", "stages", index, "expansion") if own else ("spec", "expansion")
    for name in ("depth", "weights", "optimizerState"):
        if block is not None and name in block.model_dump(by_alias=True, exclude_none=True):
            message = f"nothing grows under width: Fresh, so {name} is never used"
            yield Finding(
                (*at, name), message, "remove it, or write another width", frozenset({name, "width"})
            )
    distillation = merged(spec.distillation, stage.distillation)
    if distillation is not None and distillation.weight == 0:
        own = stage.distillation is not None and stage.distillation.weight == 0
        yield Finding(
            ("spec", "stages", index, "distillation", "weight")
            if own
            else ("spec", "distillation", "weight"),
            f"{quoted(stage.name)} starts fresh and would not learn from {quoted(predecessor)} either",
            "write a weight above 0; a model trained alone is named in baseline.train",
            frozenset({"weight", "width"}),
        )
    yield from _check_held_weights(chain, stage, ("spec", "stages", index))
    yield from _check_locked_tower(stage, ("spec", "stages", index))


def _has_trunk(chain: ModelChain, stage: StageSpec) -> bool:
    """Whether a stage is trained at a constant rate before its decay. Yes where its steps are not known."""
    training = merged(chain.spec.training, stage.training) or TrainingSpec()
    schedule = training.schedule or LearningRateSchedule()
    if schedule.type is not LearningRateScheduleType.WARMUP_STABLE_DECAY:
        return False
    samples = samples_of(chain, stage)
    if training.epochs is None or samples is None:
        return True
    steps = training.epochs * (samples // (training.global_batch_size or DEFAULT_BATCH))
    return steps > decay_steps(schedule, steps)


def _check_held_weights(chain: ModelChain, stage: StageSpec, at: FieldPath) -> Iterator[Finding]:
    training = merged(chain.spec.training, stage.training)
    if training is not None and training.epochs == 0 and stage.from_weights is None:
        own = stage.training is not None and stage.training.epochs == 0
        yield Finding(
            (*at, "training", "epochs") if own else ("spec", "training", "epochs"),
            f"{quoted(stage.name)} is not trained and has no weights to hold",
            "give it fromWeights, or at least 1 epoch",
            frozenset({"epochs", "fromWeights"}),
        )


def _check_anything_is_trained(chain: ModelChain) -> Iterator[Finding]:
    spec = chain.spec
    trainings = [merged(spec.training, stage.training) or TrainingSpec() for stage in spec.stages]
    if all(training.epochs == 0 for training in trainings):
        own = spec.training is None or spec.training.epochs != 0
        yield Finding(
            ("spec", "stages", len(spec.stages) - 1, "training", "epochs")
            if own
            else ("spec", "training", "epochs"),
            "no stage is trained: all have 0 epochs",
            "give at least one of them 1 epoch",
            frozenset({"epochs"}),
        )


def _check_foreign_weights(stage: StageSpec, predecessor: str, at: FieldPath) -> Iterator[Finding]:
    if stage.from_weights is not None:
        yield Finding(
            (*at, "fromWeights"),
            f"the stage grows out of {quoted(predecessor)}, so it can't start from other weights too",
            "keep fromWeights to the first stage, or remove it",
            frozenset({"fromWeights", "from"}),
        )


def _check_locked_tower(stage: StageSpec, at: FieldPath) -> Iterator[Finding]:
    """A tower of new weights would say nothing, for ever."""
    if stage.training is not None and stage.training.locked_tower is not None and stage.from_weights is None:
        yield Finding(
            (*at, "training", "lockedTower"),
            f"{quoted(stage.name)} starts from its seed, so its {stage.training.locked_tower.lower()} tower would stay "
            "random",
            "give it fromWeights, or let it grow out of a stage",
            frozenset({"lockedTower", "fromWeights", "from", "width"}),
        )


def _check_idle_blocks(stage: StageSpec, index: int, at: FieldPath) -> Iterator[Finding]:
    """A setting that nothing would ever read is a misunderstanding."""
    if index or stage.from_ is not None:
        return
    for name, block in (("distillation", stage.distillation), ("expansion", stage.expansion)):
        if block is not None and not (name == "expansion" and stage.from_weights is not None):
            verb = "learn from" if name == "distillation" else "grow out of"
            message = f"the first stage has no predecessor to {verb}"
            yield Finding(
                (*at, name), message, f"remove it, or set spec.{name} for the others", frozenset({name})
            )


def _check_model(task: Task, stage: StageSpec, at: FieldPath) -> Iterator[Finding]:
    written = written_models(stage)
    about = frozenset({"model", *(family.field for family in FAMILIES)})
    fields = ["model"] * (stage.model is not None) + list(written)
    if len(fields) > 1:
        message = f"both {fields[0]} and {fields[1]} are given"
        yield Finding((*at, fields[1]), message, "remove one of the two", about)
        return
    yield from _check_task(task, stage, at, about)
    for field, config in written.items():
        for part, message, remedy in unbuildable(config):
            yield Finding((*at, field, *part), message, remedy, about | set(part))
    if stage.model is None:
        if not written:
            remedy = f"write it out under {_fields(task)}"
            if task is CLIP:
                remedy = (
                    f"name a model (`modelchain models` lists them) or write it out under {_fields(task)}"
                )
            yield Finding((*at, "model"), "the stage has no model", remedy, about)
        return
    try:
        catalogue.find_any(stage.model)
    except catalogue.UnknownModelError as error:
        message, _, remedy = str(error).partition("; ")
        yield Finding((*at, "model"), message, remedy, about)


def _check_task(task: Task, stage: StageSpec, at: FieldPath, about: frozenset[str]) -> Iterator[Finding]:
    """A model of the chain's task."""
    remedy = f"write {_fields(task)}, or give the chain another task"
    if stage.model is not None and task is not CLIP:
        message = f"models by name are of task {CLIP.name}, and the chain's is {task.name}"
        yield Finding((*at, "model"), message, remedy, about | {"task"})
    for field, config in written_models(stage).items():
        if not isinstance(config, task.config):
            trained_by = " or ".join(one.name for one in tasks_for(config))
            message = f"a model of task {trained_by}, and the chain's is {task.name}"
            yield Finding((*at, field), message, remedy, about | {"task"})


def _fields(task: Task) -> str:
    return " or ".join(family.field for family in task.families)


def _check_models(
    stage: StageSpec, other: str, small: AnyConfig, large: AnyConfig, at: FieldPath, *, taught: bool
) -> Iterator[Finding]:
    """Whether `large` can grow out of `small`, the model of stage `other`; or, if only `taught`, learn from it."""
    if set(tasks_for(small)).isdisjoint(tasks_for(large)):
        return  # one of them is none of the chain's task, which is said there
    wrong = list(unteachable(large, small) if taught else ungrowable(small, large))
    about = frozenset({"model", "modelConfig", "from"})
    field = family_of(large).field
    problem = f"the stage can't {'learn from' if taught else 'grow out of'} {quoted(other)}"
    if stage.model is None:
        fresh = "" if taught or family_of(large).grows else TAUGHT_ALONE
        for part, message, remedy in wrong:
            remedy = remedy if remedy == START_FRESH else remedy + fresh
            yield Finding((*at, field, *part), f"{problem}: {message}", remedy, about | set(part))
    elif wrong:
        messages = ", ".join(message for _, message, _ in wrong)
        remedies = {remedy for _, _, remedy in wrong}
        if len(remedies) == 1 and all(part == ("logitBias",) for part, _, _ in wrong):
            remedy = remedies.pop()  # of the loss, which is no part of a model with a name
        elif taught:
            remedy = "name a model like it in these, or another teacher"
        elif family_of(small) is not family_of(large):
            remedy = START_FRESH
        elif not family_of(large).grows:
            messages, remedy = f"models under {field} do not grow", START_FRESH
        else:
            remedy = "name a model that is as large in every dimension and has the same head widths, or put it first"
        yield Finding((*at, "model"), f"{problem}: {messages}", remedy, about)
