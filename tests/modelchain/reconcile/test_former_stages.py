"""Stages that an edit removes, renames or brings back."""

from __future__ import annotations

from modelchain.reconcile.actions import StartJob, StopJob
from modelchain.reconcile.observation import Job, JobPhase
from modelchain.status import MAX_FORMER_STAGES, FormerStage
from tests.modelchain.reconcile.chains import NOW, Play, chain, job


def renamed(play: Play, name: str) -> None:
    """The only stage, under another name: its digest is the same."""
    before = play.chain.stages[0].digest
    play.chain, play.generation = chain(((name, None),)), play.generation + 1
    assert play.chain.stages[0].digest == before
    play.store = {name: play.store.popitem()[1]}


def running(name: str = "tiny") -> tuple[Play, Job]:
    play = Play(chain(((name, None),)))
    play.look()
    first = job(play.stage(name))
    play.look(first)
    return play, first


def ending(of: Job, **more: object) -> Job:
    fields = {name: getattr(of, name) for name in ("stage", "attempt", "digest", "name")}
    return Job(**fields, phase=JobPhase.TERMINATING, **more)  # pyright: ignore[reportArgumentType]


def test_a_renamed_stage_waits_for_the_job_under_its_old_name() -> None:
    play, old = running()
    renamed(play, "small")
    assert play.look(old).actions == (StopJob(old, "Superseded"),)
    assert (play["small"].reason, play["small"].attempt) == ("Stopping", 0)
    assert old.name in play["small"].message
    assert play.look(ending(old)).actions == ()
    assert play.look().actions == (StartJob("small", 1),)


def test_two_stages_that_change_names_wait_for_each_others_jobs() -> None:
    tree = (("a", None), ("b", "a"))
    play = Play(chain(tree, epochs={"a": 3, "b": 4}))
    play.look()
    old = job(play.stage("a"))
    play.look(old)
    play.chain, play.generation = chain((("b", None), ("a", "b")), epochs={"b": 3, "a": 4}), 2
    assert play.stage("b").digest == old.digest
    assert play.look(old).actions == (StopJob(old, "Superseded"),)
    assert play.look(ending(old)).actions == ()
    assert play.look().actions == (StartJob("b", 1),)


def test_an_old_job_that_a_dead_node_holds_is_named_until_it_is_gone() -> None:
    play, old = running()
    renamed(play, "small")
    play.look(old)
    assert play.look(ending(old, blocked_by_node="node-a")).actions == ()
    assert play["small"].reason == "NodeUnreachable"
    assert "node-a" in play["small"].message
    assert play.status is not None
    play.chain = chain((("other", None),), epochs={"other": 9})
    play.generation += 1
    play.store = {"other": play.store.popitem()[1]}
    assert play.look(ending(old, blocked_by_node="node-a")).actions == (StartJob("other", 1),)
    assert "removed stage tiny: node node-a does not answer" in play.status.message
    play.look(job(play.stage("other")))
    assert "node-a" not in play.status.message


def test_a_stage_that_comes_back_counts_its_attempts_on() -> None:
    play, old = running()
    renamed(play, "small")
    play.look(old)
    play.look()
    assert play.status is not None
    assert play.status.former_stages == (FormerStage(name="tiny", attempt=1),)
    renamed(play, "tiny")
    there = job(chain((("small", None),)).stages[0])
    play.look(there)
    assert play.look(ending(there)).actions == ()
    assert play.look().actions == (StartJob("tiny", 2),)
    assert [one.name for one in play.status.former_stages] == ["small"]
    assert play["tiny"].failures == 0


def test_a_chain_that_changes_names_for_ever_keeps_the_latest() -> None:
    play, _ = running("s0")
    for number in range(1, MAX_FORMER_STAGES + 3):
        renamed(play, f"s{number}")
        play.look()
        play.look(job(play.stage(f"s{number}")))
    assert play.status is not None
    kept = [one.name for one in play.status.former_stages]
    assert kept == [f"s{number}" for number in range(2, MAX_FORMER_STAGES + 2)]


def test_a_job_that_does_not_go_is_said_to_be_stuck() -> None:
    play, old = running()
    gone_by = NOW + 100
    held = ending(old, deleted_at=gone_by, held_by="finalizer example.com/hold")
    decision = play.look(held, after=100)
    assert play["tiny"].reason == "Stopping"
    assert decision.wake_at is not None
    assert decision.wake_at > play.now
    play.now = decision.wake_at
    play.look(held)
    assert play["tiny"].reason == "DeletionStuck"
    assert "example.com/hold" in play["tiny"].message
    assert play.status is not None
    progressing = next(one for one in play.status.conditions if one.type == "Progressing")
    assert (progressing.status, progressing.reason) == ("False", "DeletionStuck")


def test_a_suspended_chain_says_what_holds_its_job() -> None:
    play, old = running()
    play.chain = chain((("tiny", None),), suspend=True)
    play.look(old)
    play.look(ending(old, blocked_by_node="node-a"))
    assert play.status is not None
    progressing = next(one for one in play.status.conditions if one.type == "Progressing")
    assert (progressing.status, progressing.reason) == ("False", "NodeUnreachable")
    assert "node-a does not answer" in progressing.message
    assert "node-a does not answer" in play["tiny"].message
