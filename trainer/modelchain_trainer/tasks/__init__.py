"""What can be trained: one file a task, beside its counterpart in `modelchain.tasks`.

A task names where its batches come from, how its loss comes about (`contrastive`: over all rows of the
global batch; `local_loss`: a sum over rows) and the projections that a student learns with. The loop, checkpoints,
data order and telemetry know no task. May import modelchain, torch, `model`, `data` and `expansion`.
"""

from modelchain.resolved import ResolvedStage
from modelchain.spec import TaskName
from modelchain_trainer.tasks.classification import CLASSIFICATION
from modelchain_trainer.tasks.clip import CLIP
from modelchain_trainer.tasks.language_model import LANGUAGE_MODEL
from modelchain_trainer.tasks.task import Task

TASKS: dict[TaskName, Task] = {
    TaskName.CLIP: CLIP,
    TaskName.CLASSIFICATION: CLASSIFICATION,
    TaskName.LANGUAGE_MODEL: LANGUAGE_MODEL,
}

__all__ = ["TASKS", "Task", "task_of"]


def task_of(stage: ResolvedStage) -> Task:
    """The task of a stage."""
    return TASKS[stage.task]
