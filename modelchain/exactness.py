"""What growth keeps of the predecessor's function, dimension by dimension.

The trainer's growth asks the same (`modelchain_trainer.expansion.plan`), and tests measure that what is said here to be
exact is, for every family.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelchain.families import AnyConfig, family_of
from modelchain.families.family import Dimension, Extent
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion


class Fidelity(StrEnum):
    """How much of the function survives, most first."""

    EXACT = "exact"  # but for rounding
    NEAR_EXACT = "near-exact"
    INEXACT = "inexact"


@dataclass(frozen=True)
class Change:
    """One dimension that grows."""

    dimension: str  # a field of the model configuration, e.g. vision.width
    before: int
    after: int
    fidelity: Fidelity
    reason: str = ""  # why it is not exact

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.sizes} ({self.fidelity}{reason})"

    @property
    def sizes(self) -> str:
        """Before and after."""
        return f"{self.dimension} {self.before} -> {self.after}"


def growth_changes(small: AnyConfig, large: AnyConfig, expansion: ResolvedExpansion) -> tuple[Change, ...]:
    """What changes from `small` to `large`, which can grow out of it, and how exactly under `expansion`."""
    family = family_of(large)
    return tuple(
        Change(new.name, old.size, new.size, *_fidelity(old, new, expansion))
        for old, new in zip(family.dimensions(small), family.dimensions(large), strict=True)
        if old.size != new.size
    )


def _fidelity(old: Dimension, new: Dimension, expansion: ResolvedExpansion) -> tuple[Fidelity, str]:
    """How exact a change of one dimension is, and why it is no more."""
    if new.extent is Extent.DEPTH:
        if expansion.depth is DepthExpansion.IDENTITY:
            return Fidelity.EXACT, ""
        return Fidelity.INEXACT, "copies of blocks"
    if new.extent is Extent.IMAGE:
        return Fidelity.NEAR_EXACT, "positional embeddings are interpolated"
    if new.extent is Extent.PATCH:
        return Fidelity.NEAR_EXACT, "patch filters are resampled"
    if new.extent is Extent.PIXELS:
        return Fidelity.INEXACT, "filters see the image at another scale"
    if expansion.width is WidthExpansion.SLICE:
        return Fidelity.INEXACT, "leading slices in a fresh model"
    if new.extent is Extent.NORMED_WIDTH:
        if expansion.width is WidthExpansion.PADDED:
            return Fidelity.NEAR_EXACT, "ln_pre writes into the residual stream"
        if new.size % old.size:
            reason = f"{new.size} is no multiple of {old.size}, and ln_pre writes into the residual stream"
            return Fidelity.NEAR_EXACT, reason
    return Fidelity.EXACT, ""
