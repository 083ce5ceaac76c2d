"""How many chains of a namespace train at a time, and whose turn it is: that of the oldest.

A chain takes a place with its first attempt and keeps it while something of it runs or comes next by itself. One that
waits for what does not come by itself (a store that is away, another chain's lease, a job that can't be created) gives
its place up until then, and so does one that is suspended or refused and has no job. Only
those stand in line whose status says that nothing but the limit holds them, so nobody waits behind a chain that could
not begin.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from modelchain.reconcile.refused import under_way
from modelchain.status import ChainStatus, ConditionType, StageReason
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.observe import status_of


def holds_place(status: ChainStatus | None) -> bool:
    """Whether a chain counts against the limit, by its status."""
    if status is None:
        return False
    # An attempt that was only announced has no job: its number is kept for the next try.
    if any(stage.job is not None or stage.reason == StageReason.STARTING for stage in under_way(status)):
        return True
    progressing = status.condition(ConditionType.PROGRESSING)
    moves = progressing is not None and progressing.status == "True"
    return moves and not in_line(status) and any(stage.attempt > 0 for stage in status.all_stages)


def in_line(status: ChainStatus | None) -> bool:
    """Whether nothing but the limit holds a stage of the chain, by its status."""
    return status is not None and any(
        stage.reason == StageReason.NAMESPACE_LIMIT for stage in status.all_stages
    )


@dataclass
class _Line:
    """The chains of a namespace."""

    running: set[Key]
    about_to_run: set[Key]  # decided; their statuses do not say so yet
    waiting: dict[Key, str]  # when each was made, as RFC 3339

    @property
    def taken(self) -> int:
        return len(self.running | self.about_to_run)

    def first(self, count: int) -> list[Key]:
        """Those whose turn is next, the oldest first."""
        return heapq.nsmallest(count, self.waiting, key=lambda key: (self.waiting[key], key))


class ChainLimit:
    """The places of all namespaces. Used in one event loop; nothing here waits, so no two chains take one place."""

    def __init__(self, limit: int | None, wake: Callable[[Key], None]) -> None:
        """`limit`: chains of a namespace that train at a time; None: all. `wake` is called for a chain whose turn may
        have come.
        """
        self._limit = limit
        self._wake = wake
        self._lines: defaultdict[str, _Line] = defaultdict(lambda: _Line(set(), set(), {}))

    def show(self, key: Key, body: Object | None) -> None:
        """The chain as it is now; None: it is gone. One that is being deleted holds up nobody."""
        if self._limit is None:
            return
        deleted = body is None or body["metadata"].get("deletionTimestamp") is not None
        status = None if body is None or deleted else status_of(body)
        line = self._lines[key.namespace]
        before = line.taken
        line.running.discard(key)
        line.about_to_run.discard(key)
        line.waiting.pop(key, None)
        if holds_place(status):
            line.running.add(key)
        elif body is not None and in_line(status):
            line.waiting[key] = _created(body)
        if line.taken < before:
            self._wake_next(line)
        if not (line.taken or line.waiting):
            del self._lines[key.namespace]

    def refusal(self, key: Key, body: Object) -> str:
        """Why no job of the chain may be made now; empty if it may."""
        if self._limit is None:
            return ""
        created = _created(body)
        line = self._lines[key.namespace]
        if key in line.running or key in line.about_to_run:
            return ""
        free = self._limit - line.taken
        if free > 0:
            older = sum((since, one) < (created, key) for one, since in line.waiting.items())
            if older < free:
                return ""
        return (
            f"{self._limit} chain(s) of namespace {key.namespace} train at a time, as the operator is set; "
            "its turn comes when an older one is done"
        )

    def decided(self, key: Key, *, starts: bool) -> None:
        """Whether a pass that was not refused makes a job: it takes a place before its status says so."""
        if self._limit is None:
            return
        line = self._lines[key.namespace]
        if starts:
            line.about_to_run.add(key)
        elif key in line.about_to_run:
            line.about_to_run.discard(key)
            self._wake_next(line)

    def _wake_next(self, line: _Line) -> None:
        assert self._limit is not None
        for key in line.first(self._limit - line.taken):
            self._wake(key)


def _created(body: Object) -> str:
    return body["metadata"].get("creationTimestamp") or ""
