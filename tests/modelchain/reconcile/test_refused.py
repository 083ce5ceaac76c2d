"""A chain that is refused as it is written now: nothing of it starts, what runs is looked after."""

from __future__ import annotations

import pytest

from modelchain.reconcile.actions import Decision, StopJob
from modelchain.reconcile.observation import Job, JobPhase, Observation, StageFacts
from modelchain.reconcile.refused import decide_refused, under_way
from modelchain.resolved import ResolvedChain
from modelchain.status import ChainPhase, ChainStatus, ConditionType, StagePhase
from tests.modelchain.reconcile.chains import NOW, Play, chain, job, manifest

TREE = (("tiny", None), ("small", "tiny"), ("base", "small"))
WRONG = ["spec.stages[2].model: no such model"]


@pytest.fixture
def play() -> Play:
    """Tiny is complete, small runs, base waits; then the chain is edited into nonsense."""
    play = Play(chain(TREE, retry={"stallSeconds": 100}, job={"activeDeadlineSeconds": 5000}))
    play.look()
    play.look(job(play.stage("tiny")))
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    play.look(job(play.stage("small")))
    return play


def running(play: Play, *, suspend: bool = False) -> ResolvedChain:
    """What runs, as the job of it says."""
    (name,) = [stage.name for stage in under_way(play.status)]
    stage = play.stage(name).model_copy(update={"predecessor": None, "teacher": None})
    return play.chain.model_copy(update={"stages": (stage,), "suspend": suspend})


def look(
    play: Play, chain: ResolvedChain | None, *jobs: Job, after: float = 0.0
) -> tuple[Decision, ChainStatus]:
    now = play.now = play.now + after
    store = {"small": StageFacts()}
    observed = Observation(
        status=play.status, generation=2, jobs=jobs, store=store, store_read_at={"small": now}
    )
    decision = decide_refused(chain, observed, WRONG, generation=2, now=now)
    play.status = decision.status
    return decision, decision.status


def test_what_runs_goes_on_and_is_told_beside_what_is_wrong(play: Play) -> None:
    decision, status = look(play, running(play), job(play.stage("small")))
    assert decision.actions == ()
    assert [stage.name for stage in status.stages] == ["tiny", "small", "base"]
    assert (play["tiny"].phase, play["small"].phase) == (StagePhase.COMPLETE, StagePhase.RUNNING)
    assert (status.phase, status.is_true(ConditionType.ACCEPTED)) == (ChainPhase.RUNNING, False)
    assert status.is_true(ConditionType.PROGRESSING)
    complete = status.condition(ConditionType.COMPLETE)
    assert complete is not None
    assert complete.message == "1 of 3 stages are complete"
    again, _ = look(play, running(play), job(play.stage("small")))
    assert again.status == status, "it is said once"


def test_a_job_that_hangs_is_ended_and_no_other_starts(play: Play) -> None:
    hung = job(play.stage("small"), started_at=NOW)
    decision, _ = look(play, running(play), hung, after=100)
    assert decision.actions == (StopJob(hung, "Stalled"),)
    assert play["small"].failures == 1
    decision, status = look(play, None, after=1000)
    assert decision.actions == ()
    assert (status.phase, play["small"].reason) == (ChainPhase.REFUSED, "SpecRefused")
    assert not status.is_true(ConditionType.PROGRESSING)


def test_a_job_over_its_time_is_ended(play: Play) -> None:
    slow = job(play.stage("small"), started_at=NOW, progress_changed_at=NOW + 4999)
    decision, _ = look(play, running(play), slow, after=5000)
    assert decision.actions == (StopJob(slow, "TimedOut"),)


def test_suspending_is_heard_beside_a_field_that_is_wrong(play: Play) -> None:
    live = job(play.stage("small"))
    decision, status = look(play, running(play, suspend=True), live)
    assert decision.actions == (StopJob(live, "Suspended"),)
    assert (play["small"].phase, status.phase) == (StagePhase.SUSPENDED, ChainPhase.REFUSED)


def test_a_job_that_is_gone_is_not_said_to_run(play: Play) -> None:
    stages = running(play)
    _, status = look(play, stages)
    assert play["small"].last_ended is not None
    assert (play["small"].last_ended.reason, play["small"].reason) == ("JobVanished", "SpecRefused")
    assert status.phase is ChainPhase.REFUSED


def test_the_end_of_an_attempt_is_recorded_whose_job_is_gone_before_anybody_could_read_it(play: Play) -> None:
    _, status = look(play, None)
    assert (play["small"].phase, play["small"].reason) == (StagePhase.PENDING, "SpecRefused")
    assert status.phase is ChainPhase.REFUSED
    assert not under_way(status)
    ended = play["small"].last_ended
    assert ended is not None
    assert (ended.attempt, ended.reason, ended.counted, play["small"].job) == (1, "JobVanished", False, None)
    assert look(play, None, after=100)[1] == status, "it is said once"
    play.generation = 3
    play.look(after=1)
    assert (play["small"].attempt, play["small"].reason) == (2, "Starting")


def test_an_attempt_that_was_only_announced_keeps_its_number(play: Play) -> None:
    """Its job may be on its way."""
    play = Play(play.chain)
    play.look()
    _, status = look(play, None)
    assert [stage.name for stage in under_way(status)] == ["tiny"]
    assert (play["tiny"].attempt, play["tiny"].last_ended, play["tiny"].reason) == (1, None, "SpecRefused")


def test_a_job_that_nobody_can_rely_on_is_not_said_to_be_gone(play: Play) -> None:
    _, status = look(play, None, job(play.stage("small")))
    assert (play["small"].phase, play["small"].last_ended) == (StagePhase.RUNNING, None)
    assert "is not known to be what attempt 1 was told" in play["small"].message
    assert "no spec.suspend ends it until the chain is accepted" in play["small"].message
    assert under_way(status)


def test_a_job_fails_for_good_as_ever(play: Play) -> None:
    ended = job(
        play.stage("small"), phase=JobPhase.FAILED, exit_code=65, reason="DataError", message="broken"
    )
    _, status = look(play, running(play), ended)
    assert (play["small"].phase, play["small"].reason) == (StagePhase.FAILED, "DataError")
    assert status.is_true(ConditionType.FAILED)


def test_a_model_that_is_trained_alone_stays_under_control_too() -> None:
    play = Play(chain(TREE[:2], baseline={"train": ["small"], "epochs": 8}))
    tiny, small = (StageFacts(manifest=manifest(play.stage(name))) for name in ("tiny", "small"))
    play.look(tiny=tiny, small=small)
    alone = play.chain.baselines[0]
    play.look(job(alone))
    (open_stage,) = under_way(play.status)
    assert open_stage.name == alone.name
    going_on = play.chain.model_copy(
        update={"stages": (alone,), "baselines": (), "baseline": None, "suspend": True}
    )
    decision, status = look(play, going_on, job(alone))
    assert decision.actions == (StopJob(job(alone), "Suspended"),)
    assert [stage.name for stage in status.baselines] == [alone.name]
