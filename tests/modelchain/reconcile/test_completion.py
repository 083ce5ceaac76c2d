"""A verified manifest makes a stage complete, once and for all."""

from __future__ import annotations

import pytest

from modelchain.reconcile.actions import StartJob, StopJob
from modelchain.reconcile.completion import LINGER_SECONDS
from modelchain.reconcile.observation import JobPhase, StageFacts, StoreProblem
from modelchain.status import ChainPhase, ConditionType, StagePhase
from tests.modelchain.reconcile.chains import Play, chain, job, manifest

ONE = (("tiny", None),)


def complete(play: Play, name: str = "tiny") -> StageFacts:
    return StageFacts(manifest=manifest(play.stage(name)))


def trained(play: Play) -> None:
    """The only stage of the chain is trained to its end."""
    play.look()
    play.look(job(play.stage("tiny")))
    play.look(tiny=complete(play))


def test_what_lies_in_the_store_at_first_sight_is_cached() -> None:
    play = Play(chain(ONE))
    assert play.look(tiny=complete(play)).actions == ()
    assert (play["tiny"].phase, play["tiny"].attempt) == (StagePhase.CACHED, 0)
    assert "default/family" in play["tiny"].message
    assert play["tiny"].metrics == {"digits/top1": 0.75}


def test_what_our_own_job_has_made_is_complete_even_if_the_job_failed_afterwards() -> None:
    play = Play(chain(ONE))
    play.look()
    play.look(job(play.stage("tiny")))
    play.look(job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=137), tiny=complete(play))
    assert (play["tiny"].phase, play["tiny"].failures) == (StagePhase.COMPLETE, 0)


def test_a_failure_is_not_counted_before_the_store_was_asked() -> None:
    play = Play(chain(ONE, retry={"limit": 0}))
    play.look()
    play.look(job(play.stage("tiny")))
    failed = job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=137)
    del play.store["tiny"]
    play.look(failed)
    assert play["tiny"].failures == 0
    play.look(failed, tiny=complete(play))
    assert play["tiny"].phase is StagePhase.COMPLETE


def test_a_vanished_artifact_is_said_and_trains_nothing() -> None:
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.look(tiny=complete(play))
    assert play.look(tiny=StageFacts(), after=60).actions == ()
    assert play.status is not None
    condition = play.status.condition(ConditionType.ARTIFACTS_MISSING)
    assert condition is not None
    assert condition.status == "True"
    assert play.stage("tiny").folder in condition.message
    assert play["tiny"].phase is StagePhase.CACHED
    assert play.look(tiny=complete(play), after=60).actions == (StartJob("small", 1),)
    assert not play.status.is_true(ConditionType.ARTIFACTS_MISSING)


@pytest.mark.parametrize(
    "unread", [None, StageFacts(problem=StoreProblem.UNAVAILABLE, message="away")], ids=["unseen", "away"]
)
def test_what_was_missing_is_missing_until_the_store_shows_otherwise(unread: StageFacts | None) -> None:
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.look(tiny=complete(play))
    play.look(tiny=StageFacts(), after=60)
    assert play.status is not None
    said = play.status.condition(ConditionType.ARTIFACTS_MISSING)
    del play.store["tiny"]
    facts = {} if unread is None else {"tiny": unread}
    assert play.look(after=60, **facts).actions == ()
    assert play.status.condition(ConditionType.ARTIFACTS_MISSING) == said
    assert play.look(tiny=StageFacts(present=True), after=60).actions == (StartJob("small", 1),)
    assert not play.status.is_true(ConditionType.ARTIFACTS_MISSING)


def test_a_finished_chain_whose_artifact_vanishes_stays_finished() -> None:
    play = Play(chain(ONE))
    trained(play)
    assert play.look(tiny=StageFacts()).actions == ()
    assert play.status is not None
    assert play.status.phase is ChainPhase.COMPLETE
    assert play.status.is_true(ConditionType.ARTIFACTS_MISSING)


def test_a_vanished_artifact_is_trained_again_when_asked_under_a_new_number() -> None:
    play = Play(chain(ONE))
    trained(play)
    play.more = {"retrain_missing": "today"}
    assert play.look(tiny=StageFacts()).actions == (StartJob("tiny", 2),)


def test_to_ask_for_vanished_artifacts_once_is_not_to_ask_for_ever() -> None:
    play = Play(chain(ONE))
    trained(play)
    play.more = {"retrain_missing": "today"}
    play.look(tiny=StageFacts())
    play.look(job(play.stage("tiny"), attempt=2))
    play.look(tiny=complete(play))
    assert play.look(tiny=StageFacts()).actions == (), "a later loss is not what was asked for"
    assert play.status is not None
    missing = play.status.condition(ConditionType.ARTIFACTS_MISSING)
    assert missing is not None
    assert missing.status == "True"
    assert '"today"' in missing.message
    play.more = {"retrain_missing": "tomorrow"}
    assert play.look().actions == (StartJob("tiny", 3),)


def both_trained() -> Play:
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    for name in ("tiny", "small"):
        play.look()
        play.look(job(play.stage(name)))
        play.store[name] = complete(play, name)
    play.look()
    return play


def test_to_ask_for_vanished_artifacts_lasts_until_all_were_looked_for() -> None:
    play = both_trained()
    play.more = {"retrain_missing": "today"}
    play.look(tiny=StageFacts(), small=StageFacts(problem=StoreProblem.UNAVAILABLE))
    assert play["tiny"].finished
    del play.store["small"]
    assert play.look().reads == ("small",)  # the operator was started anew
    assert play["tiny"].finished
    found = complete(play, "small")
    assert play.look(small=found).actions == (StartJob("tiny", 2),)
    play.look(job(play.stage("tiny"), attempt=2))
    assert play.look(tiny=complete(play), small=StageFacts(), after=60).actions == ()
    assert play["small"].finished, "a later loss is not what was asked for"


def test_all_that_is_missing_is_trained_again_together() -> None:
    play = both_trained()
    play.more = {"retrain_missing": "today"}
    play.look(tiny=StageFacts(), small=StageFacts())
    assert not play["tiny"].finished
    assert not play["small"].finished


def test_what_cannot_be_read_is_not_missing() -> None:
    play = Play(chain(ONE))
    trained(play)
    play.more = {"retrain_missing": "today"}
    for problem in (StoreProblem.FORBIDDEN, StoreProblem.UNAVAILABLE):
        assert play.look(tiny=StageFacts(problem=problem)).actions == ()
        assert play.status is not None
        assert not play.status.is_true(ConditionType.ARTIFACTS_MISSING)


def test_a_finished_stage_need_not_be_looked_at_again() -> None:
    play = Play(chain(ONE))
    trained(play)
    before = play.status
    play.store = {}
    assert play.look(after=3600).status == before


def test_a_trainer_that_does_not_go_after_its_commit_is_ended_and_not_waited_for_for_ever() -> None:
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.look()
    lingering = job(play.stage("tiny"))
    play.look(lingering)
    assert play.look(lingering, tiny=complete(play)).actions == ()
    assert play.look(lingering, after=LINGER_SECONDS).actions == (StopJob(lingering, "StageComplete"),)
    on_lost_node = job(play.stage("tiny"), phase=JobPhase.TERMINATING, blocked_by_node="node-7")
    assert play.look(on_lost_node).actions == (StartJob("small", 1),)


def test_pods_that_outlive_the_trainer_of_a_finished_stage_are_ended_before_the_next_begins() -> None:
    play = Play(chain((("tiny", None), ("small", "tiny"))))
    play.look()
    play.look(job(play.stage("tiny")))
    ended = job(play.stage("tiny"), phase=JobPhase.SUCCEEDED, ended_at=play.now, holds_pods=True)
    assert play.look(ended, tiny=complete(play)).actions == ()
    assert play["small"].reason == "PredecessorEnding"
    assert play.look(ended, after=LINGER_SECONDS).actions == (StopJob(ended, "StageComplete"),)
    assert play.look(after=1).actions == (StartJob("small", 1),)


def test_pods_that_outlive_a_trainer_that_has_failed_are_ended_at_once() -> None:
    play = Play(chain((("tiny", None),)))
    play.look()
    play.look(job(play.stage("tiny")))
    ended = job(play.stage("tiny"), phase=JobPhase.FAILED, exit_code=65, holds_pods=True, ended_at=play.now)
    assert play.look(ended).actions == (StopJob(ended, play["tiny"].reason),)
    assert play["tiny"].phase is StagePhase.FAILED
