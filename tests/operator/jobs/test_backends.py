"""What every kind of job must do, so that nothing else has to know which one it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from modelchain.resolved import STAGE_ENVIRONMENT_VARIABLE, ChainReference, ResolvedStage
from modelchain.spec import JobBackend
from modelchain_operator.informers.slim import slim
from modelchain_operator.jobs import BACKENDS, JOB_KINDS, backend_of, kinds_of
from modelchain_operator.jobs.backend import Owner
from modelchain_operator.jobs.trees import controller_of, job_trees
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.recovered_stages import stage_of
from tests.operator.jobs.test_manifests import request

ROOT = Path(__file__).parents[3]
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=str)


def made(backend: JobBackend) -> Object:
    """A job of two nodes, as the API server would have it."""
    asked = request(job={"backend": backend.value, "nodes": 2})
    manifest = json.loads(json.dumps(BACKENDS[backend].build(asked)[-1]))
    manifest["metadata"] |= {"uid": "job-1", "resourceVersion": "7"}
    return manifest


def controlled(item: Object, owner: Object, *, namespace: str | None = None) -> Object:
    """With that owner as controller, in its namespace unless another is given."""
    metadata = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    where = {"namespace": namespace or metadata["namespace"], "ownerReferences": [reference]}
    return {**item, "metadata": {**item["metadata"], **where}}


def pod_of(job: Object, owner: Object, **more: str) -> Object:
    labels = job["metadata"]["labels"]
    return controlled({"metadata": {"name": "pod", "uid": "pod-1", "labels": labels}}, owner, **more)


@each_backend
def test_a_job_is_read_back_as_it_was_built(backend: JobBackend) -> None:
    job = made(backend)
    assert backend_of(job) is BACKENDS[backend]
    state = BACKENDS[backend].read(job)
    assert (state.wanted_pods, state.suspended, state.finished, state.managed_by) == (2, False, False, "")
    assert state.untouched
    assert isinstance(stage_of(job), ResolvedStage), "its pods say what they train"


@each_backend
def test_what_the_cache_keeps_of_a_job_reads_the_same(backend: JobBackend) -> None:
    job = made(backend)
    kept = slim(BACKENDS[backend].kind, job)
    assert BACKENDS[backend].read(kept) == BACKENDS[backend].read(job)
    assert STAGE_ENVIRONMENT_VARIABLE not in json.dumps(kept), "a stage is long, and nobody reads it there"


@each_backend
def test_only_an_owner_of_the_jobs_own_name_may_have_made_its_pods(backend: JobBackend) -> None:
    job = made(backend)
    pod = pod_of(job, maker_of_pods(job))
    owner = controller_of(pod)
    assert owner is not None
    for one, seam in BACKENDS.items():
        assert seam.is_pod_owner(owner, job["metadata"]["name"]) == (one is backend)
    assert not BACKENDS[backend].is_pod_owner(owner, "another")
    foreign = Owner("example.com", owner.kind, owner.name, owner.uid)
    assert not BACKENDS[backend].is_pod_owner(foreign, job["metadata"]["name"])


def maker_of_pods(job: Object) -> Object:
    """The job itself; of a TrainJob, the Job that its JobSet makes."""
    if job["kind"] != "TrainJob":
        return job
    metadata = {**job["metadata"], "name": f"{job['metadata']['name']}-node-0", "uid": "inner-1"}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata}


def between(job: Object) -> Object:
    """A Job that another kind of job has made, on its way to pods."""
    labels = job["metadata"]["labels"]
    item = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "between", "uid": "between-1", "labels": labels},
    }
    return controlled(item, job)


def test_pods_may_hang_on_what_a_job_has_made() -> None:
    job = made(JobBackend.PYTORCH_JOB)
    inner = between(job)
    (tree,) = job_trees(chain_of(job), {}, [inner, job], [pod_of(job, inner)])
    assert tree.job is job
    assert [pod["metadata"]["uid"] for pod in tree.pods] == ["pod-1"]
    assert tree.intermediate == (inner,)


def test_what_hangs_on_another_namespace_is_not_the_chains() -> None:
    job = made(JobBackend.PYTORCH_JOB)
    elsewhere = controlled(between(job), job, namespace="other")
    (tree,) = job_trees(chain_of(job), {}, [elsewhere, job], [pod_of(job, elsewhere)])
    assert (tree.pods, tree.intermediate) == ((), ())
    (tree,) = job_trees(
        chain_of(job), {}, [between(job), job], [pod_of(job, between(job), namespace="other")]
    )
    assert tree.pods == ()


def test_owners_in_a_circle_end_nowhere() -> None:
    job = made(JobBackend.PYTORCH_JOB)
    one, two = between(job), between(job)
    two["metadata"] |= {"uid": "between-2"}
    circle = [controlled(one, two), controlled(two, one)]
    (tree,) = job_trees(chain_of(job), {}, [job, *circle], [pod_of(job, one)])
    assert tree.pods == ()


def test_the_chart_gives_rights_on_every_kind_of_job() -> None:
    template = (ROOT / "charts/modelchain/templates/_helpers.tpl").read_text()
    block = re.search(r'define "modelchain.rules" -}}\n(.*?)\{\{- end }}', template, re.DOTALL)
    assert block is not None
    verbs = {
        (group, resource): set(rule["verbs"])
        for rule in yaml.safe_load(block[1])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    for backend in BACKENDS.values():
        kind = backend.kind
        assert {"get", "list", "watch", "create", "delete"} <= verbs[kind.group, kind.plural]
    for kind in JOB_KINDS:
        assert {"list", "watch"} <= verbs[kind.group, kind.plural]
    assert {kind for one in BACKENDS.values() for kind in kinds_of(one)} == set(JOB_KINDS)


def chain_of(job: Object) -> ChainReference:
    stage = stage_of(job)
    assert stage is not None
    return stage.chain
