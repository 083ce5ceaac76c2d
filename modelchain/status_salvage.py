"""What can be kept of a status that this version does not understand as a whole.

After a roll-back the status is that of a newer version, with phases that this one does not know. What was counted and
what was complete must not be lost with them: a stage without a status is looked for in the store, and trained if its
weights are gone, which nobody has asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

ROUNDS = 8  # a part without which another can't stand is taken out in the next


def without_unreadable(value: Mapping[str, Any], errors: Iterable[ErrorDetails]) -> dict[str, Any]:
    """A copy of a status (or of a part of it) less the values that these errors are about, each as small as may be.

    A stage in an unknown phase is complete if it says when it was: its phase was another word for that.
    """
    kept = copy.deepcopy(dict(value))
    for error in sorted(errors, key=lambda one: _order(one["loc"]), reverse=True):  # lists from their end
        path = error["loc"][:-1] if error["type"] == "missing" else error["loc"]
        around = _around(kept, path)
        if isinstance(around, dict) and path[-1] == "phase" and around.get("completedAt"):
            around["phase"] = "Complete"
        elif isinstance(around, dict):
            around.pop(path[-1], None)
        elif isinstance(around, list) and isinstance(path[-1], int) and path[-1] < len(around):
            del around[path[-1]]
    return kept


def _around(value: Any, path: tuple[int | str, ...]) -> Any:
    """What holds the value at that path; None if there is no such place."""
    for part in path[:-1]:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value if path else None


def _order(path: tuple[int | str, ...]) -> tuple[tuple[bool, int, str], ...]:
    return tuple(
        (isinstance(part, str), 0, part) if isinstance(part, str) else (False, part, "") for part in path
    )
