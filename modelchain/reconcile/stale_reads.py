"""What may be done on an observation of jobs that may be stale, if the chain was not changed since.

Anything else needs a fresh read of the jobs first.
"""

from __future__ import annotations

from collections.abc import Container

from modelchain.reconcile.actions import Decision, StartJob
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainStatus, StageStatus, commitment


def is_report_only(before: ChainStatus, decision: Decision) -> bool:
    """Whether nothing is to be done, and nothing is to be written that later decisions build on, but that stages
    are complete: that is what the store says, whatever becomes of their jobs.
    """
    return not decision.actions and _all_as_before(before, decision.status)


def only_starts_fresh_stages(
    before: ChainStatus, decision: Decision, chain: ResolvedChain, seen: Container[tuple[str, int]]
) -> bool:
    """Whether all there is to do is to start stages that never had a job, and to report others as finished.

    A job is made after its attempt stands in the status, and attempts count on over edits: so a stage without an
    attempt has no job, whatever a list of jobs says. And a job that was seen to end never lives again: the job of a
    predecessor or teacher, for whose end a stage waits, has to be among those `seen` (stage and attempt).
    """
    begun = {action.stage for action in decision.actions if isinstance(action, StartJob)}
    if not begun or len(begun) != len(decision.actions):
        return False
    alone = {stage.name for stage in chain.baselines}
    if chain.max_parallel_stages is not None or begun & alone:
        return False  # the number of jobs at once depends on all of them
    if before.former_stages:
        return False  # one that was removed may have a job that trains the very same weights
    for other in {other.name for name in begun for other in chain.stage(name).needs}:
        status = before.find_stage(other)
        if status is not None and status.attempt > 0 and (status.name, status.attempt) not in seen:
            return False
    return _all_as_before(before, decision.status, begun)


def _all_as_before(before: ChainStatus, after: ChainStatus, begun: Container[str] = ()) -> bool:
    if [stage.name for stage in before.all_stages] != [stage.name for stage in after.all_stages]:
        return False
    for then, now in zip(before.all_stages, after.all_stages, strict=True):
        if now.name in begun:
            as_before = then.attempt == 0 and then.digest == now.digest
        else:
            as_before = commitment(then) == commitment(now) or _has_finished(then, now)
        if not as_before:
            return False
    return True


def _has_finished(then: StageStatus, now: StageStatus) -> bool:
    counts = (then.digest, then.attempt, then.failures) == (now.digest, now.attempt, now.failures)
    return counts and now.finished and not then.finished
