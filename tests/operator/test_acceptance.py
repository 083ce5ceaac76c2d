"""What the operator accepts of a chain, beyond what the schema says."""

import copy

import pytest

from modelchain.spec import JobBackend
from modelchain_operator.acceptance import Acceptance, Accepted, Refused, accept
from modelchain_operator.kubernetes.api import Object

BODY: Object = {
    "apiVersion": "modelchain.dev/v1alpha1",
    "kind": "ModelChain",
    "metadata": {
        "name": "family",
        "namespace": "team",
        "uid": "6a2a2c1e-0000-4000-8000-000000000001",
        "generation": 1,
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"a": "b"},
    },
    "spec": {
        "image": "registry.example/trainer:1",
        "store": {"uri": "s3://bucket/prefix", "secretRef": {"name": "s3"}},
        "data": {"shards": ["s3://bucket/train-{000..003}.tar"], "samples": 4096},
        "training": {"epochs": 1, "globalBatchSize": 64},
        "job": {"gpusPerNode": 2, "nodeSelector": {"gpu": "a100"}},
        "stages": [
            {"name": "s", "model": "ViT-S-16"},
            {"name": "b", "model": "ViT-B-16", "job": {"backend": "Job", "nodes": 2}},
        ],
    },
    "status": {"phase": "Running"},
}


def body(**spec: object) -> Object:
    changed = copy.deepcopy(BODY)
    changed["spec"].update(spec)
    return changed


def problems(of: Object, default_image: str | None = None) -> str:
    answer = accept(of, default_image=default_image)
    assert isinstance(answer, Refused)
    return "\n".join(answer.problems)


def test_a_valid_chain_is_resolved_with_the_jobs_of_its_stages() -> None:
    answer = accept(BODY, default_image=None)
    assert isinstance(answer, Accepted)
    assert answer.chain.chain.uid == BODY["metadata"]["uid"]
    assert answer.backend("s").name == JobBackend.PYTORCH_JOB
    assert answer.backend("b").name == JobBackend.JOB
    assert answer.jobs["b"].gpus_per_node == 2
    assert answer.jobs["b"].nodes == 2
    assert answer.jobs["s"].nodes is None
    assert set(answer.macs) == {"s", "b"}
    assert answer.speedup_planned is not None
    assert answer.speedup_planned > 0


def test_all_problems_are_named_at_once() -> None:
    text = problems(body(training={"epochs": -3}, suspend="maybe"))
    assert "spec.training.epochs" in text
    assert "spec.suspend" in text


def test_a_store_that_pods_do_not_share_is_refused() -> None:
    text = problems(body(store={"uri": "runs/family"}))
    assert "spec.store.uri" in text
    assert "s3://" in text


def test_a_chain_without_image_needs_a_default_one() -> None:
    nameless = copy.deepcopy(BODY)
    del nameless["spec"]["image"]
    text = problems(nameless)
    assert "spec.stages[0].image" in text
    assert "spec.stages[1].image" in text
    assert isinstance(accept(nameless, default_image="trainer:2"), Accepted)


@pytest.mark.parametrize("spec", [None, [], "x", {}, {"stages": None}], ids=str)
def test_what_is_no_spec_is_refused(spec: object) -> None:
    assert isinstance(accept({**BODY, "spec": spec}, default_image=None), Refused)


def test_a_generation_is_judged_once() -> None:
    acceptance = Acceptance(None)
    first = acceptance.validate(BODY)
    assert acceptance.validate(copy.deepcopy(BODY)) is first
    edited = body(suspend=True)
    edited["metadata"]["generation"] = 2
    assert acceptance.validate(edited) is not first
    acceptance.forget(BODY)
    assert acceptance.validate(BODY) is not first


def test_gang_scheduling_is_for_the_kind_of_job_that_has_it() -> None:
    refused = accept(body(job={"schedulingPolicy": {"queue": "teams"}}), default_image=None)
    assert isinstance(refused, Refused)
    (problem,) = refused.problems
    assert problem.startswith("spec.stages[1].job.schedulingPolicy: ")


def test_a_pytorchjob_is_given_to_nobody_that_its_schema_does_not_name() -> None:
    refused = accept(body(job={"managedBy": "example.com/runner"}), default_image=None)
    assert isinstance(refused, Refused)
    (problem,) = refused.problems
    assert problem.startswith("spec.stages[0].job.managedBy: "), "the second stage is a Job, which may be"
    assert isinstance(
        accept(body(job={"managedBy": "kueue.x-k8s.io/multikueue"}), default_image=None), Accepted
    )


def nested(levels: int) -> Object:
    value: Object = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize("levels", [70, 900, 5000])
def test_a_chain_nested_too_deeply_is_refused_by_the_field_that_is(levels: int) -> None:
    refused = accept(body(job={"podTemplate": {"spec": nested(levels)}}), default_image=None)
    assert isinstance(refused, Refused)
    assert "spec.job.podTemplate.spec" in refused.problems[0]
    assert "nested more than 64 deep" in refused.problems[0]


def test_a_chain_with_half_a_character_is_refused() -> None:
    refused = accept(body(image="registry.example/\ud800"), default_image=None)
    assert isinstance(refused, Refused)
    assert "JSON" in refused.problems[0]


def test_a_chain_that_shows_a_defect_of_the_operator_is_refused_and_not_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr("modelchain_operator.acceptance.check_object", broken)
    refused = accept(body(), default_image=None)
    assert isinstance(refused, Refused)
    assert "IndexError" in refused.problems[0]
    assert "report it" in refused.problems[0]


TRAINER = "spec.job.podTemplate.spec.containers[0]"


@pytest.mark.parametrize(
    ("template", "where"),
    [
        ({"metadata": {"labels": "x"}}, "spec.job.podTemplate.metadata.labels"),
        ({"spec": {"containers": [{"name": "pytorch", "env": [{"value": "1"}]}]}}, f"{TRAINER}.env[0]"),
        ({"spec": {"containers": [{"name": "pytorch", "env": "A=1"}]}}, f"{TRAINER}.env"),
        ({"spec": {"containers": [{"name": "pytorch", "env": ["A=1"]}]}}, f"{TRAINER}.env[0]"),
        ({"spec": {"containers": [{"name": "pytorch", "ports": [{"name": "a"}]}]}}, f"{TRAINER}.ports[0]"),
        ({"spec": {"containers": [{"name": "pytorch", "volumeMounts": [{}]}]}}, f"{TRAINER}.volumeMounts[0]"),
        ({"spec": {"containers": [{"name": "pytorch", "resources": "x"}]}}, f"{TRAINER}.resources"),
        ({"spec": {"containers": [{"name": "pytorch", "resources": {"limits": 1}}]}}, f"{TRAINER}.resources"),
        ({"spec": {"initContainers": [{"name": "a", "env": [1]}]}}, "initContainers[0].env[0]"),
        ({"spec": {"containers": None}}, "podTemplate"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_pod_template_is_said_where_it_is_and_not_met_when_the_job_is_made(
    template: Object, where: str
) -> None:
    refused = accept(body(job={"podTemplate": template}), default_image=None)
    assert isinstance(refused, Refused), refused
    assert any(where in problem for problem in refused.problems), refused.problems


@pytest.mark.parametrize("endpoint", ["http://user:password@minio:9000", "https://key@minio", "http://a b"])
def test_an_endpoint_holds_no_keys_and_no_blanks_and_the_refusal_does_not_repeat_them(endpoint: str) -> None:
    refused = accept(body(store={**BODY["spec"]["store"], "endpointUrl": endpoint}), default_image=None)
    assert isinstance(refused, Refused)
    (problem,) = refused.problems
    assert problem.startswith("spec.store.endpointUrl: ")
    assert "password" not in problem.replace("a user, a password", "")


@pytest.mark.parametrize(
    "image", ["a b", "Trainer:1", "trainer:", "trainer@sha256:12", "https://r.example/t", " t"]
)
def test_what_no_registry_can_have_is_no_image(image: str) -> None:
    refused = accept(body(image=image), default_image=None)
    assert isinstance(refused, Refused)
    assert refused.problems[0].startswith("spec.image: ")


@pytest.mark.parametrize(
    "image",
    [
        "trainer", "trainer:1.0_a", "team/trainer", "localhost:5000/a/b--c__d:x", f"ghcr.io/a/b@sha256:{'0' * 64}",
        f"registry.example.com:443/a.b/c:v1@sha256:{'a' * 64}", "[fd00::1]:5000/a/b",
    ],
)  # fmt: skip
def test_an_image_is_whatever_a_registry_may_have(image: str) -> None:
    assert isinstance(accept(body(image=image), default_image=None), Accepted)
