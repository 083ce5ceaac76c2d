"""Places where a test may kill the trainer, to see that nothing half done looks complete.

MODELCHAIN_FAILPOINT=<name> or <name>:<n> kills this process, as `kill -9` does, when it reaches the place of
that name (for the n-th time). Not set, it costs one look at the environment; nobody sets it but tests.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

FAILPOINT_VARIABLE = "MODELCHAIN_FAILPOINT"

_reached: Counter[str] = Counter()


def reach(name: str) -> None:
    """Die here, if the environment says so."""
    wanted, _, count = os.environ.get(FAILPOINT_VARIABLE, "").partition(":")
    if wanted != name:
        return
    _reached[name] += 1
    if _reached[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
