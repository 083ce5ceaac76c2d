"""A stage that somebody else trains now is waited for: content decides, and one training of it is enough."""

from __future__ import annotations

from modelchain.reconcile.observation import LeaseView
from modelchain.reconcile.stage_context import Look


def foreign_lease(look: Look) -> LeaseView | None:
    """The fresh lease that another chain, or this chain in another cluster, holds on the stage."""
    lease = look.facts.lease if look.facts is not None else None
    if lease is None or not lease.fresh or lease.own:
        return None
    return lease
