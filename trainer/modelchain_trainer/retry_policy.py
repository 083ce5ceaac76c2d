"""Reading from a store that may be away for a while: a network error is waited out, and never taken for the
end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from modelchain.store import StoreUnavailable

DEFAULT_SECONDS = 600.0

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 20.0

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Stopped(Exception):  # noqa: N818
    """The reader was closed while it waited; nobody wants the answer any more."""


class RetryPolicy:
    """Tries again, with growing pauses, for as long as a store is unavailable, up to `seconds` for one
    request.
    """

    def __init__(self, seconds: float = DEFAULT_SECONDS) -> None:
        self.seconds = seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End all waiting at once; from now on requests raise Stopped."""
        self._stopped.set()

    def call(self, request: Callable[[], _Result]) -> _Result:
        """The request's result.

        Raises StoreUnavailable (which may be retried from a checkpoint) when the time is up, Stopped after
        `stop`, and at once whatever else the request raises.
        """
        give_up = time.monotonic() + self.seconds
        pause = _FIRST_PAUSE
        while True:
            if self._stopped.is_set():
                raise Stopped
            try:
                return request()
            except StoreUnavailable as error:
                if time.monotonic() + pause > give_up:
                    raise StoreUnavailable(f"{error} (tried for {self.seconds:.0f} s)") from error
                _logger.warning("%s; trying again in %.1f s", error, pause)
                self._stopped.wait(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
