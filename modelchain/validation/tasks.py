"""Fields that belong to another task than the chain's."""

from __future__ import annotations

from collections.abc import Iterator

from modelchain.families.family import ImageClassifierConfig
from modelchain.resolve import (
    UnresolvableError,
    merged,
    models_of,
    predecessor_position,
    starts_fresh,
    teacher_name,
)
from modelchain.spec import EvaluationSpec, ModelChain, StageSpec, TaskName
from modelchain.tasks import TASKS, Task, task_of
from modelchain.validation.problem import Finding, quoted
from modelchain.validation.shard_formats import check_shard_formats
from modelchain.yaml_reader import FieldPath

_ALL_OWN_FIELDS = frozenset(field for task in TASKS.values() for field in task.own_fields)


def check_task_fields(chain: ModelChain) -> Iterator[Finding]:
    """Data and evaluation sets that the chain's task can't use: what nothing reads is a misunderstanding."""
    spec = chain.spec
    task = task_of(spec.task or TaskName.CLIP)
    holders = ((("spec",), spec), *((("spec", "stages", i), stage) for i, stage in enumerate(spec.stages)))
    for at, holder in holders:
        for block, field in sorted(_ALL_OWN_FIELDS - task.own_fields):
            own = getattr(holder, block)
            if own is not None and field in own.model_dump(by_alias=True, exclude_none=True):
                readers = " and ".join(t.name for t in TASKS.values() if (block, field) in t.own_fields)
                message = f"{field} is read by task {readers}, and the chain's is {task.name}"
                remedy = "remove it, or give the chain another task"
                yield Finding((*at, block, field), message, remedy, frozenset({field, "task"}))
        for index, evaluation in enumerate(holder.evaluation or ()):
            yield from _check_type(task, evaluation, (*at, "evaluation", index))
    yield from _check_class_names(chain)
    yield from _check_fit(chain, task)
    yield from _check_tokenizers(chain)
    yield from check_shard_formats(chain, task)


def _check_type(task: Task, evaluation: EvaluationSpec, at: FieldPath) -> Iterator[Finding]:
    if evaluation.type not in task.evaluations:
        message = f"a chain of task {task.name} can't be evaluated on a set of type {evaluation.type}"
        remedy = f"write type: {' or '.join(task.evaluations)}, or remove the set"
        yield Finding((*at, "type"), message, remedy, frozenset({"type", "task"}))


def _check_class_names(chain: ModelChain) -> Iterator[Finding]:
    """As many names as the classifier has classes."""
    spec = chain.spec
    for number, stage in enumerate(spec.stages):
        config = next(
            (one for one in models_of(stage).values() if isinstance(one, ImageClassifierConfig)), None
        )
        if config is None:
            continue
        own = stage.evaluation is not None
        at: FieldPath = ("spec", "stages", number) if own else ("spec",)
        for index, evaluation in enumerate((stage.evaluation if own else spec.evaluation) or ()):
            names, classes = evaluation.classes, config.classes
            if names is not None and len(names) != classes:
                message = (
                    f"{len(names)} names, but the classifier of {quoted(stage.name)} has {classes} classes"
                )
                path = (*at, "evaluation", index, "classes")
                yield Finding(path, message, f"name all {classes}, or none", frozenset({"classes"}))


def _check_fit(chain: ModelChain, task: Task) -> Iterator[Finding]:
    """A model that can't be trained on its stage's data."""
    for number, stage in enumerate(chain.spec.stages):
        data, training = merged(chain.spec.data, stage.data), merged(chain.spec.training, stage.training)
        for field, config in models_of(stage).items():
            if training and training.patch_dropout and config.image_side and config.patch_tower is None:
                message = (
                    f"{quoted(stage.name)} has no patches that could be left out (training.patchDropout)"
                )
                remedy = "remove it, or write patchDropout: 0 in the stage's training"
                yield Finding(("spec", "stages", number, field), message, remedy, frozenset({field}))
            if data is None or not isinstance(config, task.config):
                continue
            for part, message, remedy in task.unfit(data, config):
                at: FieldPath = ("spec", "stages", number, field, *part)
                yield Finding(at, message, remedy, frozenset({*part, field}))


def _check_tokenizers(chain: ModelChain) -> Iterator[Finding]:
    """A token means the same to a model, to what it grows out of and to what it learns from."""
    stages = chain.spec.stages
    tokenizers = [_tokenizer(chain, stage) for stage in stages]
    for number, stage in enumerate(stages):
        for other, verb in _read_with(chain, number):
            if tokenizers[other] == tokenizers[number]:
                continue
            name = quoted(stages[other].name)
            at: FieldPath = ("spec", "stages", number, "data", "tokenizer")
            message = f"its tokens are others than those of {name}, which it {verb}"
            if stage.data is None or stage.data.tokenizer is None:
                at = ("spec", "stages", other, "data", "tokenizer")
                message = f"{quoted(stage.name)} {verb} {name} and has other tokens"
            remedy = "write one tokenizer for all stages, under spec.data"
            yield Finding(at, message, remedy, frozenset({"tokenizer", "data"}))
            break


def _read_with(chain: ModelChain, number: int) -> Iterator[tuple[int, str]]:
    """The stages whose tokens stage `number` must read, and what it does with each."""
    names = [stage.name for stage in chain.spec.stages[:number]]
    try:
        before = predecessor_position(chain.spec.stages, number)
    except UnresolvableError:
        return
    if before is None:
        return
    if not starts_fresh(chain, number):
        yield before, "grows out of"
    distillation = merged(chain.spec.distillation, chain.spec.stages[number].distillation)
    if distillation is not None and distillation.weight == 0:
        return
    wanted = teacher_name(chain, number) or names[before]
    if wanted in names:
        yield names.index(wanted), "learns from"


def _tokenizer(chain: ModelChain, stage: StageSpec) -> tuple[str, str] | None:
    data = merged(chain.spec.data, stage.data)
    if data is None or data.tokenizer is None:
        return None
    return data.tokenizer.sha256, data.tokenizer.end_of_text
