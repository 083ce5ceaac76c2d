"""When a decision is worth a write, and when it may be carried out without another look."""

from __future__ import annotations

import time

from modelchain.reconcile.actions import Action, Decision, StartJob
from modelchain.reconcile.stale_reads import is_report_only, only_starts_fresh_stages
from modelchain.reconcile.start import PREDECESSOR_ENDING
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, without_progress
from modelchain_operator.observe import ChainMemory, View, status_of

ENDING_SECONDS = 2.0  # from a stage's manifest to the end of its job, as a rule: both are told in one write


def due_in(
    before: ChainStatus | None,
    after: ChainStatus,
    decision: Decision,
    memory: ChainMemory,
    progress_seconds: float,
) -> float | None:
    """Seconds until there is something to do or to write; 0: now. None: there is nothing.

    It waits where mere progress was told less than `progress_seconds` ago, or where a stage that is complete gives way
    to the next in a moment.
    """
    if not decision.actions and before == after:
        return None
    if before is None or not is_report_only(before, decision):
        return 0
    now = time.monotonic()
    if without_progress(before) == without_progress(after):
        return max(0, memory.written_at + progress_seconds - now)
    if any(stage.reason == PREDECESSOR_ENDING for stage in decision.status.stages):
        memory.ending_since = memory.ending_since or now
        return max(0, memory.ending_since + ENDING_SECONDS - now)
    return 0


def suffices(view: View, chain: ResolvedChain, decision: Decision, memory: ChainMemory) -> bool:
    """Whether to carry out a decision it is enough that nobody has changed the chain since, which the API server sees
    to. What begins a stage builds on the status, so the last word in it has to be ours.
    """
    before = status_of(view.body)
    if before is None:
        return False
    if is_report_only(before, decision):
        return True
    ours = view.body["metadata"]["resourceVersion"] == memory.written_version
    seen = {(tree.place.stage, tree.place.attempt) for tree in view.trees if tree.job is not None}
    return ours and not memory.refusals and only_starts_fresh_stages(before, decision, chain, seen)


def is_asked_for(action: Action, decision: Decision) -> bool:
    """Whether another look still asks for it. Of jobs, what they are counts, not how far they have come."""
    if isinstance(action, StartJob):
        return action in decision.actions
    return any(
        type(other) is type(action) and not isinstance(other, StartJob) and other.job.name == action.job.name
        for other in decision.actions
    )
