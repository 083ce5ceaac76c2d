"""What is done on jobs seen a while ago: to tell how a chain fares, and to begin what never had a job."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import pytest

from modelchain.reconcile.actions import Decision, StartJob
from modelchain.reconcile.observation import JobPhase, StageFacts
from modelchain.reconcile.stale_reads import is_report_only, only_starts_fresh_stages
from modelchain.status import ChainStatus
from tests.modelchain.reconcile.chains import Play, chain, job, manifest, progress

SEEN = {("tiny", 1)}


@pytest.fixture
def play() -> Play:
    """A chain whose first stage trains."""
    play = Play(chain())
    play.look()
    play.look(job(play.stage("tiny")))
    return play


def begins(
    play: Play, before: ChainStatus | None, decision: Decision, seen: AbstractSet[tuple[str, int]] = SEEN
) -> bool:
    assert before is not None
    assert not is_report_only(before, decision)
    return only_starts_fresh_stages(before, decision, play.chain, seen)


def complete(play: Play) -> StageFacts:
    return StageFacts(manifest=manifest(play.stage("tiny")))


def test_progress_only_tells(play: Play) -> None:
    before = play.status
    told = play.look(job(play.stage("tiny")), tiny=StageFacts(progress=progress(8), progress_attempt=1))
    assert before is not None
    assert is_report_only(before, told)
    assert not only_starts_fresh_stages(before, told, play.chain, SEEN)


def test_the_next_stage_begins_when_its_predecessor_is_complete(play: Play) -> None:
    before = play.status
    decision = play.look(job(play.stage("tiny"), phase=JobPhase.SUCCEEDED), tiny=complete(play))
    assert decision.actions == (StartJob("small", 1),)
    assert begins(play, before, decision)


def test_how_many_run_at_once_is_counted_on_a_fresh_look(play: Play) -> None:
    play.chain = play.chain.model_copy(update={"max_parallel_stages": 1})
    before = play.status
    decision = play.look(job(play.stage("tiny"), phase=JobPhase.SUCCEEDED), tiny=complete(play))
    assert decision.actions == (StartJob("small", 1),)
    assert not begins(play, before, decision)


def test_a_model_is_trained_alone_after_a_fresh_look() -> None:
    play = Play(chain((("tiny", None),), baseline={"train": ["tiny"], "epochs": 5}))
    play.look()
    play.look(job(play.stage("tiny")))
    before = play.status
    decision = play.look(tiny=complete(play))
    assert decision.actions == (StartJob("tiny-alone", 1),)
    assert not begins(play, before, decision), "the job of the chain may live where no list shows it"


def test_a_stage_that_was_renamed_begins_after_a_fresh_look() -> None:
    play = Play(chain((("tiny", None),)))
    play.look()
    play.look(job(play.stage("tiny")))
    play.chain, play.generation = chain((("small", None),)), 2
    play.store = {"small": StageFacts()}
    play.look(job(chain((("tiny", None),)).stages[0], phase=JobPhase.TERMINATING))
    before = play.status
    decision = play.look()
    assert decision.actions == (StartJob("small", 1),)
    assert not begins(play, before, decision)


def test_a_predecessor_whose_job_was_not_seen_to_end_is_looked_at(play: Play) -> None:
    before = play.status
    decision = play.look(tiny=complete(play))
    assert decision.actions == (StartJob("small", 1),)
    assert not begins(play, before, decision, seen=set())


def test_a_teacher_whose_job_was_not_seen_to_end_is_looked_at() -> None:
    stages = (("tiny", None), ("large", "tiny"), ("small", "tiny"))
    play = Play(chain(stages, teachers={"small": "large"}))
    done = job(play.stage("tiny"), phase=JobPhase.SUCCEEDED)
    play.look(done, tiny=complete(play))
    play.look(done, job(play.stage("large")))
    before = play.status
    decision = play.look(done, large=StageFacts(manifest=manifest(play.stage("large"))))
    assert decision.actions == (StartJob("small", 1),)
    assert begins(play, before, decision, seen={("tiny", 1), ("large", 1)})
    assert not begins(play, before, decision, seen={("tiny", 1)})


def test_a_predecessor_that_another_chain_has_trained_has_no_job_to_wait_for() -> None:
    play = Play(chain())
    play.more["backend_problem"] = dict.fromkeys(("tiny", "small", "base"), "not installed")
    play.look(tiny=complete(play))
    before = play.status
    play.more.clear()
    decision = play.look()
    assert decision.actions == (StartJob("small", 1),)
    assert begins(play, before, decision, seen=set())


def test_a_job_whose_making_is_in_doubt_is_looked_for() -> None:
    play = Play(chain())
    play.look()
    before = play.status
    decision = play.look()
    assert decision.actions == (StartJob("tiny", 1),), "the same attempt once more: it was never seen"
    assert before is not None
    assert not is_report_only(before, decision)
    assert not only_starts_fresh_stages(before, decision, play.chain, set())


def test_a_retry_is_looked_at(play: Play) -> None:
    ended = job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=1, ended_at=play.now)
    play.look(ended)
    play.look(ended, after=3600)
    before = play.status
    decision = play.look(after=3600)
    assert decision.actions == (StartJob("tiny", 2),)
    assert not begins(play, before, decision)


def test_the_start_of_an_edited_stage_is_looked_at(play: Play) -> None:
    done = job(play.stage("tiny"), phase=JobPhase.SUCCEEDED)
    play.store["tiny"] = complete(play)
    before = play.status
    play.chain, play.generation = chain(epochs={"small": 5}), 2
    decision = play.look(done)
    assert decision.actions == (StartJob("small", 1),)
    assert not begins(play, before, decision)
