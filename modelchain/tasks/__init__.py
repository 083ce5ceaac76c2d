"""What can be trained: one file a task.

A task says which kind of models it trains, what it asks of the data, and what people read of it. No torch:
`modelchain_trainer.tasks` has a file for each task too. May import spec, families and resolved.
"""

from modelchain.families import FamilyConfig
from modelchain.spec import TaskName
from modelchain.tasks.classification import CLASSIFICATION
from modelchain.tasks.clip import CLIP
from modelchain.tasks.language_model import LANGUAGE_MODEL
from modelchain.tasks.task import Task

TASKS: dict[TaskName, Task] = {task.name: task for task in (CLIP, CLASSIFICATION, LANGUAGE_MODEL)}

__all__ = ["CLASSIFICATION", "CLIP", "LANGUAGE_MODEL", "TASKS", "Task", "task_of", "tasks_for"]


def task_of(name: TaskName) -> Task:
    """The task of that name."""
    return TASKS[name]


def tasks_for(config: FamilyConfig | type[FamilyConfig]) -> tuple[Task, ...]:
    """The tasks that train models of this configuration."""
    kind = config if isinstance(config, type) else type(config)
    return tuple(task for task in TASKS.values() if issubclass(kind, task.config))
