"""A job without a sign of life is replaced; one that nobody can see is not."""

from __future__ import annotations

import pytest

from modelchain.reconcile.actions import StartJob, StopJob
from modelchain.reconcile.observation import Job, JobPhase, StageFacts, StoreProblem
from modelchain.status import ConditionType
from tests.modelchain.reconcile.chains import NOW, Play, chain, job, progress

ONE = (("tiny", None),)


def started(*, stall: int = 100, timeout: int | None = None) -> tuple[Play, Job]:
    """A chain whose first attempt has just begun to run, with that much patience."""
    play = Play(
        chain(
            ONE,
            retry={"stallSeconds": stall, "backoffSeconds": 0},
            job={"activeDeadlineSeconds": timeout} if timeout else None,
        )
    )
    play.look()
    first = job(play.stage("tiny"), started_at=NOW)
    play.look(first)
    return play, first


def test_a_job_without_any_progress_since_its_start_is_ended_counted_and_replaced() -> None:
    play, first = started()
    assert play.look(first, after=99).actions == ()
    assert play.look(first, after=1).actions == (StopJob(first, "Stalled"),)
    assert play["tiny"].failures == 1
    assert play.status is not None
    assert play.status.is_true(ConditionType.UNRESPONSIVE)
    assert play.look(after=1).actions == (StartJob("tiny", 2),)


def test_being_stalled_is_over_with_the_next_attempts_first_sign_of_life() -> None:
    play, first = started()
    play.look(first, after=100)
    play.look(after=1)
    second = job(play.stage("tiny"), 2, started_at=play.now)
    play.look(second)
    assert play.status is not None
    assert play.status.is_true(ConditionType.UNRESPONSIVE)
    play.look(second, tiny=StageFacts(progress=progress(3), progress_attempt=2))
    assert not play.status.is_true(ConditionType.UNRESPONSIVE)


def test_the_time_counts_from_the_last_change_that_was_seen() -> None:
    play, _ = started()
    moving = job(play.stage("tiny"), started_at=NOW, progress_changed_at=NOW + 80)
    assert play.look(moving, after=179).actions == ()
    assert play.look(moving, after=1).actions == (StopJob(moving, "Stalled"),)


@pytest.mark.parametrize("phase", [JobPhase.PENDING, JobPhase.QUEUED])
def test_a_job_that_waits_for_its_turn_is_not_stalled(phase: JobPhase) -> None:
    play, _ = started()
    assert play.look(job(play.stage("tiny"), phase=phase), after=10**6).actions == ()


def test_time_without_a_readable_store_does_not_count() -> None:
    play, first = started()
    away = StageFacts(problem=StoreProblem.UNAVAILABLE, message="no answer")
    assert play.look(first, after=5000, tiny=away).actions == ()
    play.more = {"store_readable_since": play.now}
    assert play.look(first, after=99, tiny=StageFacts()).actions == ()
    assert play.look(first, after=1).actions == (StopJob(first, "Stalled"),)


def test_no_job_is_taken_for_hung_on_a_read_of_the_store_from_before_its_time_was_up() -> None:
    play, first = started()
    play.more = {"store_read_at": {"tiny": NOW + 99}}
    decision = play.look(first, after=5000)
    assert (decision.actions, decision.reads) == ((), ("tiny",)), "the store is read first"
    play.more = {"store_read_at": {"tiny": NOW + 5001}}
    moving = job(play.stage("tiny"), started_at=NOW, progress_changed_at=NOW + 5001)
    decision = play.look(moving, after=2)
    assert (decision.actions, decision.reads) == ((), ()), "it was alive all the time"
    play.more = {"store_read_at": {"tiny": NOW + 5101}}
    assert play.look(moving, after=99).actions == (StopJob(moving, "Stalled"),)


def test_a_job_over_its_time_is_ended_and_counts() -> None:
    play, _ = started(timeout=300, stall=10**6)
    busy = job(play.stage("tiny"), started_at=NOW)
    assert play.look(busy, after=299).actions == ()
    assert play.look(busy, after=1).actions == (StopJob(busy, "TimedOut"),)
    assert play["tiny"].failures == 1


@pytest.mark.parametrize("unscheduled", [True, False])
def test_a_job_that_does_not_start_in_time_is_ended_and_counts_only_if_it_had_its_nodes(
    unscheduled: bool,
) -> None:
    play = Play(chain(ONE, job={"startDeadlineSeconds": 300}))
    play.look()
    waiting = job(
        play.stage("tiny"), phase=JobPhase.PENDING, pending_since=NOW, unscheduled=unscheduled,
        reason="ImagePullBackOff", message="no such image",
    )  # fmt: skip
    decision = play.look(waiting, after=299)
    assert (decision.actions, decision.wake_at) == ((), NOW + 300)
    assert play.look(waiting, after=1).actions == (StopJob(waiting, "StartDeadlineExceeded"),)
    assert (play["tiny"].failures, play["tiny"].disruptions) == ((0, 1) if unscheduled else (1, 0))
    assert "ImagePullBackOff: no such image" in (play["tiny"].last_ended or waiting).message


def test_a_stop_that_was_lost_is_asked_for_again() -> None:
    play, first = started()
    play.look(first, after=100)
    assert play.look(first, after=1).actions == (StopJob(first, "Stalled"),)
    assert play["tiny"].failures == 1
