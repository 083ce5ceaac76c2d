"""Why a chain waits or has failed, what the operator will do and when, and what a person can do: in one paragraph.

The advice is the failure-modes page's (docs/failure-modes.md): a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelchain.reconcile.observation import StoreProblem
from modelchain.reconcile.summary import duration
from modelchain.status import ChainPhase, ChainStatus, ConditionType, StagePhase, StageReason, StageStatus
from modelchain.text import one_line
from modelchain.times import from_rfc3339

_WAITS_ITS_TURN = frozenset(
    {
        StageReason.PREDECESSOR_INCOMPLETE,
        StageReason.PREDECESSOR_ENDING,
        StageReason.PREDECESSOR_FAILED,
        StageReason.CHAIN_INCOMPLETE,
    }
)


@dataclass(frozen=True)
class Advice:
    """What some reasons for which a stage does not start mean, and what follows from them."""

    reasons: tuple[str, ...]
    meaning: str
    person: str  # what a person can do
    operator: str  # what the operator does meanwhile
    passes: bool = False  # by itself, in time


_ASKS_STORE = "The operator keeps trying, and goes on once the store can be read"
_SETS_UP = "Kubernetes tries again by itself"

ADVICE = (
    Advice(
        (StageReason.PREDECESSOR_INCOMPLETE,),
        "the stage that it grows out of or learns from is not done",
        "wait",
        "The operator starts it when that stage is complete",
        passes=True,
    ),
    Advice(
        (StageReason.LEASE_HELD,),
        "another chain trains this very stage",
        "nothing: its weights are used when it is done",
        "The operator watches that chain's lease, and takes the stage over if it runs out",
        passes=True,
    ),
    Advice(
        (StageReason.NAMESPACE_LIMIT,),
        "as many chains of the namespace train as the operator lets at a time",
        "wait, suspend another chain, or have `maxRunningChains` raised",
        "The operator starts the oldest that waits when one is done",
        passes=True,
    ),
    Advice(
        (StageReason.QUEUED,),
        "Kueue holds the job; the message has its own words",
        "wait, or look at the queue",
        "The job starts when the queue lets it",
        passes=True,
    ),
    Advice(
        (
            "Inadmissible",
            "QueueStopped",
            "ExceedsMaxQuota",
            "NoMatchingFlavor",
            "WorkloadDeactivated",
            "NoWorkload",
        ),
        "Kueue holds the job, and no time lets it go",
        "what Kueue says",
        "The job starts when the queue lets it",
    ),
    Advice(
        (StageReason.UNSCHEDULABLE,),
        "no node fits",
        "what the scheduler says: fewer GPUs, smaller requests in `job.resources`, another node selector, "
        "tolerations of taints; `kubectl uncordon` nodes that it calls unschedulable",
        "The scheduler keeps looking, and the pods start when they fit; an edit replaces the job",
    ),
    Advice(
        ("ErrImagePull", "ImagePullBackOff"),
        "the image can't be pulled",
        "check `spec.image`, and `imagePullSecrets` in `job.podTemplate`",
        "The kubelet tries again by itself, ever more rarely; an edit replaces the job",
    ),
    Advice(
        ("InvalidImageName",),
        "`spec.image` is no name of an image",
        "correct it",
        "The edit replaces the job",
    ),
    Advice(
        ("ErrImageNeverPull",),
        "the image is not on the node, and is not to be pulled",
        "load it onto the nodes, or let it be pulled",
        "The kubelet tries again by itself; an edit replaces the job",
    ),
    Advice(
        ("CreateContainerConfigError",),
        "a Secret, a ConfigMap or a key of one is missing, or the image would run as root",
        "create what it names, or do what it says about the user",
        f"{_SETS_UP}; an edit replaces the job",
    ),
    Advice(
        ("FailedMount",),
        "a Secret, a ConfigMap, a key of one or a volume is missing",
        "create what it names",
        _SETS_UP,
    ),
    Advice(
        (
            "FailedAttachVolume",
            "FailedMapVolume",
            "FailedCreatePodSandBox",
            "FailedPrepareDynamicResources",
        ),
        "a node can't set the pod up",
        "what the message says; where it is that node alone, keep pods away from it (`kubectl cordon`)",
        _SETS_UP,
    ),
    Advice(
        ("NoController",),
        "nobody looks after the job",
        "have the controller run that the message names",
        "The job starts when it does",
    ),
    Advice(
        ("FailedCreate",),
        "the pods are refused: by a quota, a Pod Security level or a webhook that does not answer, or for a priority "
        "class or a service account that is not there",
        "what the message says; of Pod Security, see security",
        "The pods are asked for again and again",
    ),
    Advice(
        (StageReason.BACKEND_UNAVAILABLE,),
        "no job can be made: PyTorchJob is not installed, a webhook does not answer, an admission rule refuses, or "
        "Kueue would not hold it",
        "what the message says; it is asked again every 30 seconds",
        "The operator asks again every 30 seconds",
    ),
    Advice(
        (StageReason.BACK_OFF,),
        "an attempt has failed",
        "wait; the message says why it failed and when the next one starts",
        "The next attempt goes on from the latest checkpoint",
        passes=True,
    ),
    Advice(
        (StoreProblem.UNAVAILABLE,),
        "the store does not answer",
        "look at the store, and at the way to it (DNS, NetworkPolicy, proxy)",
        _ASKS_STORE,
    ),
    Advice(
        (StoreProblem.FORBIDDEN,),
        "the store refuses the keys, the Secret has none, or the administrator does not let chains use this store",
        "what the message says: correct the Secret or `spec.store`, or have the rights of the keys or the operator's "
        "settings changed",
        _ASKS_STORE,
    ),
    Advice(
        (StoreProblem.MISCONFIGURED,),
        "what answers is no store, or not as it must, or has no such bucket",
        "correct `spec.store` as the message says",
        _ASKS_STORE,
    ),
    Advice(
        (StoreProblem.UNREADABLE,),
        "reading the store failed in an unforeseen way: a defect",
        "report what the operator's log says",
        _ASKS_STORE,
    ),
    Advice(
        (StoreProblem.DAMAGED,),
        "something lies in the store that can't be what it says it is",
        "restore it",
        _ASKS_STORE,
    ),
    Advice(
        (StageReason.NODE_UNREACHABLE,),
        "a node that does not answer holds a pod of the last attempt",
        "bring the node back, or delete the node object once its machine is certainly off",
        "The operator waits: a pod that may still live must not meet another",
    ),
    Advice(
        (StageReason.DELETION_STUCK,),
        "something holds a job that was deleted long ago",
        "have what the message names finish, or end it by hand",
        "The operator waits: a job that may still live must not meet another",
    ),
)
# Reasons that last until a person acts: what alerts are about. (A queue admits a job by itself, and another chain that
# trains the same stage completes it.)
NEEDS_A_PERSON = frozenset(reason for advice in ADVICE if not advice.passes for reason in advice.reasons)
_BY_REASON = {reason: advice for advice in ADVICE for reason in advice.reasons}


@dataclass(frozen=True)
class Situation:
    """What is known of a chain in a cluster."""

    name: str  # namespace/name
    status: ChainStatus | None  # None: no operator has looked at it
    generation: int | None = None  # of the spec as it is now
    deleting: bool = False
    warnings: Sequence[str] = ()  # notes of Events of type Warning, the newest first


def explain(situation: Situation, now: float) -> str:
    """One paragraph of whole sentences. `now` in seconds since the epoch."""
    status, name = situation.status, situation.name
    if situation.deleting:
        return (
            f"{name} is being deleted: its jobs end, its artifacts stay in the store. There is nothing to do."
        )
    if status is None:
        return (
            f"No operator has looked at {name} yet. See whether one is running, and whether it watches this "
            "namespace."
        )
    parts = [*_behind(situation), *_body(situation.name, status, now)]
    text = " ".join(parts)
    warning = next((note for note in situation.warnings if not _is_said(note, text, status)), None)
    if warning is not None and status.phase is not ChainPhase.COMPLETE:
        text += f" The latest warning was: {_sentence(warning)}"
    return text


def _is_said(note: str, text: str, status: ChainStatus) -> bool:
    """Whether an Event's words stand in the text, or go around words of the status that do."""
    ends = [stage.last_ended.message for stage in status.all_stages if stage.last_ended is not None]
    messages = (*(stage.message for stage in status.all_stages), *ends)
    return note in text or any(message and message in note and message in text for message in messages)


def _behind(situation: Situation) -> list[str]:
    status, generation = situation.status, situation.generation
    seen = status.observed_generation if status is not None else None
    if seen is None or generation is None or seen >= generation:
        return []
    return ["The last edit was not looked at by the operator yet; what follows is about the spec before it."]


def _body(name: str, status: ChainStatus, now: float) -> list[str]:
    accepted = status.condition(ConditionType.ACCEPTED)
    if accepted is not None and accepted.status == "False":
        runs = [stage.name for stage in status.all_stages if stage.phase is StagePhase.RUNNING]
        going_on = f" What runs ({', '.join(runs)}) goes on, under control." if runs else ""
        return [
            f"{name} is refused as it is written now: {_sentence(accepted.message)}{going_on}",
            "The operator starts nothing until the chain is edited. Correct the fields that are named, and apply it.",
        ]
    missing = status.condition(ConditionType.ARTIFACTS_MISSING)
    if missing is not None and missing.status == "True":
        return [
            f"{name} has lost artifacts: {_sentence(missing.message)}",
            "The operator trains nothing for them until annotation modelchain.dev/retrain-missing has a new value.",
        ]
    if status.phase is ChainPhase.COMPLETE:
        return [f"{name} is complete: all weights are in the store. {_after(status)}"]
    failed = next((stage for stage in status.stages if stage.phase is StagePhase.FAILED), None)
    if failed is not None:
        others = "" if status.phase is ChainPhase.FAILED else " Other branches of the chain go on."
        ended = failed.last_ended
        tries = f" after {failed.failures} failed attempts" if failed.failures > 1 else ""
        why = ended.message if ended is not None and ended.message else failed.message
        remedy = "Correct what it names and edit the chain: an edit asks again, from the latest checkpoint."
        return [
            f"{name}: stage {failed.name} has failed for good{tries} ({failed.reason}): {_sentence(why)}{others}",
            f"The operator starts it no more by itself. {remedy}",
        ]
    if status.phase is ChainPhase.SUSPENDED:
        progressing = status.condition(ConditionType.PROGRESSING)
        why = "spec.suspend is set; unset it to go on" if progressing is None else progressing.message
        return [
            f"{name} is suspended: {_sentence(why)}",
            "The operator starts nothing, and what was trained stays.",
        ]
    stage = _in_question(status)
    return [f"{name}: {_sentence(status.message)}"] if stage is None else _of_stage(name, status, stage, now)


def _in_question(status: ChainStatus) -> StageStatus | None:
    """The stage to speak of: one that runs, else the first that waits for more than its turn."""
    unfinished = [stage for stage in status.all_stages if not stage.finished]
    running = [stage for stage in unfinished if stage.phase is StagePhase.RUNNING]
    waiting = [stage for stage in unfinished if stage.reason not in _WAITS_ITS_TURN]
    return next(iter([*running, *waiting, *unfinished]), None)


def _of_stage(name: str, status: ChainStatus, stage: StageStatus, now: float) -> list[str]:
    advice = _BY_REASON.get(stage.reason)
    if stage.phase is StagePhase.RUNNING and advice is None:
        far = f", step {stage.step} of {stage.steps}" if stage.step is not None and stage.steps else ""
        left = f", about {duration(status.eta_seconds)} to the end of the chain" if status.eta_seconds else ""
        problem = f" {_sentence(stage.message)}" if stage.message else ""
        return [
            f"{name}: stage {stage.name} is being trained, attempt {stage.attempt}{far}{left}.{problem}",
            *_earlier_end(stage),
            *([] if stage.message else ["There is nothing to do."]),
        ]
    said = [f"{name}: stage {stage.name} waits ({stage.reason}): {_sentence(stage.message)}"]
    if stage.retry_at is not None and (due := from_rfc3339(stage.retry_at)) > now:
        said.append(f"The operator starts the next attempt at {stage.retry_at}, in {duration(due - now)}.")
    elif advice is not None:
        said.append(f"{advice.operator}.")
    if advice is not None:
        said.append(f"What you can do: {advice.person}.")
    elif stage.reason in frozenset(StageReason):
        said.append("The operator goes on by itself. There is nothing to do but wait.")
    else:  # Kubernetes's own word, of which nothing is known here
        said.append(
            "The operator goes on when it has passed. Whether it does so by itself, only what it says can tell."
        )
    return said


def _earlier_end(stage: StageStatus) -> list[str]:
    ended = stage.last_ended
    if ended is None:
        return []
    return [f"Attempt {ended.attempt} ended with {ended.reason}: {_sentence(ended.message)}"]


def _after(status: ChainStatus) -> str:
    compared = status.condition(ConditionType.BASELINE_COMPLETE)
    if compared is None or compared.status == "True":
        return "There is nothing to do."
    return f"Models are trained alone to compare with it: {_sentence(compared.message)}"


def _sentence(text: str) -> str:
    text = one_line(text) or "nothing more is known"
    return text if text.endswith((".", "!", "?")) else f"{text}."
