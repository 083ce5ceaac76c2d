"""A stage that another chain trains now is waited for: its weights depend on its digest only, so one training is
enough.
"""

from __future__ import annotations

from modelchain.reconcile.observation import LeaseView
from modelchain.reconcile.stage_context import StageContext


def foreign_lease(context: StageContext) -> LeaseView | None:
    """The fresh lease that another chain, or this chain in another cluster, holds on the stage."""
    lease = context.facts.lease if context.facts is not None else None
    if lease is None or not lease.fresh or lease.own:
        return None
    return lease
