"""Which ends of an attempt count, and when the next attempt comes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from modelchain.artifacts import Failure
from modelchain.errors import ExitCode
from modelchain.reconcile.actions import StartJob, StopJob
from modelchain.reconcile.observation import Job, JobPhase, StageFacts, StoreProblem
from modelchain.reconcile.retry import COMMIT_SECONDS, MAX_BACKOFF_SECONDS, backoff_seconds
from modelchain.resolved import ResolvedRetry
from modelchain.status import ChainPhase, ConditionType, StagePhase
from modelchain.times import from_rfc3339, rfc3339
from tests.modelchain.reconcile.chains import NOW, Play, chain, job, manifest, progress

ONE = (("tiny", None),)


def running(play: Play, attempt: int = 1) -> Job:
    """Start the attempt of the only stage and see it run."""
    assert play.look(after=1000).actions == (StartJob("tiny", attempt),)
    seen = job(play.stage("tiny"), attempt, started_at=play.now)
    play.look(seen)
    return seen


def failed(play: Play, code: int | None = 1, attempt: int = 1, **more: object) -> Job:
    """The attempt has failed."""
    return job(play.stage("tiny"), attempt, phase=JobPhase.FAILED, exit_code=code, **more)


def test_waits_twice_as_long_after_each_failure_up_to_ten_minutes() -> None:
    retry = ResolvedRetry(backoff_seconds=30)
    assert [backoff_seconds(retry, failures) for failures in range(8)] == [0, 30, 60, 120, 240, 480, 600, 600]
    assert backoff_seconds(ResolvedRetry(backoff_seconds=1), 10**6) == MAX_BACKOFF_SECONDS
    assert backoff_seconds(ResolvedRetry(backoff_seconds=0), 5) == 0


def test_the_next_attempt_starts_when_the_back_off_is_over_and_not_before() -> None:
    play = Play(chain(ONE, retry={"backoffSeconds": 30}))
    running(play)
    play.look(failed(play, message="out of luck"))
    assert (play["tiny"].phase, play["tiny"].failures) == (StagePhase.RETRYING, 1)
    assert "out of luck" in play["tiny"].message
    assert play.look(after=29).actions == ()
    assert play.look(after=1).actions == (StartJob("tiny", 2),)


def test_a_failure_is_counted_once_however_often_it_is_seen() -> None:
    play = Play(chain(ONE))
    running(play)
    for _ in range(5):
        play.look(failed(play), after=1)
    assert play["tiny"].failures == 1


def test_fails_the_chain_when_retries_are_used_up_and_starts_nothing_more() -> None:
    play = Play(chain((("tiny", None), ("small", "tiny")), retry={"limit": 2, "backoffSeconds": 0}))
    for attempt in (1, 2, 3):
        running(play, attempt)
        play.look(failed(play, attempt=attempt, message="no luck"))
    assert play.status is not None
    assert play.status.phase is ChainPhase.FAILED
    condition = play.status.condition(ConditionType.FAILED)
    assert condition is not None
    assert (condition.reason, "no luck" in condition.message) == ("RetriesExhausted", True)
    assert play.look(after=10_000).actions == ()
    assert play["small"].reason == "PredecessorFailed"


def test_a_branch_that_fails_ends_itself_and_no_other() -> None:
    tree = (("root", None), ("left", "root"), ("right", "root"), ("leaf", "left"))
    play = Play(chain(tree))
    play.look(root=StageFacts(manifest=manifest(play.stage("root"))))
    left, right = job(play.stage("left")), job(play.stage("right"))
    play.look(left, right)
    play.look(job(play.stage("left"), phase=JobPhase.FAILED, exit_code=65, message="no luck"), right)
    assert play.status is not None
    assert play.status.phase is ChainPhase.RUNNING
    assert play.status.is_true(ConditionType.FAILED)
    assert play.status.is_true(ConditionType.PROGRESSING)
    assert (play.status.stage, "no luck" in play.status.message) == ("right", True)
    assert play["leaf"].reason == "PredecessorFailed"
    play.look(job(play.stage("right"), disrupted=True, phase=JobPhase.FAILED))
    decision = play.look(after=1)
    assert decision.actions == (StartJob("right", 2),), "an evicted sibling is tried again"
    play.look(right=StageFacts(manifest=manifest(play.stage("right"))))
    assert play.status.phase is ChainPhase.FAILED
    assert not play.status.is_true(ConditionType.PROGRESSING)


def test_a_limit_of_zero_allows_no_retry() -> None:
    play = Play(chain(ONE, retry={"limit": 0}))
    running(play)
    play.look(failed(play))
    assert play["tiny"].phase is StagePhase.FAILED


def test_a_limit_that_was_lowered_meanwhile_is_not_passed_by_a_disruption() -> None:
    play = Play(chain(ONE, retry={"limit": 3}))
    running(play)
    play.look(failed(play))
    play.chain, play.generation = chain(ONE, retry={"limit": 0}), 2
    running(play, 2)
    play.look(failed(play, 137, 2, disrupted=True))
    assert (play["tiny"].failures, play["tiny"].disruptions) == (1, 1)
    assert play["tiny"].phase is StagePhase.PENDING, "it did not fail once more"


def test_no_wait_that_another_clock_wrote_is_longer_than_the_longest_back_off() -> None:
    play = Play(chain(ONE))
    running(play)
    play.now += 86_400  # of an operator whose clock was a day ahead
    play.look(failed(play, 1))
    play.now -= 86_400
    assert play.look(after=1).actions == (StartJob("tiny", 2),)


@pytest.mark.parametrize("code", [64, 65, 78])
def test_a_permanent_exit_code_fails_the_chain_at_once_with_the_trainers_message(code: int) -> None:
    play = Play(chain(ONE))
    running(play)
    play.look(failed(play, code, reason="DataError", message="s3://x/0.tar is truncated at byte 512"))
    assert play.status is not None
    assert play.status.phase is ChainPhase.FAILED
    assert play["tiny"].reason == "DataError"
    assert "s3://x/0.tar is truncated at byte 512" in play.status.message


@pytest.mark.parametrize("code", [1, 63, 79, 137, 143, None])
def test_any_other_exit_code_is_retried_and_counted(code: int | None) -> None:
    play = Play(chain(ONE))
    running(play)
    play.look(failed(play, code))
    assert (play["tiny"].phase, play["tiny"].failures) == (StagePhase.RETRYING, 1)


@pytest.mark.parametrize("code", [65, 137, 143, None])
def test_disruption_does_not_count_whatever_the_exit_code(code: int | None) -> None:
    play = Play(chain(ONE, retry={"limit": 0}))
    for attempt in range(1, 6):
        running(play, attempt)
        play.look(failed(play, code, attempt, disrupted=True, message="node drained"))
        assert (play["tiny"].failures, play["tiny"].phase) == (0, StagePhase.PENDING)


def test_a_job_that_lost_a_pod_is_ended_whole_before_the_next_attempt() -> None:
    play = Play(chain(ONE))
    seen = running(play)
    lost = job(play.stage("tiny"), disrupted=True, message="node-3 was lost", started_at=seen.started_at)
    assert play.look(lost).actions == (StopJob(lost, "Disrupted"),)
    assert play.look(job(play.stage("tiny"), phase=JobPhase.TERMINATING)).actions == ()
    assert play.look(after=1).actions == (StartJob("tiny", 2),)


def test_a_job_that_a_queue_preempts_stays_the_same_attempt() -> None:
    play = Play(chain(ONE))
    running(play)
    queued = job(play.stage("tiny"), phase=JobPhase.QUEUED, disrupted=True)
    assert play.look(queued).actions == ()
    assert play.status is not None
    assert (play["tiny"].phase, play.status.phase) == (StagePhase.QUEUED, ChainPhase.QUEUED)


def test_a_job_deleted_by_hand_comes_back_under_a_new_number() -> None:
    play = Play(chain(ONE))
    running(play)
    assert play.look(job(play.stage("tiny"), phase=JobPhase.TERMINATING)).actions == ()
    assert play.look().actions == ()
    assert play.look(after=1).actions == (StartJob("tiny", 2),)
    assert play["tiny"].failures == 0


def test_failure_json_speaks_for_a_job_that_is_gone() -> None:
    play = Play(chain(ONE))
    running(play)
    said = StageFacts(
        failure=Failure(exit_code=66, reason="NotFound", message="no shard 7"), failure_attempt=1
    )
    play.look(tiny=said)
    assert (play["tiny"].phase, play["tiny"].reason) == (StagePhase.FAILED, "NotFound")
    assert "no shard 7" in play["tiny"].message


def test_failure_json_of_an_earlier_attempt_says_nothing_of_this_one() -> None:
    play = Play(chain(ONE))
    running(play)
    old = StageFacts(
        failure=Failure(exit_code=66, reason="NotFound", message="no shard 7"), failure_attempt=0
    )
    play.look(tiny=old)
    assert play.look(after=1).actions == (StartJob("tiny", 2),)


def disrupted(play: Play, attempt: int) -> Job:
    """The attempt was evicted."""
    return failed(play, 143, attempt, disrupted=True, message="evicted")


def vanished(play: Play, attempt: int) -> None:
    """Its job was deleted."""


def beaten(play: Play, attempt: int) -> Job:
    """Somebody else was quicker to take the stage's lease."""
    return failed(play, int(ExitCode.HELD), attempt)


@pytest.mark.parametrize("end", [disrupted, vanished, beaten])
def test_ends_that_are_no_failures_do_not_spin_either(end: Callable[[Play, int], Job | None]) -> None:
    play = Play(chain(ONE, retry={"limit": 0}))
    waits = []
    for attempt in range(1, 13):
        running(play, attempt)
        seen = end(play, attempt)
        play.look(*([seen] if seen else []))
        due = play["tiny"].retry_at
        assert due is not None, "every end waits"
        waits.append(from_rfc3339(due) - play.now)
    assert waits == sorted(waits)
    assert waits[-1] == MAX_BACKOFF_SECONDS
    assert all(
        later in (2 * wait, wait, MAX_BACKOFF_SECONDS) or wait == 10 for wait, later in pairwise(waits)
    )
    assert play["tiny"].failures == 0


@pytest.mark.parametrize("end", [disrupted, vanished, beaten])
def test_disruptions_without_progress_come_to_an_end_of_their_own(
    end: Callable[[Play, int], Job | None],
) -> None:
    play = Play(chain(ONE, retry={"limit": 0, "disruptionLimit": 3}))
    for attempt in range(1, 5):
        running(play, attempt)
        seen = end(play, attempt)
        play.look(*([seen] if seen else []))
    assert play.status is not None
    assert (play.status.phase, play["tiny"].reason) == (ChainPhase.FAILED, "DisruptionsExhausted")
    assert play.status.is_true(ConditionType.DISRUPTED)
    assert "retry.disruptionLimit is 3" in play.status.message
    assert play.look(after=10_000).actions == ()
    play.generation += 1
    assert play.look(after=1).actions == (StartJob("tiny", 5),), "an edit asks again"
    assert not play.status.is_true(ConditionType.DISRUPTED)


def test_a_new_checkpoint_makes_the_budget_of_disruptions_whole_again() -> None:
    play = Play(chain(ONE, retry={"disruptionLimit": 1}))
    for attempt in range(1, 9):
        seen = running(play, attempt)
        going = progress(attempt, checkpoint_step=attempt)
        play.look(seen, tiny=StageFacts(progress=going, progress_attempt=attempt))
        play.look(disrupted(play, attempt), tiny=StageFacts())
        assert (play["tiny"].disruptions, play["tiny"].phase) == (1, StagePhase.PENDING)
        assert play["tiny"].retry_at == rfc3339(play.now + 1)


def test_a_job_that_is_gone_before_anybody_has_seen_it_is_not_made_again_and_again() -> None:
    play = Play(chain(ONE))
    assert play.look().actions == (StartJob("tiny", 1),)
    assert play.look().actions == (StartJob("tiny", 1),), "it may never have been made"
    play.more = {"made": frozenset({("tiny", 1)})}
    assert play.look().actions == ()
    assert (play["tiny"].disruptions, play["tiny"].retry_at) == (1, rfc3339(play.now + 1))


@pytest.mark.parametrize(("code", "counts"), [(1, False), (None, False), (65, True)])
def test_an_end_before_all_pods_had_a_node_is_no_failure_unless_trying_again_cannot_help(
    code: int | None,
    counts: bool,
) -> None:
    play = Play(chain(ONE, retry={"limit": 0}))
    running(play)
    play.look(failed(play, code, unscheduled=True, message="the others did not come"))
    assert (play["tiny"].failures, play["tiny"].disruptions) == ((1, 0) if counts else (0, 1))
    ended = play["tiny"].last_ended
    assert ended is not None
    assert "the others did not come" in ended.message


def test_failure_json_says_how_a_job_ended_whose_pods_nobody_saw() -> None:
    play = Play(chain(ONE))
    running(play)
    said = Failure(exit_code=65, reason="DataError", message="shard 7 is broken")
    play.look(failed(play, None, reason="JobFailed"), tiny=StageFacts(failure=said, failure_attempt=1))
    assert (play["tiny"].phase, play["tiny"].reason) == (StagePhase.FAILED, "DataError")


def test_losing_the_race_for_a_lease_does_not_count_and_is_not_repeated_at_once() -> None:
    play = Play(chain(ONE, retry={"limit": 0}))
    running(play)
    play.look(failed(play, int(ExitCode.HELD)))
    assert (play["tiny"].failures, play["tiny"].phase) == (0, StagePhase.PENDING)
    assert play.look(after=5).actions == ()
    assert play.look(after=5).actions == (StartJob("tiny", 2),)


def test_success_without_a_manifest_counts_as_failure_but_not_before_the_store_had_time() -> None:
    play = Play(chain(ONE))
    running(play)
    done = job(play.stage("tiny"), phase=JobPhase.SUCCEEDED, exit_code=0, ended_at=play.now)
    play.look(done, after=COMMIT_SECONDS - 1)
    assert play["tiny"].failures == 0
    play.look(done, after=1)
    assert play["tiny"].last_ended is not None
    assert (play["tiny"].failures, play["tiny"].last_ended.reason) == (1, "ManifestMissing")


def test_success_is_not_doubted_on_a_read_of_the_store_from_before_the_manifest_had_to_be_there() -> None:
    play = Play(chain(ONE))
    running(play)
    done = job(play.stage("tiny"), phase=JobPhase.SUCCEEDED, exit_code=0, ended_at=play.now)
    play.more = {"store_read_at": {"tiny": play.now + COMMIT_SECONDS - 1}}
    assert play.look(done, after=3600).reads == ("tiny",)
    assert play["tiny"].failures == 0
    play.more = {}
    play.look(done)
    assert play["tiny"].failures == 1


def test_success_is_not_doubted_while_the_store_cannot_be_read() -> None:
    play = Play(chain(ONE))
    running(play)
    done = job(play.stage("tiny"), phase=JobPhase.SUCCEEDED, exit_code=0, ended_at=play.now)
    play.look(done, after=3600, tiny=StageFacts(problem=StoreProblem.UNAVAILABLE))
    assert play["tiny"].failures == 0


def test_an_edit_asks_a_failed_chain_again_and_its_failures_count_afresh() -> None:
    play = Play(chain(ONE, retry={"limit": 0}))
    running(play)
    play.look(failed(play, 65))
    assert play.look(after=3600).actions == ()
    play.generation += 1
    assert play.look(after=1).actions == (StartJob("tiny", 2),)
    assert play["tiny"].failures == 0


def test_an_edit_ends_a_back_off() -> None:
    play = Play(chain(ONE, retry={"backoffSeconds": 600}))
    running(play)
    play.look(failed(play))
    play.look()
    play.generation += 1
    assert play.look(after=1).actions == (StartJob("tiny", 2),)
    assert play.now < NOW + 1100
    assert play["tiny"].failures == 1
