"""What a growth keeps of the predecessor's function, dimension by dimension; and which growth is
impossible."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelchain.errors import ConfigurationError
from modelchain.growth import ungrowable
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import DepthExpansion, ModelConfig, TextSpec, VisionSpec, WidthExpansion
from modelchain_trainer.model.clip import check_buildable


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
    small: ModelConfig, large: ModelConfig, expansion: ResolvedExpansion | None = None
) -> ExpansionPlan:
    """What grows from `small` to `large`, and how exactly under `expansion` (default: Exact, Identity).

    Raises ConfigurationError where `large` cannot grow out of `small`: a width, depth, MLP or embedding that
    shrinks, or a head width, context or activation that differs. Images and patches may change
    either way.
    """
    chosen = expansion or ResolvedExpansion()
    check_buildable(small)
    check_buildable(large)
    for part, message, remedy in ungrowable(small, large):
        raise ConfigurationError(f"{'.'.join(part)}: {message}; {remedy}")
    width, depth = chosen.width, chosen.depth
    candidates = (
        _image_size(small.vision, large.vision),
        _patch_size(small.vision, large.vision),
        _width("vision.width", small.vision, large.vision, width),
        _depth("vision.layers", small.vision, large.vision, depth),
        _units("vision MLP units", small.vision, large.vision, width),
        _width("text.width", small.text, large.text, width),
        _depth("text.layers", small.text, large.text, depth),
        _units("text MLP units", small.text, large.text, width),
        Change("embedDim", small.embed_dim, large.embed_dim, *_sliced(width)),
    )
    return ExpansionPlan(tuple(change for change in candidates if change.before != change.after))


def _width(
    name: str, small: VisionSpec | TextSpec, large: VisionSpec | TextSpec, width: WidthExpansion
) -> Change:
    fidelity, reason = _sliced(width)
    if fidelity is Fidelity.EXACT and isinstance(small, VisionSpec):
        if width is WidthExpansion.PADDED:
            fidelity, reason = Fidelity.NEAR_EXACT, "ln_pre writes into the residual stream"
        elif large.width % small.width:
            fidelity = Fidelity.NEAR_EXACT
            reason = (
                f"{large.width} is no multiple of {small.width}, and ln_pre writes into the residual stream"
            )
    return Change(name, small.width, large.width, fidelity, reason)


def _units(
    name: str, small: VisionSpec | TextSpec, large: VisionSpec | TextSpec, width: WidthExpansion
) -> Change:
    return Change(name, small.hidden_width, large.hidden_width, *_sliced(width))


def _depth(
    name: str, small: VisionSpec | TextSpec, large: VisionSpec | TextSpec, depth: DepthExpansion
) -> Change:
    if depth is not DepthExpansion.IDENTITY:
        return Change(name, small.layers, large.layers, Fidelity.INEXACT, "copies of blocks")
    return Change(name, small.layers, large.layers, Fidelity.EXACT)


def _image_size(small: VisionSpec, large: VisionSpec) -> Change:
    reason = "positional embeddings are interpolated"
    return Change("vision.imageSize", small.image_size, large.image_size, Fidelity.NEAR_EXACT, reason)


def _patch_size(small: VisionSpec, large: VisionSpec) -> Change:
    reason = "patch filters are resampled"
    return Change("vision.patchSize", small.patch_size, large.patch_size, Fidelity.NEAR_EXACT, reason)


def _sliced(width: WidthExpansion) -> tuple[Fidelity, str]:
    if width is WidthExpansion.SLICE:
        return Fidelity.INEXACT, "leading slices in a fresh model"
    return Fidelity.EXACT, ""
