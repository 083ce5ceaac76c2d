"""What growth keeps of the predecessor's function, dimension by dimension.

The trainer's growth asks the same (`modelchain_trainer.expansion.plan`), and tests measure that what is said here to be
exact is, for every family.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

from modelchain.block import memoised
from modelchain.families import AnyConfig, family_of
from modelchain.families.family import Dimension, Extent
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion

APPROXIMATIONS: Final = Path(__file__).with_name("growth_figures.json")  # by tools/growth_figures.py


class Fidelity(StrEnum):
    """How much of the function survives, most first."""

    EXACT = "exact"  # but for rounding
    NEAR_EXACT = "near-exact"
    RESAMPLED = "resampled"  # what it knows of places in a picture is interpolated
    INEXACT = "inexact"


class Approximation(StrEnum):
    """The ways of growth that are near-exact or resample."""

    WIDTH = "width"  # of a stream that a norm writes into, by copies and a rest
    PADDED_WIDTH = "paddedWidth"  # of such a stream, by one copy and a rest
    IMAGE_SIZE = "imageSize"
    PATCH_SIZE = "patchSize"


@dataclass(frozen=True)
class Change:
    """One dimension that grows."""

    dimension: str  # a field of the model configuration, e.g. vision.width
    before: int
    after: int
    fidelity: Fidelity
    reason: str = ""  # why it is not exact
    approximation: Approximation | None = None  # how it is near-exact, or resamples

    @property
    def moves(self) -> tuple[float, float] | None:
        """How far growth of this kind moved embeddings of pictures, as a share of what tells them apart: the least and
        the most of what was measured, on small models. None of what is exact, and of what is inexact.
        """
        return None if self.approximation is None else _measured()[self.approximation]

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.sizes} ({self.fidelity}{reason})"

    @property
    def sizes(self) -> str:
        """Before and after."""
        return f"{self.dimension} {self.before} -> {self.after}"


@memoised(256)
def growth_changes(small: AnyConfig, large: AnyConfig, expansion: ResolvedExpansion) -> tuple[Change, ...]:
    """What changes from `small` to `large`, which can grow out of it, and how exactly under `expansion`."""
    family = family_of(large)
    return tuple(
        Change(new.name, old.size, new.size, *_fidelity(old, new, expansion))
        for old, new in zip(family.dimensions(small), family.dimensions(large), strict=True)
        if old.size != new.size
    )


def _fidelity(
    old: Dimension, new: Dimension, expansion: ResolvedExpansion
) -> tuple[Fidelity, str, Approximation | None]:
    """How exact a change of one dimension is, why it is no more, and of which kind if that was measured."""
    if new.extent is Extent.DEPTH:
        if expansion.depth is DepthExpansion.IDENTITY:
            return Fidelity.EXACT, "", None
        return Fidelity.INEXACT, "copies of blocks", None
    if new.extent is Extent.IMAGE:
        return Fidelity.RESAMPLED, "positional embeddings are interpolated", Approximation.IMAGE_SIZE
    if new.extent is Extent.PATCH:
        return Fidelity.RESAMPLED, "patch filters are resampled", Approximation.PATCH_SIZE
    if new.extent is Extent.PIXELS:
        return Fidelity.INEXACT, "filters see the image at another scale", None
    if expansion.width is WidthExpansion.SLICE:
        return Fidelity.INEXACT, "leading slices in a fresh model", None
    if new.extent is Extent.NORMED_WIDTH:
        if expansion.width is WidthExpansion.PADDED:
            return Fidelity.NEAR_EXACT, "ln_pre writes into the residual stream", Approximation.PADDED_WIDTH
        if new.size % old.size:
            reason = f"{new.size} is no multiple of {old.size}, and ln_pre writes into the residual stream"
            return Fidelity.NEAR_EXACT, reason, Approximation.WIDTH
    return Fidelity.EXACT, "", None


@cache
def _measured() -> dict[Approximation, tuple[float, float]]:
    measured = json.loads(APPROXIMATIONS.read_text(encoding="utf-8"))
    return {kind: (measured[kind]["least"], measured[kind]["most"]) for kind in Approximation}
