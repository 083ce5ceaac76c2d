"""Models trained alone come after the chain, and whatever becomes of them, the chain is complete."""

from __future__ import annotations

from modelchain.reconcile.actions import Decision, StartJob, StopJob
from modelchain.reconcile.baseline import is_due
from modelchain.reconcile.observation import Job, JobPhase, StageFacts, StoreProblem, Unmeasurable
from modelchain.status import (
    ChainPhase,
    Condition,
    ConditionType,
    Measurement,
    ModelMeasured,
    StagePhase,
    StageStatus,
)
from tests.modelchain.reconcile.chains import Play, chain, job, manifest

STAGES = (("tiny", None), ("small", "tiny"))
BASELINE = {"train": ["small"], "epochs": 8, "budgetMatched": True}
MEASURED = Measurement(
    metric="digits/top1",
    chain_macs=100.0,
    models=(ModelMeasured(name="small", target=0.75, macs=250.0, reached=True),),
)


def look(play: Play, *jobs: Job, **facts: StageFacts) -> Decision:
    """As `play.look`; underscores stand for dashes."""
    play.store = play.store | {name.replace("_", "-"): fact for name, fact in facts.items()}
    return play.look(*jobs)


def complete(play: Play, *names: str) -> None:
    """These stages are finished."""
    play.store = play.store | {name: StageFacts(manifest=manifest(play.stage(name))) for name in names}
    play.look()


def condition(play: Play) -> Condition:
    assert play.status is not None
    found = play.status.condition(ConditionType.BASELINE_COMPLETE)
    assert found is not None
    return found


def compared() -> Play:
    """A chain that is complete, whose models alone have not begun."""
    play = Play(chain(STAGES, baseline=BASELINE))
    complete(play, "tiny", "small")
    return play


def test_a_chain_that_asks_for_none_says_nothing_of_it() -> None:
    play = Play(chain(STAGES))
    complete(play, "tiny", "small")
    assert play.status is not None
    assert play.status.condition(ConditionType.BASELINE_COMPLETE) is None
    assert (play.status.baselines, play.status.measurement) == ((), None)


def test_they_wait_for_the_whole_chain() -> None:
    play = Play(chain(STAGES, baseline=BASELINE))
    assert play.look().actions == (StartJob("tiny", 1),)
    assert (play["small-alone"].phase, play["small-alone"].reason) == (StagePhase.PENDING, "ChainIncomplete")
    complete(play, "tiny")
    assert play["small-alone"].reason == "ChainIncomplete"
    assert (condition(play).status, condition(play).reason) == ("False", "ChainIncomplete")


def test_they_start_one_at_a_time_when_the_chain_is_complete() -> None:
    play = Play(chain(STAGES, baseline=BASELINE))
    complete(play, "tiny", "small")
    assert play.status is not None
    assert play.status.phase is ChainPhase.COMPLETE
    assert play.status.is_true(ConditionType.COMPLETE)
    assert (play["small-alone"].attempt, play["small-alone"].reason) == (1, "Starting")
    assert (play["small-alone-matched"].attempt, play["small-alone-matched"].reason) == (0, "ParallelLimit")
    running = job(play.stage("small-alone"))
    assert play.look(running).actions == ()
    assert play.status.message == "all 2 stages are complete; small-alone is trained to compare"
    assert condition(play).reason == "Training"
    done = look(
        play,
        job(play.stage("small-alone"), phase=JobPhase.SUCCEEDED),
        small_alone=StageFacts(manifest=manifest(play.stage("small-alone"))),
    )
    assert done.actions == (StartJob("small-alone-matched", 1),)


def test_a_job_of_the_chain_that_still_ends_is_waited_for() -> None:
    play = Play(chain(STAGES, baseline=BASELINE))
    complete(play, "tiny")
    last = job(play.stage("small"))
    play.look(last)
    decision = play.look(last, small=StageFacts(manifest=manifest(play.stage("small"))))
    assert decision.actions == ()
    assert play["small-alone"].reason == "ParallelLimit"


def test_one_that_fails_leaves_the_chain_complete_and_holds_up_no_other() -> None:
    play = Play(chain(STAGES, baseline=BASELINE, retry={"limit": 0}))
    complete(play, "tiny", "small")
    play.look(job(play.stage("small-alone"), phase=JobPhase.FAILED, exit_code=1, message="out of memory"))
    decision = play.look()
    assert play["small-alone"].phase is StagePhase.FAILED
    assert decision.actions == (StartJob("small-alone-matched", 1),)
    complete(play, "small-alone-matched")
    assert play.status is not None
    assert play.status.phase is ChainPhase.COMPLETE
    assert not play.status.is_true(ConditionType.FAILED)
    found = condition(play)
    assert (found.status, found.reason) == ("False", "RunsFailed")
    assert "small-alone" in found.message and "out of memory" in found.message
    assert play.status.speedup_measured is None
    play.generation += 1
    assert play.look().actions == (StartJob("small-alone", 2),), "an edit asks it again"


def test_what_was_measured_is_said_once_all_are_complete_and_stays() -> None:
    play = compared()
    complete(play, "small-alone", "small-alone-matched")
    assert (condition(play).status, condition(play).reason) == ("False", "Measuring")
    assert is_due(play.chain, play.status)
    play.more = {"measurement": MEASURED, "speedup_planned": 3.1}
    play.look()
    assert play.status is not None
    assert (play.status.columns.speedup_measured, play.status.columns.speedup_planned) == ("2.50x", "3.10x")
    assert play.status.speedup_measured == 2.5
    assert condition(play).status == "True"
    assert condition(play).message == (
        "2.50x measured at equal digits/top1: small alone, over the chain's compute"
    )
    assert not is_due(play.chain, play.status)
    play.more = {}
    play.look(after=1000)
    assert play.status.measurement == MEASURED, "it is not read again"


def test_a_model_that_alone_did_not_get_there_makes_a_lower_bound() -> None:
    play = compared()
    complete(play, "small-alone", "small-alone-matched")
    short = MEASURED.models[0].model_copy(update={"reached": False})
    play.more = {"measurement": MEASURED.model_copy(update={"models": (short,)})}
    play.look()
    assert play.status is not None
    assert play.status.columns.speedup_measured == ">= 2.50x"
    assert "small (not reached)" in condition(play).message


def test_an_edit_forgets_what_was_measured_on_other_weights() -> None:
    play = compared()
    complete(play, "small-alone", "small-alone-matched")
    play.more = {"measurement": MEASURED}
    play.look()
    play.more = {}
    play.chain = chain(STAGES, epochs={"small": 3}, baseline=BASELINE)
    play.generation += 1
    play.store = {}
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))), small=StageFacts())
    assert play.status is not None
    assert (play.status.measurement, play.status.speedup_measured) == (None, None)
    assert condition(play).status == "False"


def test_another_metric_is_measured_anew() -> None:
    play = compared()
    complete(play, "small-alone", "small-alone-matched")
    play.more = {"measurement": MEASURED}
    play.look()
    assert play.chain.baseline is not None
    other = play.chain.baseline.model_copy(update={"metric": "digits/top5"})
    play.chain = play.chain.model_copy(update={"baseline": other})
    play.more = {}
    play.look()
    assert condition(play).reason == "Measuring"
    assert is_due(play.chain, play.status)


def test_what_can_not_be_measured_is_said_and_not_asked_again_until_the_chain_is() -> None:
    play = compared()
    complete(play, "small-alone", "small-alone-matched")
    play.more = {"measurement": Unmeasurable("stage small ended without digits/top1")}
    play.look()
    found = condition(play)
    assert (found.status, found.reason) == ("True", "NotMeasured")
    assert "stage small ended without digits/top1" in found.message
    play.more = {}
    play.look()
    assert condition(play) == found
    play.generation += 1
    play.look()
    assert condition(play).reason == "Measuring"


def test_they_give_way_to_a_stage_of_the_chain_that_an_edit_begins_anew() -> None:
    play = compared()
    running = job(play.stage("small-alone"))
    play.look(running)
    play.chain = chain(STAGES, epochs={"tiny": 3}, baseline={**BASELINE, "budgetMatched": False})
    play.generation += 1
    decision = play.look(running, tiny=StageFacts(), small=StageFacts())
    assert StopJob(running, "ChainIncomplete") in decision.actions
    assert StartJob("tiny", 1) in decision.actions, "the chain is not held up"
    ended = play["small-alone"].last_ended
    assert ended is not None and not ended.counted


def test_suspending_stops_them_too() -> None:
    play = compared()
    running = job(play.stage("small-alone"))
    play.look(running)
    play.chain = play.chain.model_copy(update={"suspend": True})
    assert play.look(running).actions == (StopJob(running, "Suspended"),)
    assert play.status is not None
    assert play.status.phase is ChainPhase.COMPLETE
    assert condition(play).reason == "Suspended"


def test_a_store_that_does_not_answer_is_said_where_they_wait_for_it() -> None:
    play = compared()
    away = StageFacts(problem=StoreProblem.UNAVAILABLE, message="s3://models does not answer")
    play.status = None
    look(play, small_alone=away, small_alone_matched=away)
    assert (condition(play).status, condition(play).reason) == ("False", "StoreUnavailable")
    assert "s3://models does not answer" in condition(play).message


def test_artifacts_that_vanish_before_they_were_read_are_named_and_do_not_touch_the_chain() -> None:
    play = compared()
    complete(play, "small-alone", "small-alone-matched")
    look(play, small_alone=StageFacts())
    assert play.status is not None
    assert not play.status.is_true(ConditionType.ARTIFACTS_MISSING)
    assert (condition(play).status, condition(play).reason) == ("False", "ArtifactsMissing")
    assert "small-alone" in condition(play).message
    play.more = {"retrain_missing": "today"}
    assert play.look().actions == (StartJob("small-alone", 2),)


def test_one_that_the_store_holds_already_is_not_trained() -> None:
    play = compared()
    other = manifest(play.stage("small-alone"), chain_name="default/study")
    fresh = Play(play.chain)
    complete(fresh, "tiny", "small")
    fresh.status = None
    look(fresh, small_alone=StageFacts(manifest=other))
    assert isinstance(fresh["small-alone"], StageStatus)
    assert fresh["small-alone"].phase is StagePhase.CACHED
