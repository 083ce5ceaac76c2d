"""Chains that are refused while they have jobs: what of these is believed, and until when they are looked for."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE
from modelchain.status import StagePhase, StageStatus
from modelchain_operator.jobs.trees import JobTree, job_trees
from modelchain_operator.kubernetes.api import Object, Unavailable
from modelchain_operator.kubernetes.kinds import CHAIN, JOB, POD
from modelchain_operator.observe import reference_of, status_of
from modelchain_operator.recovered_stages import recovered
from tests.operator.test_worlds import STAYS, World, chain


@pytest.fixture
def world() -> Iterator[World]:
    """With one operator and the chain that stays."""
    world = World()
    world.operators = world.operators[:1]
    world.api.put(CHAIN, chain(STAYS, ["tiny", "small"]))
    yield world
    world.loop.close()


def look(world: World, times: int = 4) -> StageStatus:
    """A few passes, with all that has changed. The first stage as it is then."""
    for _ in range(times):
        world.watch(len(world.api.changes))
        world.passes(STAYS, 0)
    status = status_of(world.api.objects[CHAIN, *STAYS])
    assert status is not None
    return status.stages[0]


def train(world: World) -> Object:
    """The first stage's job, which runs."""
    while look(world).phase is not StagePhase.RUNNING:
        world.kubelet(2)
    (job,) = world.own_jobs()
    return job


def open_stage(world: World, job: Object) -> tuple[Object, list[JobTree], StageStatus]:
    body = world.api.objects[CHAIN, *STAYS]
    status = status_of(body)
    assert status is not None
    trees = job_trees(reference_of(body), status.last_attempts, [job], [])
    return body, list(trees), status.stages[0]


def says(job: Object, /, **told: Any) -> None:
    """Write something else into the stage of the job's environment."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variable = next(one for one in container["env"] if one["name"] == STAGE_ENVIRONMENT_VARIABLE)
    variable["value"] = json.dumps({**json.loads(variable["value"]), **told})


def is_ended_by_suspending(world: World) -> None:
    """What runs of the refused chain."""
    world.suspend(True)
    ended = look(world).last_ended
    assert ended is not None
    assert ended.reason == "Suspended"
    assert not world.own_jobs()


def test_what_a_job_trains_is_read_from_it_and_whose_it_is_from_the_chain(world: World) -> None:
    body, trees, stage = open_stage(world, train(world))
    found = recovered(body, trees, [stage])
    assert found is not None
    assert found.chain.chain == reference_of(body)
    assert [one.digest for one in found.chain.stages] == [stage.digest]
    assert found.store.secret_ref is not None


@pytest.mark.parametrize(
    "told",
    [
        {"chain": {"namespace": "victim", "name": "family", "uid": "uid-stays"}},
        {"chain": {"namespace": "stays", "name": "another", "uid": "uid-stays"}},
        {"chain": {"namespace": "stays", "name": "family", "uid": "uid-of-another"}},
        {"name": "small"},
        {"digest": "0" * 64},
        {"store": {"uri": "s3://elsewhere/chains"}},
        {"store": {"uri": "s3://chains/test", "endpointUrl": "https://elsewhere"}},
        {"retry": {"limit": 1000}},
        {"job": {"nodes": 2}},
        {"folder": "stages/another"},
    ],
)
def test_a_job_that_says_something_else_than_its_attempt_was_told_does_not_count(
    world: World, told: dict[str, Any]
) -> None:
    job = train(world)
    says(job, **told)
    body, trees, stage = open_stage(world, job)
    assert len(trees) == 1, "by its labels, its name and its controller it is ours"
    assert recovered(body, trees, [stage]) is None


def untold(world: World, **status: Any) -> None:
    """The operator is upgraded: nobody has recorded what the attempt was told, or another one."""
    body = world.api.objects[CHAIN, *STAYS]
    stage = body["status"]["stages"][0]
    for name in ("resolvedSha256", "resolvedAttempt"):
        stage.pop(name, None)
    stage.update(status)
    world.api.put(CHAIN, body)
    world.operators[0].reconciler.memories.clear()


@pytest.mark.parametrize("status", [{}, {"resolvedSha256": "0" * 64, "resolvedAttempt": 7}])
def test_what_an_older_version_has_started_stays_under_control_in_a_chain_that_is_refused_already(
    world: World, status: dict[str, Any]
) -> None:
    """An older version leaves what it does not know as it is, of whatever attempt that was."""
    train(world)
    world.an_edit_is_refused(wrong=True)
    untold(world, **status)
    assert look(world).phase is StagePhase.RUNNING
    is_ended_by_suspending(world)


@pytest.mark.parametrize(
    "told",
    [
        {"store": {"uri": "s3://elsewhere/chains"}},
        {"store": {"uri": "s3://bucket/stays", "endpointUrl": "https://elsewhere"}},
        {"store": {"uri": "s3://bucket/stays", "region": "elsewhere"}},
        {"digest": "0" * 64},
        {"folder": "stages/another"},
        {"chain": {"namespace": "victim", "name": "family", "uid": "uid-stays"}},
    ],
)
def test_where_nothing_is_recorded_a_job_with_another_store_or_digest_does_not_count(
    world: World, told: dict[str, Any]
) -> None:
    job = train(world)
    body, trees, stage = open_stage(world, job)
    unrecorded = [stage.model_copy(update={"resolved_sha256": None})]
    assert recovered(body, trees, unrecorded) is not None
    says(job, **told)
    body, trees, stage = open_stage(world, job)
    assert recovered(body, trees, unrecorded) is None


def test_where_nothing_is_recorded_and_the_spec_has_no_store_no_job_counts(world: World) -> None:
    body, trees, stage = open_stage(world, train(world))
    body["spec"]["store"] = {"uri": 7}
    assert recovered(body, trees, [stage.model_copy(update={"resolved_sha256": None})]) is None
    assert recovered(body, trees, [stage]) is not None


def test_what_a_job_was_told_counts_however_the_chain_was_edited_since(world: World) -> None:
    job = train(world)
    body = world.api.objects[CHAIN, *STAYS]
    body["spec"]["retry"] = {"limit": 7}
    world.edit(body)
    look(world)
    body, trees, stage = open_stage(world, job)
    found = recovered(body, trees, [stage])
    assert found is not None
    assert found.chain.stages[0].retry.limit != 7
    world.an_edit_is_refused(wrong=True)
    is_ended_by_suspending(world)


def test_what_runs_of_a_chain_that_becomes_too_large_keeps_its_store_and_can_be_suspended(
    world: World,
) -> None:
    train(world)
    body = world.api.objects[CHAIN, *STAYS]
    text = base64.b64encode(secrets.token_bytes(600_000)).decode()
    body["spec"]["job"]["podTemplate"] = {"metadata": {"annotations": {"x": text}}}
    world.edit(body)
    assert look(world).phase is StagePhase.RUNNING
    operator = world.operators[0]
    still_running = operator.reconciler.memories[STAYS].still_running
    assert still_running is not None
    assert still_running.accepted is not None
    assert still_running.accepted.store.secret_ref is not None
    is_ended_by_suspending(world)


def test_no_store_is_read_for_the_chain_that_a_forged_job_names(world: World) -> None:
    job = train(world)
    world.an_edit_is_refused(wrong=True)
    says(job, chain={"namespace": "victim", "name": "family", "uid": "uid-stays"})
    world.api.put(JOB, job)
    stage = look(world)  # the stores assert it
    assert "is not known to be what attempt 1 was told" in stage.message


def test_a_job_that_appears_after_the_chain_was_refused_is_looked_after(world: World) -> None:
    """Its creation was under way: the API server answered too late."""
    on_their_way: list[Object] = []

    def too_late(manifest: Object) -> None:
        on_their_way.append(manifest)
        raise Unavailable("no answer in time")

    world.api.on_create = too_late
    while not on_their_way:
        world.watch(len(world.api.changes))
        world.passes(STAYS, 0)
    world.an_edit_is_refused(wrong=True)
    stage = look(world)
    assert (stage.attempt, stage.job, stage.reason) == (1, None, "SpecRefused")
    world.api.put(JOB, on_their_way[0])
    for _ in range(3):
        look(world)
        world.kubelet(2)
    assert look(world).phase is StagePhase.RUNNING
    is_ended_by_suspending(world)


def test_the_end_of_an_attempt_is_recorded_whose_job_vanishes_from_a_refused_chain(world: World) -> None:
    job = train(world)
    world.an_edit_is_refused(wrong=True)
    world.api.take(JOB, STAYS.namespace, job["metadata"]["name"])
    for pod in world.api.all(POD):
        world.api.take(POD, STAYS.namespace, pod["metadata"]["name"])
    stage = look(world)
    assert stage.last_ended is not None
    assert (stage.last_ended.reason, stage.job) == ("JobVanished", None)
    version = world.api.objects[CHAIN, *STAYS]["metadata"]["resourceVersion"]
    look(world)
    assert world.api.objects[CHAIN, *STAYS]["metadata"]["resourceVersion"] == version, "it is said once"
