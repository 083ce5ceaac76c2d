"""Places where a test may kill or stop the trainer, to see that nothing half done looks complete.

MODELCHAIN_FAILPOINT=<name>[:<n>[:<signal>]] sends this process a signal (KILL if none is given, or for
example TERM) when it reaches the place of that name for the n-th time (1). Not set, a place costs one look at
the environment; nobody sets it but tests.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

FAILPOINT_VARIABLE = "MODELCHAIN_FAILPOINT"

_reached: Counter[str] = Counter()


def reach(name: str) -> None:
    """End here, if the environment says so."""
    wanted = os.environ.get(FAILPOINT_VARIABLE)
    if not wanted:
        return
    place, _, rest = wanted.partition(":")
    if place != name:
        return
    count, _, kind = rest.partition(":")
    _reached[name] += 1
    if _reached[name] == int(count or 1):
        os.kill(os.getpid(), signal.Signals[f"SIG{kind or 'KILL'}"])
