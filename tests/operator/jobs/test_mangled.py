"""Jobs and pods that others have made or changed, of any shape: reading them never fails, and none counts as done."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain.reconcile.observation import JobPhase
from modelchain.spec import JobBackend
from modelchain_operator.informers.slim import slim
from modelchain_operator.jobs import BACKENDS
from modelchain_operator.jobs.events import unexplained
from modelchain_operator.jobs.history import JobMemory
from modelchain_operator.jobs.observed import observe_jobs
from modelchain_operator.jobs.trees import JobTree, Place
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.kinds import POD
from modelchain_operator.recovered_stages import stage_of
from tests.operator.jobs.test_backends import each_backend, made

JUNK = st.sampled_from(
    [None, True, False, -1, 0.5, 10**30, "", "x", [], [None], ["x"], {}, {"x": None}, [[{}]]]
)
CONDITIONS = [{"type": "Running", "status": "True"}, {"type": "Complete", "status": "False"}]
STATUSES: list[Object] = [
    {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}]},
    {
        "phase": "Running",
        "containerStatuses": [
            {"name": "pytorch", "state": {"running": {"startedAt": "2026-11-20T00:00:00Z"}}}
        ],
    },
    {
        "phase": "Pending",
        "initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "ImagePullBackOff"}}}],
    },
    {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "low on memory",
        "containerStatuses": [
            {
                "name": "pytorch",
                "state": {
                    "terminated": {
                        "exitCode": 1,
                        "reason": "Error",
                        "message": json.dumps({"reason": "Broken", "message": "x", "exitCode": 1}),
                        "finishedAt": "2026-11-20T00:00:00Z",
                    }
                },
            }
        ],
        "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "Evicted", "message": "gone"}
        ],
    },
]


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field and every item, by its path."""
    if above:
        yield above
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*above, key))


@st.composite
def mangled(draw: st.DrawFn, item: Object) -> Object:
    """With other things, or nothing, at some places of its spec and status."""
    item = copy.deepcopy(item)
    for _ in range(draw(st.integers(0, 4))):
        found = [path for path in places(item) if path[0] in ("spec", "status")]
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        parent = item
        for key in above:
            parent = parent[key]
        if isinstance(parent, dict) and draw(st.booleans()):
            del parent[last]
        else:
            parent[last] = copy.deepcopy(draw(JUNK))
    return item


@each_backend
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_job_of_any_shape_is_read_and_not_done(backend: JobBackend, data: st.DataObject) -> None:
    seam = BACKENDS[backend]
    whole = {
        **made(backend),
        "status": {"conditions": CONDITIONS, "ready": 1, "jobsStatus": [{"name": "node"}]},
    }
    job = data.draw(mangled(whole), "job")
    pods = [
        data.draw(
            mangled({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": "node"}, "status": status})
        )
        for name in data.draw(st.sampled_from([[], ["pod-0"], ["pod-0", "pod-1"]]), "pods")
        for status in [data.draw(st.sampled_from(STATUSES))]
    ]
    stage_of(job)
    for one, those in ((job, pods), (slim(seam.kind, job), [slim(POD, pod) for pod in pods])):
        state = seam.read(one)
        assert not state.succeeded
        assert state.wanted_pods >= 1
        tree = JobTree(Place("s", 1, one["metadata"]["name"]), one, tuple(those))
        memory = JobMemory()
        for _ in range(2):
            (seen,) = observe_jobs([tree], memory, 2e9)
            assert seen.phase is not JobPhase.SUCCEEDED
        unexplained(one, those)
    if pods:
        (left,) = observe_jobs([JobTree(Place("s", 1, "job"), None, tuple(pods))], JobMemory(), 2e9)
        assert left.phase is not JobPhase.SUCCEEDED


@pytest.mark.parametrize("replicas", [None, {}, {"Master": None}, {"Master": {"replicas": None}}])
def test_a_job_that_asks_for_no_pods_has_not_succeeded_by_having_none(replicas: object) -> None:
    job = made(JobBackend.PYTORCH_JOB)
    job["spec"] = {"pytorchReplicaSpecs": replicas}
    job = slim(BACKENDS[JobBackend.PYTORCH_JOB].kind, job)
    (seen,) = observe_jobs([JobTree(Place("s", 1, "job"), job, ())], JobMemory(), 2e9)
    assert seen.phase is JobPhase.PENDING
