"""What people read under Events."""

from modelchain.status import (
    ChainPhase,
    ChainStatus,
    Condition,
    ConditionType,
    EndedAttempt,
    StagePhase,
    StageStatus,
)
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.telemetry.events import Note, event_of, notes

TIME = "2026-01-01T00:00:00Z"
CHAIN: Object = {
    "metadata": {"namespace": "team", "name": "family", "uid": "u1", "resourceVersion": "5"},
}


def accepted() -> Condition:
    return Condition(
        type=ConditionType.ACCEPTED, status="True", reason="Valid", message="", last_transition_time=TIME
    )


def refused(message: str) -> Condition:
    return Condition(
        type=ConditionType.ACCEPTED,
        status="False",
        reason="Invalid",
        message=message,
        last_transition_time=TIME,
    )


def status(*stages: StageStatus, phase: ChainPhase = ChainPhase.RUNNING, **fields: object) -> ChainStatus:
    return ChainStatus(phase=phase, stages=stages, conditions=(accepted(),)).model_copy(update=fields)


def said(before: ChainStatus | None, after: ChainStatus) -> list[tuple[str, str]]:
    return [(note.type, note.reason) for note in notes(before, after)]


def test_a_new_chain_is_accepted_and_its_stages_are_named() -> None:
    (note,) = notes(None, status(StageStatus(name="s"), StageStatus(name="b"), phase=ChainPhase.PENDING))
    assert note == Note("Normal", "Accepted", "the chain is valid: stages s, b")


def test_a_refused_chain_is_told_once_and_again_when_it_is_wrong_in_another_way() -> None:
    wrong = ChainStatus(conditions=(refused("spec.a: wrong"),))
    assert said(None, wrong) == [("Warning", "Refused")]
    assert said(wrong, wrong) == []
    assert said(wrong, ChainStatus(conditions=(refused("spec.b: wrong"),))) == [("Warning", "Refused")]


def test_the_life_of_a_stage() -> None:
    idle = StageStatus(name="s")
    created = StageStatus(name="s", attempt=1, job="family-s-1", reason="JobPending")
    running = created.model_copy(update={"phase": StagePhase.RUNNING, "reason": "Running"})
    ended = EndedAttempt(
        attempt=1, reason="Error", message="out of memory", exit_code=1, counted=True, time=TIME
    )
    retrying = running.model_copy(
        update={"phase": StagePhase.RETRYING, "reason": "BackOff", "last_ended": ended}
    )
    complete = running.model_copy(
        update={
            "phase": StagePhase.COMPLETE,
            "reason": "Complete",
            "steps": 10,
            "metrics": {"digits/top1": 0.5},
        }
    )
    failed = retrying.model_copy(update={"phase": StagePhase.FAILED, "message": "3 attempts failed"})
    assert said(status(idle), status(created)) == [("Normal", "JobCreated")]
    assert said(status(created), status(running)) == [("Normal", "StageRunning")]
    assert said(status(running), status(retrying)) == [("Warning", "AttemptEnded")]
    assert said(status(retrying), status(failed, phase=ChainPhase.FAILED)) == [
        ("Warning", "StageFailed"),
        ("Warning", "Failed"),
    ]
    (note, last) = notes(status(running), status(complete, phase=ChainPhase.COMPLETE))
    assert note == Note("Normal", "StageComplete", "stage s is complete after 10 steps, digits/top1 0.5")
    assert last.reason == "Complete"


def test_an_end_that_was_asked_for_is_no_warning() -> None:
    running = StageStatus(name="s", attempt=1, phase=StagePhase.RUNNING, reason="Running", job="j")
    ended = EndedAttempt(attempt=1, reason="Suspended", message="spec.suspend", counted=False, time=TIME)
    held = running.model_copy(
        update={"phase": StagePhase.SUSPENDED, "reason": "Suspended", "last_ended": ended}
    )
    assert said(status(running), status(held, phase=ChainPhase.SUSPENDED)) == [
        ("Normal", "AttemptEnded"),
        ("Normal", "Suspended"),
    ]


def test_progress_is_told_in_the_status_only() -> None:
    running = StageStatus(name="s", attempt=1, phase=StagePhase.RUNNING, reason="Running", job="j", step=3)
    assert said(status(running), status(running.model_copy(update={"step": 9, "loss": {"total": 1.0}}))) == []


def test_the_same_note_on_the_same_state_is_one_event() -> None:
    note = Note("Normal", "Complete", "all stages are complete")
    first = event_of(CHAIN, note, time=0, instance="a")
    assert first["metadata"] == event_of(CHAIN, note, time=9, instance="b")["metadata"]
    later = {"metadata": {**CHAIN["metadata"], "resourceVersion": "6"}}
    assert event_of(later, note, time=0, instance="a")["metadata"] != first["metadata"]
    assert first["involvedObject"]["uid"] == "u1"


def test_what_is_said_once_is_one_event_in_whatever_words_until_the_spec_is_edited() -> None:
    def name(words: str, **metadata: object) -> str:
        body = {"metadata": {**CHAIN["metadata"], "generation": 1, **metadata}}
        return event_of(body, Note("Warning", "StatusRefused", words, once=True), time=0, instance="a")[
            "metadata"
        ]["name"]

    first = name("request 1 is denied")
    assert first == name("request 2 is denied") == name("request 3 is denied", resourceVersion="6")
    assert first != name("request 1 is denied", generation=2)
