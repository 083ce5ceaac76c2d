"""Which jobs the chain, as it is written now, would have otherwise."""

from __future__ import annotations

import copy
import time

import pytest

from modelchain.reconcile.observation import Job
from modelchain.stage_probe import StoreSnapshot
from modelchain_operator.acceptance import Accepted, accept
from modelchain_operator.jobs import JobDefaults, JobRequest
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.observe import ChainMemory, observe, snapshot_of
from tests.operator.test_acceptance import body

IMAGE = "registry.example/trainer:1"


def accepted(of: Object, default_image: str = IMAGE) -> Accepted:
    answer = accept(of, default_image=default_image)
    assert isinstance(answer, Accepted)
    return answer


def made_for(of: Object, default_image: str = IMAGE) -> Object:
    """The job of the first stage, as the API server would have it."""
    chain = accepted(of, default_image)
    request = JobRequest(
        chain.chain.stage("s"), chain.jobs["s"], chain.store, 1, JobDefaults(image=default_image)
    )
    *_, job = chain.backend("s").build(request)
    job["metadata"] |= {"uid": "job-uid"}
    return job


def seen(of: Object, job: Object, default_image: str = IMAGE, waits: str = "ContainerCreating") -> Job:
    """The job of a chain that is written so now."""
    memory = ChainMemory("uid")
    pod: Object = {
        "metadata": {
            **copy.deepcopy(job["metadata"]),
            "name": "pod",
            "uid": "pod-uid",
            "ownerReferences": [
                {
                    "apiVersion": job["apiVersion"],
                    "kind": job["kind"],
                    "name": job["metadata"]["name"],
                    "uid": "job-uid",
                    "controller": True,
                }
            ],
        },
        "spec": {"nodeName": "node"},
        "status": {
            "phase": "Pending",
            "containerStatuses": [{"name": "pytorch", "state": {"waiting": {"reason": waits}}}],
        },
    }
    stores = StoreSnapshot(facts={}, read_at={}, readable_since=0.0, progress_changed_at={}, measurement=None)
    snapshot = snapshot_of(of, [job], [pod], memory)
    (found,) = observe(
        snapshot, accepted(of, default_image), stores, memory, not_served=(), now=time.time()
    ).jobs
    return found


def test_a_job_is_what_the_chain_asks_for_until_an_edit_of_how_it_runs() -> None:
    job = made_for(body())
    assert not seen(body(), job).outdated
    for edit in (
        {"image": "registry.example/trainer:2"},
        {"job": {"gpusPerNode": 1}},
        {"store": {"uri": "s3://bucket/prefix", "secretRef": {"name": "other"}}},
    ):
        assert seen(body(**edit), job).outdated, edit
    for edit in (
        {"retry": {"limit": 9}},
        {"suspend": True},
        {"job": {**body()["spec"]["job"], "startDeadlineSeconds": 600}},
    ):
        assert not seen(body(**edit), job).outdated, edit


@pytest.mark.parametrize(
    ("waits", "outdated"),
    [("ImagePullBackOff", True), ("InvalidImageName", True), ("ContainerCreating", False)],
)
def test_another_default_image_is_for_jobs_that_can_not_have_theirs(waits: str, outdated: bool) -> None:
    chain = body(image=None)
    job = made_for(chain, "registry.example/trainer:wrong")
    assert seen(chain, job, IMAGE, waits).outdated is outdated


def test_a_job_of_an_operator_that_did_not_write_what_it_was_asked_for_is_left_alone() -> None:
    job = made_for(body())
    del job["metadata"]["annotations"]["modelchain.dev/request"]
    assert not seen(body(image="registry.example/trainer:2"), job).outdated
