"""An edit trains anew what it changes and what follows, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelchain.reconcile.actions import StartJob, StopJob
from modelchain.reconcile.observation import JobPhase, StageFacts
from modelchain.status import StagePhase
from tests.modelchain.reconcile.chains import Play, chain, job, manifest

TREE = (("root", None), ("left", "root"), ("right", "root"), ("leaf", "left"))


def finished(play: Play) -> dict[str, StageFacts]:
    """Every stage of the chain is in the store."""
    return {stage.name: StageFacts(manifest=manifest(stage)) for stage in play.chain.stages}


def edited(play: Play, **epochs: int) -> None:
    """Edit the chain: the changed stages and their descendants are not in the store."""
    before = {stage.name: stage.digest for stage in play.chain.stages}
    play.chain, play.generation = chain(TREE, epochs=epochs), play.generation + 1
    for stage in play.chain.stages:
        if stage.digest != before[stage.name]:
            play.store[stage.name] = StageFacts()


def test_only_the_changed_stage_and_its_descendants_run_again() -> None:
    play = Play(chain(TREE))
    play.store = finished(play)
    play.look()
    edited(play, left=5)
    assert play.look().actions == (StartJob("left", 1),)
    phases = {name: play[name].phase for name, _ in TREE}
    assert phases == {
        "root": StagePhase.CACHED,
        "left": StagePhase.PENDING,
        "right": StagePhase.CACHED,
        "leaf": StagePhase.PENDING,
    }


def test_a_running_job_that_an_edit_superseded_is_stopped_first_and_no_number_comes_twice() -> None:
    play = Play(chain(TREE))
    play.look()
    old = job(play.stage("root"))
    play.look(old)
    edited(play, root=5)
    assert play.look(old).actions == (StopJob(old, "Superseded"),)
    assert play.look(job(play.stage("root"), digest=old.digest, phase=JobPhase.TERMINATING)).actions == ()
    assert play.look().actions == (StartJob("root", 2),)
    assert play["root"].failures == 0


def test_an_edit_that_does_not_change_weights_lets_a_running_job_run() -> None:
    play = Play(chain(TREE))
    play.look()
    running = job(play.stage("root"))
    play.look(running)
    play.chain, play.generation = chain(TREE, retry={"limit": 9}), 2
    assert play.look(running).actions == ()


def test_failures_of_the_stage_as_it_was_do_not_count_for_what_it_is_now() -> None:
    play = Play(chain(TREE))
    play.look()
    play.look(job(play.stage("root")))
    failed = job(play.stage("root"), phase=JobPhase.FAILED, exit_code=1)
    play.look(failed)
    assert play["root"].failures == 1
    edited(play, root=5)
    play.look()
    assert (play["root"].failures, play["root"].attempt) == (0, 2)


def test_taking_an_edit_back_finds_the_old_weights() -> None:
    play = Play(chain(TREE))
    play.store = finished(play)
    play.look()
    kept = dict(play.store)
    edited(play, left=5)
    play.look()
    play.chain, play.generation, play.store = chain(TREE), 3, kept
    assert play.look().actions == ()
    assert play["left"].finished


@pytest.mark.parametrize("phase", [JobPhase.PENDING, JobPhase.QUEUED])
def test_a_job_that_waits_for_what_an_edit_has_corrected_is_replaced_at_once(phase: JobPhase) -> None:
    play = Play(chain(TREE))
    play.look()
    waiting = job(play.stage("root"), phase=phase, reason="ImagePullBackOff", message="no such image")
    play.look(waiting)
    outdated = replace(waiting, outdated=True)
    assert play.look(outdated).actions == (StopJob(outdated, "Superseded"),)
    assert play.look().actions == (StartJob("root", 2),), "without a wait"
    assert (play["root"].failures, play["root"].disruptions) == (0, 0)


def test_a_job_that_runs_goes_on_as_it_was_made_whatever_an_edit_has_changed_of_it() -> None:
    play = Play(chain(TREE))
    play.look()
    running = job(play.stage("root"), outdated=True)
    assert play.look(running).actions == ()
    assert play["root"].attempt == 1
