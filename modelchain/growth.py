"""What a model must be like to be built, to grow out of another, and to learn from it: as its task says."""

from __future__ import annotations

from collections.abc import Iterator

from modelchain.spec import AnyConfig
from modelchain.tasks import Problem, task_for


def unbuildable(model: AnyConfig) -> Iterator[Problem]:
    """What keeps a model from being built: where, what is wrong, what to do."""
    return task_for(model).unbuildable(model)


def unteachable(student: AnyConfig, teacher: AnyConfig) -> Iterator[Problem]:
    """What keeps `teacher` from teaching `student`, a model of the same task that did not grow out of it."""
    return task_for(student).unteachable(student, teacher)


def ungrowable(small: AnyConfig, large: AnyConfig) -> Iterator[Problem]:
    """What keeps `large` from growing out of `small`. Both can be built."""
    before, after = task_for(small), task_for(large)
    if before is not after:
        message = f"a model of task {after.name} can't grow out of one of task {before.name}"
        yield (), message, "give each task a chain of its own"
        return
    yield from after.ungrowable(small, large)
