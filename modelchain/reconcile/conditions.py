"""The conditions of a chain, each with a reason and a message that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from modelchain.reconcile.baseline import Verdict
from modelchain.reconcile.completion import is_missing, was_missing
from modelchain.reconcile.observation import JobPhase, StoreProblem
from modelchain.reconcile.stage_context import StageContext
from modelchain.reconcile.stuck_jobs import blocked_text, is_blocked, why_blocked
from modelchain.status import (
    MAX_CONDITION_MESSAGE,
    ChainPhase,
    ChainStatus,
    Condition,
    ConditionType,
    StagePhase,
    StageReason,
    cut,
    word,
)
from modelchain.times import rfc3339

_Entry: TypeAlias = tuple[ConditionType, bool, str, str]  # whether it holds, why in a word, and in a sentence

# Nothing goes on until a person, or something else, acts.
_BLOCKED = frozenset(
    {
        StageReason.BACKEND_UNAVAILABLE,
        StageReason.DELETION_STUCK,
        StageReason.LEASE_HELD,
        StageReason.NODE_UNREACHABLE,
        StageReason.NAMESPACE_LIMIT,
        StageReason.NOT_OBSERVED,
        StageReason.QUEUED,
        *(problem.value for problem in StoreProblem),
    }
)


def conditions(
    previous: Sequence[Condition],
    contexts: Sequence[StageContext],
    phase: ChainPhase,
    compared: Verdict | None = None,
    *,
    generation: int | None,
    now: float,
) -> tuple[Condition, ...]:
    """All conditions of a chain that was accepted. Those whose status did not change keep their time. `compared`: how
    its models trained alone stand, if it asks for some.
    """
    entries: tuple[_Entry, ...] = (
        (ConditionType.ACCEPTED, True, "Valid", ""),
        (ConditionType.PROGRESSING, *_progressing(contexts, phase)),
        (ConditionType.COMPLETE, *_complete(contexts, phase)),
        (ConditionType.FAILED, *_failed(contexts)),
        (ConditionType.UNRESPONSIVE, *_unresponsive(contexts)),
        (ConditionType.ARTIFACTS_MISSING, *_artifacts_missing(contexts)),
        (ConditionType.DISRUPTED, *_disrupted(contexts)),
    )
    if compared is not None:
        entry = (ConditionType.BASELINE_COMPLETE, compared.holds, compared.reason, compared.message)
        entries = (*entries, entry)
    entries = tuple(_still_missing(previous, contexts, entry) for entry in entries)
    entries = (*_summary({entry[0]: entry for entry in entries}, phase), *entries)
    ours = tuple(_condition(previous, *entry, generation=generation, now=now) for entry in entries)
    # Conditions of other versions are theirs to remove.
    return (*ours, *(condition for condition in previous if condition.type not in tuple(ConditionType)))


def refused(
    previous: ChainStatus | None, problems: Sequence[str], *, generation: int | None, now: float
) -> ChainStatus:
    """The status of a chain that can't be resolved: condition Accepted is False and names every problem.

    Its phase stays as long as something runs; nothing else makes progress then. The generation counts as observed:
    whoever waits for an answer to an edit gets one.
    """
    status = previous or ChainStatus()
    text = " | ".join(problems)
    runs = any(stage.phase in (StagePhase.RUNNING, StagePhase.QUEUED) for stage in status.stages)
    words = {
        ConditionType.READY: (False, text),
        ConditionType.STALLED: (True, text),
        ConditionType.ACCEPTED: (False, text),
        **({} if runs else {ConditionType.PROGRESSING: (False, "the chain is refused")}),
    }
    entries = [
        _condition(status.conditions, kind, holds, "Invalid", message, generation=generation, now=now)
        for kind, (holds, message) in words.items()
    ]
    kept = [one for one in status.conditions if one.type not in words]
    return status.model_copy(
        update={
            "phase": status.phase if runs else ChainPhase.REFUSED,
            "message": cut(f"refused: {text}"),
            "observed_generation": status.observed_generation if generation is None else generation,
            "conditions": (*entries, *kept),
        }
    )


def unwritable(previous: ChainStatus | None, why: str, *, generation: int | None, now: float) -> ChainStatus:
    """The status of a chain whose next one the API server refuses: what was written before, and that.

    The generation does not count as observed: nothing was done about it.
    """
    status = previous or ChainStatus()
    text = f"the API server refuses the status of this chain, and nothing is done before it takes one: {why}"
    entries = [
        _condition(
            status.conditions, kind, holds, StageReason.STATUS_REFUSED, text, generation=generation, now=now
        )
        for kind, holds in ((ConditionType.READY, False), (ConditionType.STALLED, True))
    ]
    kept = [one for one in status.conditions if one.type not in {entry.type for entry in entries}]
    return status.model_copy(update={"message": cut(text), "conditions": (*entries, *kept)})


def _condition(
    previous: Sequence[Condition],
    kind: str,
    holds: bool,
    reason: str,
    message: str,
    *,
    generation: int | None,
    now: float,
) -> Condition:
    status = "True" if holds else "False"
    before = next((condition for condition in previous if condition.type == kind), None)
    same = before is not None and before.status == status
    return Condition(
        type=kind,
        status=status,
        reason=word(reason),
        message=cut(message, MAX_CONDITION_MESSAGE),
        last_transition_time=before.last_transition_time if before is not None and same else rfc3339(now),
        observed_generation=generation,
    )


def _progressing(contexts: Sequence[StageContext], phase: ChainPhase) -> tuple[bool, str, str]:
    missing = _artifacts_missing(contexts)
    if phase is ChainPhase.COMPLETE:
        return False, "Complete", ""
    if phase is ChainPhase.FAILED:
        return False, "Failed", ""
    if phase is ChainPhase.SUSPENDED:
        return False, *_suspended(contexts)
    running = [
        context.stage.name
        for context in contexts
        if context.status.phase is StagePhase.RUNNING and context.status.reason not in _BLOCKED
    ]
    if running:
        problems = [
            context.status.message
            for context in contexts
            if context.status.name in running and context.status.message
        ]
        return True, "Running", "; ".join([f"training {', '.join(running)}", *problems[:1]])
    if missing[0]:
        return False, missing[1], missing[2]
    waiting = [
        context
        for context in contexts
        if not context.status.finished
        and context.status.phase is not StagePhase.FAILED
        and context.status.reason not in (StageReason.PREDECESSOR_INCOMPLETE, StageReason.PREDECESSOR_FAILED)
    ]
    first = next((context.status for context in waiting if not _is_blocked(context)), None)
    if first is not None:
        return True, first.reason or first.phase.value, f"stage {first.name}: {first.message}"
    blocked = waiting[0].status if waiting else None
    if blocked is None:
        return False, "Unknown", ""
    return False, blocked.reason, f"stage {blocked.name}: {blocked.message}"


def _suspended(contexts: Sequence[StageContext]) -> tuple[str, str]:
    """Why the chain is suspended, and what of it does not end."""
    why, now = contexts[0].suspended, contexts[0].now
    live = (job for context in contexts for job in context.jobs if job.live)
    held = next((job for job in live if is_blocked(job, now)), None)
    if held is None:
        return StageReason.SUSPENDED, why
    return why_blocked(held, now), f"{why}; {blocked_text(held)}"


def _is_blocked(context: StageContext) -> bool:
    """Whether the stage waits for something that does not come by itself. What a job that does not run gives as its
    reason is such a thing too (an image that can't be pulled, no node that fits, a quota, a queue that is stopped).
    """
    job = context.current_job
    waits = job is not None and job.phase in (JobPhase.PENDING, JobPhase.QUEUED) and bool(job.reason)
    return waits or context.status.reason in _BLOCKED


def _complete(contexts: Sequence[StageContext], phase: ChainPhase) -> tuple[bool, str, str]:
    done = sum(context.status.finished for context in contexts)
    if phase is ChainPhase.COMPLETE:
        return True, "AllStagesComplete", f"all {done} stages are complete"
    return False, "StagesIncomplete", f"{done} of {len(contexts)} stages are complete"


def _failed(contexts: Sequence[StageContext]) -> tuple[bool, str, str]:
    """Whether a stage has failed for good; others may go on (Progressing)."""
    failed = next((context.status for context in contexts if context.status.phase is StagePhase.FAILED), None)
    if failed is None:
        return False, "NotFailed", ""
    return True, failed.reason, f"stage {failed.name}: {failed.message}"


def _summary(entries: Mapping[ConditionType, _Entry], phase: ChainPhase) -> tuple[_Entry, _Entry]:
    """Ready and Stalled, in the sense of kstatus: there is what was asked for; it will not be until a person acts.

    What is waited for (a queue, a store that is away, the next attempt) is neither.
    https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus
    """
    missing, failed = entries[ConditionType.ARTIFACTS_MISSING], entries[ConditionType.FAILED]
    for kind, stalled in ((missing, missing[1]), (failed, phase is ChainPhase.FAILED)):
        if stalled:
            return (ConditionType.READY, False, *kind[2:]), (ConditionType.STALLED, True, *kind[2:])
    holds = phase is ChainPhase.COMPLETE
    why = entries[ConditionType.COMPLETE if holds else ConditionType.PROGRESSING]
    return (ConditionType.READY, holds, *why[2:]), (ConditionType.STALLED, False, "NotStalled", "")


def _unresponsive(contexts: Sequence[StageContext]) -> tuple[bool, str, str]:
    for context in contexts:
        status = context.status
        ended = status.last_ended
        if status.finished or ended is None or ended.reason != StageReason.STALLED:
            continue
        if status.attempt > ended.attempt and status.activity is not None:
            continue  # the next attempt makes progress
        return True, "NoProgress", f"stage {status.name}, attempt {ended.attempt}: {ended.message}"
    return False, "Responsive", ""


def _disrupted(contexts: Sequence[StageContext]) -> tuple[bool, str, str]:
    """Whether a stage was given up because its attempts never last: something outside of it has to be fixed."""
    for context in contexts:
        status = context.status
        if status.phase is StagePhase.FAILED and status.reason == StageReason.DISRUPTIONS_EXHAUSTED:
            text = f"stage {status.name}: {status.message}. Find out what ends its pods, then edit the chain"
            return True, StageReason.DISRUPTIONS_EXHAUSTED, text
    return False, "NotDisrupted", ""


def _still_missing(previous: Sequence[Condition], contexts: Sequence[StageContext], entry: _Entry) -> _Entry:
    """What was missing stays so until the store shows otherwise: not having read it proves nothing."""
    kind, holds, _, _ = entry
    before = next((condition for condition in previous if condition.type == kind), None)
    if kind is not ConditionType.ARTIFACTS_MISSING or holds or before is None or before.status != "True":
        return entry
    return (kind, True, before.reason, before.message) if any(map(was_missing, contexts)) else entry


def _artifacts_missing(contexts: Sequence[StageContext]) -> tuple[bool, str, str]:
    missing = [context for context in contexts if is_missing(context)]
    if not missing:
        return False, "ArtifactsPresent", ""
    damaged = next(
        (context.facts.message for context in missing if context.facts is not None and context.facts.message),
        "",
    )
    folders = ", ".join(
        f"{context.stage.name} ({context.stage.store.uri_of(context.stage.folder)})" for context in missing
    )
    text = f"complete once, now gone or damaged: {folders}{': ' + damaged if damaged else ''}"
    remedy = "Nothing is trained again unless asked for: restore them, or ask to retrain"
    observed = missing[0].observed
    if observed.retrain_missing and not observed.retrains_missing:
        remedy += f' (anew: what "{cut(observed.retrain_missing, 64)}" asked for was done)'
    return True, "ArtifactsMissing", f"{text}. {remedy}"
