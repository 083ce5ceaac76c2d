"""What a model must be like to be built, to grow out of another, and to learn from it: as its family says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from modelchain.families import AnyConfig, Problem, family_of
from modelchain.tasks import tasks_for

START_FRESH: Final = (
    "write expansion.width: Fresh, with which it starts from its seed and learns from its teacher"
)
TAUGHT_ALONE: Final = ", or expansion.width: Fresh for a stage that is only taught"  # behind another remedy


def unbuildable(model: AnyConfig) -> Iterator[Problem]:
    """What keeps a model from being built: where, what is wrong, what to do."""
    return family_of(model).unbuildable(model)


def unteachable(student: AnyConfig, teacher: AnyConfig) -> Iterator[Problem]:
    """What keeps `teacher` from teaching `student`, a model of the same task that did not grow out of it."""
    return family_of(student).unteachable(student, teacher)


def ungrowable(small: AnyConfig, large: AnyConfig) -> Iterator[Problem]:
    """What keeps `large` from growing out of `small`. Both can be built."""
    before, after = family_of(small), family_of(large)
    if before is after:
        yield from after.ungrowable(small, large)
    elif set(tasks_for(small)).isdisjoint(tasks_for(large)):
        message = f"a model of {_tasks(large)} can't grow out of one of {_tasks(small)}"
        yield (), message, "give each task a chain of its own"
    else:
        message = f"a model under {after.field} can't grow out of one under {before.field}"
        yield (), message, START_FRESH


def is_copy(small: AnyConfig, large: AnyConfig) -> bool:
    """Whether `large` has the weights of `small`, name by name: nothing grows, under any expansion."""
    if small == large:
        return True
    family = family_of(large)
    return family is family_of(small) and not family.grows and not list(family.ungrowable(small, large))


def _tasks(model: AnyConfig) -> str:
    return "task " + " or ".join(task.name for task in tasks_for(model))
