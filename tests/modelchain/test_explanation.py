"""Why a chain waits or has failed, in one paragraph: from statuses as `decide` writes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from modelchain.explanation import ADVICE, Situation, explain
from modelchain.reconcile.conditions import refused
from modelchain.reconcile.observation import JobPhase, StageFacts, StoreProblem
from modelchain.status import ChainStatus
from tests.modelchain.reconcile.chains import NOW, Play, chain, job, manifest, progress

PAGE = Path(__file__).parents[2] / "docs" / "failure-modes.md"
TREE = (("tiny", None), ("small", "tiny"))


def told(status: ChainStatus | None, now: float = NOW, **more: object) -> str:
    text = explain(Situation("default/family", status, **more), now)  # pyright: ignore[reportArgumentType]
    assert "\n" not in text
    assert text.endswith(".")
    assert ".." not in text
    return text


def started(**retry: int) -> Play:
    play = Play(chain(TREE, retry=retry or None))
    play.look()
    return play


def test_a_chain_that_trains_needs_nothing() -> None:
    play = started()
    status = play.look(
        job(play.stage("tiny")), tiny=StageFacts(progress=progress(4), progress_attempt=1)
    ).status
    text = told(status)
    assert "stage tiny is being trained, attempt 1, step 4 of 16" in text
    assert "There is nothing to do." in text


def test_after_a_failure_it_says_why_and_when_the_next_attempt_starts() -> None:
    play = started(limit=3, backoffSeconds=60)
    play.look(job(play.stage("tiny")))
    ended = job(
        play.stage("tiny"), phase=JobPhase.FAILED, exit_code=1, reason="OOMKilled", message="too much memory"
    )
    play.look(ended)
    status = play.look(after=10).status
    text = told(status, play.now)
    assert "stage tiny waits (BackOff)" in text
    assert "too much memory" in text
    assert f"starts the next attempt at {status.stages[0].retry_at}, in 50s." in text


def test_a_warning_that_repeats_what_is_said_already_is_left_out() -> None:
    play = started()
    play.look(job(play.stage("tiny")))
    ended = job(
        play.stage("tiny"), phase=JobPhase.FAILED, exit_code=1, reason="OOMKilled", message="too much memory"
    )
    status = play.look(ended).status
    notes = ["stage tiny: attempt 1 ended: OOMKilled (exit code 1): too much memory", "exceeded quota: team"]
    text = told(status, play.now, warnings=notes)
    assert text.count("too much memory") == 1
    assert text.endswith("The latest warning was: exceeded quota: team.")


def test_what_has_failed_for_good_asks_for_an_edit() -> None:
    play = started()
    play.look(job(play.stage("tiny")))
    ended = job(
        play.stage("tiny"), phase=JobPhase.FAILED, exit_code=65, reason="UserDataError", message="bad shard"
    )
    text = told(play.look(ended).status)
    assert "stage tiny has failed for good (UserDataError): bad shard." in text
    assert "edit the chain" in text


@pytest.mark.parametrize("problem", StoreProblem)
def test_of_a_store_that_can_not_be_read_it_says_what_to_do(problem: StoreProblem) -> None:
    status = Play(chain(TREE)).look(tiny=StageFacts(problem=problem, message="s3://b/c: why")).status
    text = told(status)
    assert f"waits ({problem.value}): s3://b/c: why. The operator keeps trying" in text
    assert "What you can do: " in text


@pytest.mark.parametrize("reason", ["InvalidImageName", "NoController", "CreateContainerError"])
def test_of_what_does_not_pass_by_itself_it_never_says_to_wait(reason: str) -> None:
    play = started()
    waiting = job(play.stage("tiny"), phase=JobPhase.PENDING, reason=reason, message="its own words")
    text = told(play.look(waiting).status)
    assert f"waits ({reason}): its own words." in text
    assert "nothing to do but wait" not in text


def test_of_a_job_without_pods_it_does_not_wait_for_that() -> None:
    play = started()
    waiting = job(play.stage("tiny"), phase=JobPhase.PENDING, message="0 of 1 pods exist")
    text = told(play.look(waiting).status)
    assert text.endswith(
        "0 of 1 pods exist. The operator goes on by itself. There is nothing to do but wait."
    )


def test_of_a_store_that_is_not_allowed_it_does_not_blame_the_keys_alone() -> None:
    why = "store.endpointUrl http://minio:9000: the administrator does not allow this endpoint"
    facts = StageFacts(problem=StoreProblem.FORBIDDEN, message=why)
    text = told(Play(chain(TREE)).look(tiny=facts).status)
    assert (
        "correct the Secret or `spec.store`, or have the rights of the keys or the operator's settings"
        in text
    )


def test_of_a_running_stage_with_a_problem_it_does_not_say_that_there_is_nothing_to_do() -> None:
    play = started()
    facts = StageFacts(problem=StoreProblem.UNAVAILABLE, message="s3://b/c does not answer; waiting for it")
    text = told(play.look(job(play.stage("tiny")), tiny=facts).status)
    assert text.endswith("s3://b/c does not answer; waiting for it.")


def test_a_pod_that_can_not_be_placed_is_explained_with_the_schedulers_words() -> None:
    play = started()
    words = "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) were unschedulable"
    waiting = job(play.stage("tiny"), phase=JobPhase.PENDING, reason="Unschedulable", message=words)
    text = told(play.look(waiting).status)
    assert "waits (Unschedulable): 0/3 nodes are available" in text
    assert "The scheduler keeps looking, and the pods start when they fit" in text
    assert "fewer GPUs, smaller requests in `job.resources`, another node selector" in text
    assert "`kubectl uncordon` nodes that it calls unschedulable." in text


def test_a_refused_chain_is_told_every_problem_and_what_goes_on() -> None:
    play = started()
    running = play.look(job(play.stage("tiny"))).status
    text = told(
        refused(running, ["spec.store.uri: no", "spec.data: none"], generation=2, now=NOW), generation=2
    )
    assert "refused as it is written now: spec.store.uri: no | spec.data: none." in text
    assert "What runs (tiny) goes on" in text


def test_suspended_complete_deleted_and_unseen_chains_are_told_apart() -> None:
    assert "is suspended" in told(Play(chain(TREE, suspend=True)).look().status)
    play = Play(chain((("tiny", None),)))
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    assert "is complete" in told(play.look().status)
    assert "is being deleted" in told(play.status, deleting=True)
    assert "No operator has looked at default/family" in told(None)


def test_of_a_suspended_chain_it_says_which_node_holds_its_pods() -> None:
    play = started()
    running = job(play.stage("tiny"))
    play.look(running)
    play.chain = chain(TREE, suspend=True)
    play.look(running)
    held = replace(running, phase=JobPhase.TERMINATING, blocked_by_node="node-a")
    text = told(play.look(held).status)
    assert "is suspended: spec.suspend is set; unset it" in text
    assert "node node-a does not answer and still holds a pod" in text
    assert "bring it back, or delete the node object" in text


def test_of_lost_artifacts_it_names_the_annotation() -> None:
    play = Play(chain((("tiny", None),)))
    play.look(tiny=StageFacts(manifest=manifest(play.stage("tiny"))))
    text = told(play.look(tiny=StageFacts()).status)
    assert "has lost artifacts" in text
    assert "modelchain.dev/retrain-missing" in text


def test_an_edit_that_was_not_looked_at_and_a_warning_are_mentioned() -> None:
    text = told(started().status, generation=7, warnings=["exceeded quota: team"])
    assert "The last edit was not looked at" in text
    assert text.endswith("The latest warning was: exceeded quota: team.")


def test_the_page_of_failure_modes_gives_the_same_advice() -> None:
    section = PAGE.read_text().partition("## A stage that does not start")[2].partition("\n## ")[0]
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", section)
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in plain.splitlines()
        if "| " in line
    ]
    page = {reason: row[1:] for row in rows for reason in re.findall(r"`(\w+)`", row[0])}
    for advice in ADVICE:
        for reason in advice.reasons:
            assert page[reason] == (advice.meaning, advice.person), reason
