"""Conditions: what kubectl wait waits for and a person reads."""

from __future__ import annotations

import pytest

from modelchain.reconcile.conditions import refused
from modelchain.reconcile.observation import JobPhase, StageFacts
from modelchain.status import MAX_REASON, ChainPhase, ChainStatus, ConditionType
from modelchain.times import rfc3339
from tests.modelchain.reconcile.chains import NOW, Play, chain, job, manifest


def test_every_condition_is_always_there_with_a_reason() -> None:
    status = Play(chain(baseline={"train": ["all"], "epochs": 5})).look().status
    assert [condition.type for condition in status.conditions] == list(ConditionType)
    assert all(condition.reason for condition in status.conditions)


def test_the_time_of_a_condition_is_that_of_its_last_change() -> None:
    play = Play(chain((("tiny", None),)))
    play.look()
    play.look(job(play.stage("tiny")), after=60)
    play.look(after=60, tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    assert play.status is not None
    complete = play.status.condition(ConditionType.COMPLETE)
    accepted = play.status.condition(ConditionType.ACCEPTED)
    assert complete is not None
    assert accepted is not None
    assert complete.last_transition_time == rfc3339(NOW + 120)
    assert accepted.last_transition_time == rfc3339(NOW)


def test_a_node_that_does_not_answer_is_named_with_what_to_do() -> None:
    play = Play(chain())
    play.look()
    play.look(job(play.stage("tiny")))
    lost = job(play.stage("tiny"), phase=JobPhase.TERMINATING, disrupted=True, blocked_by_node="gpu-node-7")
    assert play.look(lost).actions == ()
    assert play.status is not None
    progressing = play.status.condition(ConditionType.PROGRESSING)
    assert progressing is not None
    assert (progressing.status, progressing.reason) == ("False", "NodeUnreachable")
    assert "gpu-node-7" in progressing.message
    assert "delete the node object" in progressing.message


def test_a_refused_chain_names_every_problem_and_keeps_what_runs() -> None:
    play = Play(chain())
    play.look()
    play.look(job(play.stage("tiny")))
    status = refused(
        play.status, ["spec.stages[0].model: no such model", "spec.data: missing"], generation=2, now=NOW
    )
    accepted = status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert accepted.status == "False"
    assert "spec.stages[0].model: no such model | spec.data: missing" in accepted.message
    assert play.status is not None
    assert status.stages == play.status.stages
    assert status.phase is ChainPhase.RUNNING
    again = refused(
        status, ["spec.stages[0].model: no such model", "spec.data: missing"], generation=2, now=NOW + 60
    )
    assert again == status


def test_a_chain_can_be_refused_before_anything_else_is_known() -> None:
    status = refused(None, ["spec.stages: missing"], generation=1, now=NOW)
    assert isinstance(status, ChainStatus)
    assert status.message == "refused: spec.stages: missing"
    assert status.phase is ChainPhase.REFUSED


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "Unschedulable", "FailedCreate", "FailedMount"])
def test_what_a_pending_job_waits_for_is_the_reason_of_stage_and_chain(reason: str) -> None:
    play = Play(chain((("tiny", None),)))
    play.look()
    waiting = job(play.stage("tiny"), phase=JobPhase.PENDING, reason=reason, message="why, and what to do")
    play.look(waiting)
    assert play.status is not None
    progressing = play.status.condition(ConditionType.PROGRESSING)
    assert progressing is not None
    assert (play["tiny"].reason, progressing.reason, progressing.status) == (reason, reason, "False")
    assert "what to do" in progressing.message
    play.look(job(play.stage("tiny"), phase=JobPhase.PENDING))
    assert (play["tiny"].reason, play.status.is_true(ConditionType.PROGRESSING)) == ("JobPending", True)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("out of memory\x1b[31m", "outofmemory31m"),
        ("_OOMKilled_", "OOMKilled"),
        ("X" * 5000, "X" * MAX_REASON),
        ("Kein Speicher mehr übrig", "KeinSpeichermehrbrig"),
        ("...", "Unknown"),
    ],
)
def test_a_reason_from_elsewhere_is_one_word(said: str, reason: str) -> None:
    play = Play(chain((("tiny", None),)))
    play.look()
    play.look(job(play.stage("tiny"), phase=JobPhase.PENDING, reason=said))
    assert play["tiny"].reason == reason
    play.look(job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=1, reason=said, message="why"))
    ended = play["tiny"].last_ended
    assert ended is not None
    assert ended.reason == reason
