"""How often an epoch sees the samples of a source, where a chain's data have several.

An epoch is one pass over the mix. A source that is repeated 2.5 times gives each of its samples twice, and half of them
once more; in the next epoch it is the other half's turn.
"""

from __future__ import annotations


def seen_in_epoch(samples: int, repeat: float) -> int:
    """How many samples of a source with so many an epoch sees, repetitions counted; a half is rounded to even."""
    return round(samples * repeat)
