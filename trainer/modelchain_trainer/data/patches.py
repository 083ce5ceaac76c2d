"""Which patches of a picture the student sees where `training.patchDropout` leaves some out (FLIP, arXiv 2212.00794).

They follow from the seed, the epoch and the sample alone: the same on any ranks, in any micro-batches and attempts.

Shapes: n samples, N patches, K of them kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelchain_trainer.data.randomness import Purpose, bits, key


def choose_patches(
    seed: int, epoch: int, samples_n: NDArray[np.int64], *, patches: int, kept: int
) -> NDArray[np.int64]:
    """The places [n, K] of the patches that are kept, ascending: `kept` of `patches`, each set as likely."""
    numbers_nN = bits(key(Purpose.PATCHES, seed, epoch, samples_n.astype(np.uint64)), patches)
    return np.sort(np.argsort(numbers_nN, axis=-1, kind="stable")[:, :kept], axis=-1)
