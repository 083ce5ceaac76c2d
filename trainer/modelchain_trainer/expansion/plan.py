"""What a growth keeps of the predecessor's function, dimension by dimension; and which growth is
impossible."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelchain.errors import ConfigurationError
from modelchain.families import AnyConfig
from modelchain.growth import ungrowable
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, WidthExpansion
from modelchain_trainer.model.families import layout_of
from modelchain_trainer.model.layers import check_buildable
from modelchain_trainer.model.layout import Dimension, Kind


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
        return f"{self.dimension} {self.before} -> {self.after} ({self.fidelity}{reason})"


@dataclass(frozen=True)
class ExpansionPlan:
    """All dimensions that grow. Equal models have none: their growth is a copy."""

    changes: tuple[Change, ...]

    @property
    def fidelity(self) -> Fidelity:
        """That of the least exact change."""
        found = {change.fidelity for change in self.changes}
        return next((level for level in reversed(Fidelity) if level in found), Fidelity.EXACT)

    def __str__(self) -> str:
        return "; ".join(map(str, self.changes)) or "a copy (nothing grows)"


def plan_expansion(
    small: AnyConfig, large: AnyConfig, expansion: ResolvedExpansion | None = None
) -> ExpansionPlan:
    """What grows from `small` to `large`, and how exactly under `expansion` (default: Exact, Identity).

    Raises ConfigurationError where `large` cannot grow out of `small`: a width, depth, MLP or embedding that
    shrinks, or a head width, context or activation that differs. Images and patches may change
    either way. And always under `Fresh`: nothing grows.
    """
    chosen = expansion or ResolvedExpansion()
    if chosen.width is WidthExpansion.FRESH:
        raise ConfigurationError(
            "expansion.width is Fresh, under which nothing grows; give the weights' own model, or another width"
        )
    check_buildable(small)
    check_buildable(large)
    for part, message, remedy in ungrowable(small, large):
        raise ConfigurationError(f"{'.'.join(part)}: {message}; {remedy}")
    before, after = layout_of(small), layout_of(large)
    normed = frozenset(
        axis.space.stream
        for parameter in after.parameters.values()
        for axis in parameter.axes
        if axis.space.kind is Kind.BEFORE_NORM
    )
    return ExpansionPlan(
        tuple(
            Change(new.name, old.size, new.size, *_fidelity(old, new, chosen, normed))
            for old, new in zip(before.dimensions, after.dimensions, strict=True)
            if old.size != new.size
        )
    )


def _fidelity(
    old: Dimension, new: Dimension, expansion: ResolvedExpansion, normed: frozenset[str]
) -> tuple[Fidelity, str]:
    """How exact a change of one dimension is, and why it is no more; `normed` are streams that a norm writes."""
    if new.space is None:
        if expansion.depth is DepthExpansion.IDENTITY:
            return Fidelity.EXACT, ""
        return Fidelity.INEXACT, "copies of blocks"
    if new.space.kind is Kind.GRID:
        return Fidelity.NEAR_EXACT, "positional embeddings are interpolated"
    if new.space.kind is Kind.PATCH:
        return Fidelity.NEAR_EXACT, "patch filters are resampled"
    if expansion.width is WidthExpansion.SLICE:
        return Fidelity.INEXACT, "leading slices in a fresh model"
    if new.space.name in normed:
        if expansion.width is WidthExpansion.PADDED:
            return Fidelity.NEAR_EXACT, "ln_pre writes into the residual stream"
        if new.size % old.size:
            reason = f"{new.size} is no multiple of {old.size}, and ln_pre writes into the residual stream"
            return Fidelity.NEAR_EXACT, reason
    return Fidelity.EXACT, ""
