"""The observer's clock. The machine's own is set now and then: by NTP, or when a laptop or a virtual machine wakes up.

A deadline that was computed before would then pass at once, for every chain. So what a process sees happen it stamps
by `steady`, and shifts the stamps by `clock_step` when it compares them with the time of day.
"""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()
_ROUNDING = 1.0  # seconds that the two clocks may differ by without a step


def steady() -> float:
    """Seconds since the epoch by the time of day at which the process began. Never jumps."""
    return _OFFSET + time.monotonic()


def clock_step() -> float:
    """How far the time of day was set ahead since the process began, seconds; negative where it was set back."""
    step = time.time() - steady()
    return step if abs(step) > _ROUNDING else 0.0
