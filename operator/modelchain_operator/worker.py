"""Takes chains from the queue, runs their passes, and queues those again whose pass failed."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from modelchain_operator.kubernetes.api import ApiError, Conflict, Unavailable
from modelchain_operator.kubernetes.key import Key
from modelchain_operator.telemetry.metrics import Metrics
from modelchain_operator.work_queue import KeyQueue

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 60.0  # between passes that fail
PASS_SECONDS = 120.0  # a pass that takes longer is cancelled


class Worker:
    """Runs passes. Any number of `run` may go on in one event loop."""

    def __init__(
        self, reconcile: Callable[[Key], Awaitable[None]], queue: KeyQueue, metrics: Metrics
    ) -> None:
        self._reconcile = reconcile
        self._queue = queue
        self._metrics = metrics
        self._failures: Counter[Key] = Counter()  # failed passes in a row

    async def run(self) -> None:
        """Take chains from the queue until it is closed."""
        while (taken := await self._queue.get()) is not None:
            key, waited = taken
            self._metrics.queue_lag(waited)
            began = time.monotonic()
            try:
                async with asyncio.timeout(PASS_SECONDS):
                    await self._reconcile(key)
            except Exception as error:  # noqa: BLE001  one chain's failure must not end the operator
                self._retry(key, error)
            else:
                self._failures.pop(key, None)
            finally:
                self._queue.done(key)
                self._metrics.pass_ended(time.monotonic() - began)

    def _retry(self, key: Key, error: Exception) -> None:
        self._failures[key] += 1
        failures = self._failures[key]
        wait = min(LONGEST_WAIT_SECONDS, 0.25 * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.25)  # noqa: S311
        if isinstance(error, Conflict):
            wait = 0.05 * failures
            logger.debug("%s: changed meanwhile: %s", key, error)
        elif isinstance(error, Unavailable):
            wait = max(wait, error.retry_after or 0.0)
            logger.warning("%s: %s; again in %.1f s", key, error, wait)
        elif isinstance(error, ApiError):
            logger.error("%s: %s; again in %.0f s", key, error, wait)
        elif isinstance(error, TimeoutError):
            logger.error("%s: a pass took longer than %.0f s; again in %.0f s", key, PASS_SECONDS, wait)
        else:
            logger.error("%s: a pass failed; again in %.0f s", key, wait, exc_info=error)
        self._metrics.pass_failed(type(error).__name__ if isinstance(error, ApiError) else "Internal")
        self._queue.add_after(key, wait)
