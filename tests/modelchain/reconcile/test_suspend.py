"""Suspending stops the running attempt, resuming goes on; neither is a failure."""

from __future__ import annotations

from modelchain.reconcile.actions import RemoveJob, StartJob, StopJob
from modelchain.reconcile.observation import JobPhase
from modelchain.status import ChainPhase, StagePhase
from tests.modelchain.reconcile.chains import Play, chain, job


def test_suspending_stops_the_job_and_resuming_starts_the_next_attempt() -> None:
    play = Play(chain())
    play.look()
    first = job(play.stage("tiny"))
    play.look(first)
    play.chain, play.generation = chain(suspend=True), 2
    assert play.look(first).actions == (StopJob(first, "Suspended"),)
    stopped = job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=143)
    assert play.look(stopped).actions == ()
    assert play.status is not None
    assert (play.status.phase, play["tiny"].phase) == (ChainPhase.SUSPENDED, StagePhase.SUSPENDED)
    assert "unset it" in play["tiny"].message
    play.chain, play.generation = chain(), 3
    assert play.look(stopped).actions == (RemoveJob(stopped),)
    assert play.look().actions == (StartJob("tiny", 2),)
    assert play["tiny"].failures == 0


def test_a_suspended_chain_starts_nothing() -> None:
    play = Play(chain(suspend=True))
    assert play.look().actions == ()


def test_an_interrupted_run_is_as_a_suspended_one_and_says_so() -> None:
    play = Play(chain())
    play.look()
    first = job(play.stage("tiny"))
    play.more = {"interrupted": True}
    assert play.look(first).actions == (StopJob(first, "Suspended"),)
    assert play["tiny"].last_ended is not None
    assert "run it again" in play["tiny"].last_ended.message
