"""What a growth keeps of the predecessor's function, dimension by dimension; and which growth is
impossible."""

from __future__ import annotations

from dataclasses import dataclass

from modelchain.errors import ConfigurationError
from modelchain.exactness import Change, Fidelity, growth_changes
from modelchain.families import AnyConfig
from modelchain.growth import ungrowable
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import WidthExpansion
from modelchain_trainer.model.layers import check_buildable


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
    return ExpansionPlan(growth_changes(small, large, chosen))
