"""What can be trained: one file a task, with the family of models that it trains.

A task says what its models cost, which of them can be built and grow out of one another, what of them is in the
digest, and what it asks of the data. No torch: `modelchain_trainer.tasks` has a file for each task too. May import
spec and resolved.
"""

from modelchain.spec import AnyConfig, Block, TaskName
from modelchain.tasks.classification import CLASSIFICATION
from modelchain.tasks.clip import CLIP
from modelchain.tasks.language_model import LANGUAGE_MODEL
from modelchain.tasks.task import Problem, Task

TASKS: dict[TaskName, Task] = {task.name: task for task in (CLIP, CLASSIFICATION, LANGUAGE_MODEL)}

__all__ = ["CLIP", "TASKS", "Problem", "Task", "task_for", "task_of"]


def task_of(name: TaskName) -> Task:
    """The task of that name."""
    return TASKS[name]


def task_for(config: AnyConfig | type[Block]) -> Task:
    """The task that trains models of this configuration."""
    kind = config if isinstance(config, type) else type(config)
    return next(task for task in TASKS.values() if task.config is kind)
