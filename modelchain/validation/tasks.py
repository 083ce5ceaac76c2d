"""Fields that belong to another task than the chain's."""

from __future__ import annotations

from collections.abc import Iterator

from modelchain.spec import EvaluationSpec, ModelChain, TaskName
from modelchain.tasks import TASKS, Task, task_of
from modelchain.validation.problem import Finding, quoted
from modelchain.yaml_reader import FieldPath


def check_task_fields(chain: ModelChain) -> Iterator[Finding]:
    """Data and evaluation sets that the chain's task can't use: what nothing reads is a misunderstanding."""
    spec = chain.spec
    task = task_of(spec.task or TaskName.CLIP)
    holders = ((("spec",), spec), *((("spec", "stages", i), stage) for i, stage in enumerate(spec.stages)))
    for at, holder in holders:
        for other in TASKS.values():
            for block, field in sorted(other.own_fields - task.own_fields):
                own = getattr(holder, block)
                if own is not None and field in own.model_dump(by_alias=True, exclude_none=True):
                    message = f"{field} is read by task {other.name}, and the chain's is {task.name}"
                    remedy = "remove it, or give the chain another task"
                    yield Finding((*at, block, field), message, remedy, frozenset({field, "task"}))
        for index, evaluation in enumerate(holder.evaluation or ()):
            yield from _check_type(task, evaluation, (*at, "evaluation", index))
    yield from _check_class_names(chain)


def _check_type(task: Task, evaluation: EvaluationSpec, at: FieldPath) -> Iterator[Finding]:
    if evaluation.type not in task.evaluations:
        message = f"a chain of task {task.name} can't be evaluated on a set of type {evaluation.type}"
        remedy = f"write type: {' or '.join(task.evaluations)}, or remove the set"
        yield Finding((*at, "type"), message, remedy, frozenset({"type", "task"}))


def _check_class_names(chain: ModelChain) -> Iterator[Finding]:
    """As many names as the classifier has classes."""
    spec = chain.spec
    for number, stage in enumerate(spec.stages):
        if stage.classifier_config is None:
            continue
        own = stage.evaluation is not None
        at: FieldPath = ("spec", "stages", number) if own else ("spec",)
        for index, evaluation in enumerate((stage.evaluation if own else spec.evaluation) or ()):
            names, classes = evaluation.classes, stage.classifier_config.classes
            if names is not None and len(names) != classes:
                message = (
                    f"{len(names)} names, but the classifier of {quoted(stage.name)} has {classes} classes"
                )
                path = (*at, "evaluation", index, "classes")
                yield Finding(path, message, f"name all {classes}, or none", frozenset({"classes"}))
