"""What must hold before a decision is written and carried out: that it is due, that the cache suffices for it, that a
later snapshot still asks for it.
"""

from __future__ import annotations

import time

from modelchain.reconcile.actions import Action, Decision, StartJob
from modelchain.reconcile.stale_reads import is_report_only, only_starts_fresh_stages
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, StageReason, without_progress
from modelchain_operator.observe import ChainMemory, ClusterSnapshot, status_of

ENDING_SECONDS = 2.0  # usually from a stage's manifest to the end of its job: both go into one write


def due_in(
    before: ChainStatus | None,
    after: ChainStatus,
    decision: Decision,
    memory: ChainMemory,
    progress_seconds: float,
) -> float | None:
    """Seconds until there is something to do or to write; 0: now. None: there is nothing.

    Mere progress waits until `progress_seconds` after the last write; a stage that has just become complete waits a
    moment for the end of its job.
    """
    if not decision.actions and before == after:
        return None
    if before is None or not is_report_only(before, decision):
        return 0
    now = time.monotonic()
    if without_progress(before) == without_progress(after):
        return max(0, memory.written_at + progress_seconds - now)
    if any(stage.reason == StageReason.PREDECESSOR_ENDING for stage in decision.status.stages):
        memory.ending_since = memory.ending_since or now
        return max(0, memory.ending_since + ENDING_SECONDS - now)
    return 0


def may_act_on_cache(
    snapshot: ClusterSnapshot, chain: ResolvedChain, decision: Decision, memory: ChainMemory
) -> bool:
    """Whether a decision on the cache may be carried out: it is enough that nobody has changed the chain since, which
    the API server checks. Starting a stage builds on the status, so the last write of it has to be this process's own.
    """
    before = status_of(snapshot.body)
    if before is None:
        return False
    if is_report_only(before, decision):
        return True
    ours = snapshot.body["metadata"]["resourceVersion"] == memory.written_version
    seen = {(tree.place.stage, tree.place.attempt) for tree in snapshot.trees if tree.job is not None}
    return ours and not memory.refusals and only_starts_fresh_stages(before, decision, chain, seen)


def is_still_asked_for(action: Action, decision: Decision) -> bool:
    """Whether a later decision asks for the same. Jobs are compared by name, not by their progress."""
    if isinstance(action, StartJob):
        return action in decision.actions
    return any(
        type(other) is type(action) and not isinstance(other, StartJob) and other.job.name == action.job.name
        for other in decision.actions
    )
