"""What SIGTERM means to a rank: leave at once where nothing is lost by it, else at the next step.

No torch here: signals are handled before torch is imported, which takes seconds.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

MOST_STEPS_BETWEEN_AGREEMENTS = 8  # agreeing makes ranks wait for each other
SECONDS_BETWEEN_AGREEMENTS = 10.0  # at most, or a step: a pod has but its grace period for a checkpoint


class Terminated(BaseException):
    """Somebody asked this process to end."""


class StopRequest:
    """Whether somebody asked this process to end. Outside of `deferred` that raises Terminated at once."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT. In the main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; Terminated is raised at the end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise Terminated

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        first = not self.requested
        self.requested = True
        if first and not self._deferred:
            raise Terminated


def steps_between_agreements(seconds_per_step: float) -> int:
    """As many as fit into SECONDS_BETWEEN_AGREEMENTS, at least one."""
    fitting = int(SECONDS_BETWEEN_AGREEMENTS / max(seconds_per_step, 1e-3))
    return min(MOST_STEPS_BETWEEN_AGREEMENTS, max(1, fitting))
