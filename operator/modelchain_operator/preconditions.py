"""What must hold before a decision is written and carried out: that it is due, that the cache suffices for it, and that
a decision on a later snapshot still contains the action.
"""

from __future__ import annotations

import time

from modelchain.reconcile.actions import Action, Decision, StartJob
from modelchain.reconcile.stale_reads import is_report_only, only_starts_fresh_stages
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, StageReason, without_progress
from modelchain_operator.observe import ChainMemory, ClusterSnapshot

ENDING_SECONDS = 2.0  # a stage's job usually ends this soon after its manifest: both then go into one write


def due_in(
    before: ChainStatus | None,
    after: ChainStatus,
    decision: Decision,
    memory: ChainMemory,
    progress_seconds: float,
) -> float | None:
    """Seconds until the decision is to be written or carried out; 0: now; None: nothing has changed.

    Where only progress has changed, it is written `progress_seconds` after the last write. The write that reports a
    stage complete waits up to ENDING_SECONDS for the end of its job.
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
    """Whether a decision that is based on the cache may be carried out without a fresh read: where it is enough that
    nobody has changed the chain since, which the API server checks. Starting a stage relies on the status, so the last
    write of the chain has to be this process's own.
    """
    before = snapshot.status
    if before is None:
        return False
    if is_report_only(before, decision):
        return True
    ours = snapshot.body["metadata"]["resourceVersion"] == memory.written_version
    seen = {(tree.place.stage, tree.place.attempt) for tree in snapshot.trees if tree.job is not None}
    return ours and not memory.refusals and only_starts_fresh_stages(before, decision, chain, seen)


def is_still_asked_for(action: Action, decision: Decision) -> bool:
    """Whether a later decision contains the same action. Jobs are compared by name, not by their state."""
    if isinstance(action, StartJob):
        return action in decision.actions
    return any(
        type(other) is type(action) and not isinstance(other, StartJob) and other.job.name == action.job.name
        for other in decision.actions
    )
