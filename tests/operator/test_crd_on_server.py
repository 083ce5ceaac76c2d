"""The CRD on a real API server: what it takes, what it keeps, and what people read of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from modelchain.crd import CRD_NAME, custom_resource_definition
from modelchain.resolve import resolve
from modelchain.spec import ModelChain
from modelchain.validation import check_object, load_chains
from tests.control_plane.binaries import OLDEST
from tests.control_plane.plane import ControlPlane
from tests.processes import wait_until

pytestmark = pytest.mark.xdist_group("control-plane")

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "modelchain.dev_modelchains.yaml"
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
STATUS: dict[str, Any] = {
    "phase": "Running",
    "message": "stage small: training",
    "stage": "small",
    "step": 120,
    "steps": 640,
    "etaSeconds": 7500,
    "quality": {"metric": "digits/top1", "value": 0.933, "higherIsBetter": True},
    "speedupPlanned": 2.09,
    "speedupMeasured": 1.75,
    "columns": {
        "progress": "120/640",
        "eta": "2h05m",
        "top1": "93.3%",
        "speedupPlanned": "2.09x",
        "speedupMeasured": ">=1.75x",
    },
    "stages": [
        {"name": "small", "phase": "Running", "digest": "ab" * 32, "attempt": 1, "loss": {"total": 2.5}}
    ],
    "conditions": [
        {
            "type": "Complete",
            "status": "False",
            "reason": "Training",
            "message": "1 of 2 stages is open",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ],
}


@pytest.fixture(scope="module", autouse=True)
def installed(control_plane: ControlPlane) -> None:
    """The CRD of this checkout, as an administrator installs it."""
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    control_plane.kubectl("wait", "--for=condition=Established", f"crd/{CRD_NAME}", "--timeout=240s")
    wait_until(
        lambda: control_plane.kubectl("explain", "modelchain", check=False).returncode == 0,
        "its fields are described",
        pause=0.2,
    )


class Cluster:
    """kubectl in one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane, self._namespace = plane, namespace

    def __call__(self, *arguments: str, text: str | None = None) -> str:
        return self._plane.kubectl(*arguments, "-n", self._namespace, text=text).stdout

    def refused(self, *arguments: str, text: str | None = None) -> str:
        """What is said of something that is not done."""
        done = self._plane.kubectl(*arguments, "-n", self._namespace, text=text, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def chain(self, name: str) -> dict[str, Any]:
        return json.loads(self("get", "modelchain", name, "-o", "json"))

    def create(self, name: str = "family", **spec: Any) -> dict[str, Any]:
        return json.loads(self("create", "-f", "-", "-o", "json", text=json.dumps(document(name, **spec))))

    def write_status(self, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        self("patch", "modelchain", name, "--subresource=status", "--type=merge", "-p", patch)


@pytest.fixture
def cluster(control_plane: ControlPlane, namespace: str) -> Cluster:
    return Cluster(control_plane, namespace)


def document(name: str = "family", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "modelchain.dev/v1alpha1",
        "kind": "ModelChain",
        "metadata": {"name": name},
        "spec": {
            "store": {"uri": "s3://bucket/chains"},
            "data": {"shards": ["s3://bucket/{000..003}.tar"], "samples": 4096},
            "training": {"epochs": 10, "globalBatchSize": 64},
            "stages": [{"name": "small", "model": "ViT-S-16"}, {"name": "base", "model": "ViT-B-16"}],
            **spec,
        },
    }


def digests(chain: ModelChain) -> list[str]:
    return [stage.digest for stage in resolve(chain).stages]


def test_the_server_has_nothing_against_the_crd(control_plane: ControlPlane, cluster: Cluster) -> None:
    applied = control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    assert "Warning" not in applied.stderr
    conditions = {
        one["type"]: one
        for one in json.loads(cluster("get", "crd", CRD_NAME, "-o", "json"))["status"]["conditions"]
    }
    assert conditions["Established"]["status"] == "True"
    assert conditions["NamesAccepted"]["status"] == "True"
    assert conditions.get("NonStructuralSchema", {}).get("status") != "True", conditions


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_that_was_applied_is_the_same_chain_when_it_is_read_back(
    cluster: Cluster, file: Path, tmp_path: Path
) -> None:
    (written,) = load_chains(file)
    cluster("apply", "-f", str(file))
    read = check_object("", cluster.chain(written.metadata.name))
    assert read.chain is not None, read.problems
    assert digests(read.chain) == digests(written)
    as_yaml = tmp_path / "read.yaml"  # as people take a chain along to another cluster
    as_yaml.write_text(cluster("get", "modelchain", written.metadata.name, "-o", "yaml"))
    (again,) = load_chains(as_yaml)
    assert digests(again) == digests(written)


def test_applying_a_chain_again_changes_nothing(cluster: Cluster) -> None:
    for way in ((), ("--server-side",)):
        name = f"again{len(way)}"
        text = json.dumps(document(name))
        cluster("apply", *way, "-f", "-", text=text)
        before = cluster.chain(name)["metadata"]
        cluster("apply", *way, "-f", "-", text=text)
        after = cluster.chain(name)["metadata"]
        assert (after["generation"], after["resourceVersion"]) == (1, before["resourceVersion"])


def test_no_default_is_written_into_a_chain(cluster: Cluster) -> None:
    assert cluster.create()["spec"] == document()["spec"]


def test_a_null_is_a_field_that_is_not_set(cluster: Cluster) -> None:
    created = cluster.create(suspend=None, expansion=None)
    assert created["spec"] == document()["spec"]


def test_a_pod_template_is_kept_as_it_was_written(cluster: Cluster) -> None:
    template = {
        "metadata": {"labels": {"team": "vision"}, "annotations": {"note": "a: b"}},
        "spec": {"hostIPC": True, "containers": [{"name": "pytorch", "env": [{"name": "A", "value": "1"}]}]},
    }
    job = {
        "podTemplate": template,
        "resources": {"requests": {"cpu": 0.5, "memory": "64Gi"}, "limits": {"cpu": 8}},
    }
    assert cluster.create(job=job)["spec"]["job"] == job


def test_a_client_that_does_not_check_has_unknown_fields_dropped(cluster: Cluster) -> None:
    text = json.dumps(document("lenient", epochs=3, suspend=True))
    cluster("create", "--validate=ignore", "-f", "-", text=text)
    spec = cluster.chain("lenient")["spec"]
    assert "epochs" not in spec
    assert spec["suspend"] is True


def clip(width: int, **vision: Any) -> dict[str, Any]:
    """A model written out."""
    return {
        "embedDim": 64,
        "vision": {"width": width, "layers": 2, **vision},
        "text": {"width": 64, "layers": 2, "heads": 1},
    }


def zero_shot(**more: Any) -> dict[str, Any]:
    return {"name": "val", "type": "ZeroShot", "data": {"shards": ["s3://bucket/val.tar"]}, **more}


PROBE = {
    "name": "probe",
    "type": "LinearProbe",
    "data": {"shards": ["s3://bucket/val.tar"]},
    "trainData": {"shards": ["s3://bucket/train.tar"]},
    "seeds": 3,
}
SMALL, BASE = document()["spec"]["stages"]
DATA, TRAINING = document()["spec"]["data"], document()["spec"]["training"]
AT_THE_LIMIT: dict[str, dict[str, Any]] = {
    "tree": {"stages": [SMALL, BASE, {"name": "large", "model": "ViT-L-16", "from": "small"}]},
    "stages-of-32": {"stages": [{"name": f"s{i}", "model": "ViT-S-16"} for i in range(32)]},
    "stage-name-of-30": {"stages": [{"name": "a" * 30, "model": "ViT-S-16"}]},
    "weights-first": {
        "stages": [{**SMALL, "fromWeights": {"uri": "s3://bucket/w", "sha256": "ab" * 32}}, BASE],
    },
    "numbers-in-stages": {
        "data": {"shards": DATA["shards"]},
        "training": {"globalBatchSize": 4096},
        "stages": [
            {**one, "data": {"samples": 4096}, "training": {"epochs": 3, "warmupSteps": 2}}
            for one in (SMALL, BASE)
        ],
    },
    "batch-of-the-stage-divides": {
        "job": {"nodes": 3},
        "stages": [
            {**one, "training": {"globalBatchSize": 96, "microBatchSize": 16}} for one in (SMALL, BASE)
        ],
    },
    "processes-on-the-cpu": {"job": {"gpusPerNode": 0, "processesPerNode": 4}},
    "rates-equal": {"training": {**TRAINING, "learningRate": 1, "minimumLearningRate": 1}},
    "crop-of-one-size": {"data": {**DATA, "randomCropScale": [1, 1]}},
    "schedule-linear": {"distillation": {"schedule": {"type": "Linear", "endWeight": 0.1}}},
    "distillation-of-second": {"stages": [SMALL, {**BASE, "distillation": {"weight": 0}, "expansion": {}}]},
    "model-written-out": {
        "stages": [
            {"name": "one", "modelConfig": clip(64)},
            {"name": "two", "modelConfig": clip(128, imageSize=240, patchSize=24, mlpRatio=4)},
        ]
    },
    "evaluations": {
        "evaluation": [
            zero_shot(classesUri="s3://bucket/classes.txt", templates=["{}"]),
            {
                "name": "pairs",
                "type": "Retrieval",
                "data": {"shards": ["s3://bucket/v.tar"], "captionKeys": ["txt"]},
            },
        ],
    },
    "no-evaluation": {"evaluation": []},
    "probe": {
        "evaluation": [PROBE, {**PROBE, "name": "tuned", "type": "FineTune", "fineTune": {"epochs": 3}}]
    },
    "sources": {
        "data": {
            "sources": [
                {"shards": ["s3://b/{0..9}.tar"], "samples": 4096, "repeat": 2.5},
                {"shards": ["c.tar"], "samples": 9},
            ]
        }
    },
    "sources-in-a-stage": {
        "data": {"captionKeys": ["txt"]},
        "stages": [
            {**SMALL, "data": {"sources": [{"shards": ["s3://b/a.tar"], "samples": 4096, "repeat": 1}]}},
            {**BASE, "data": DATA},
        ],
    },
    "paths": {"data": {**DATA, "shards": ["data/{00..03}.tar", "file:///data/04.tar"]}},
    "endpoint": {
        "store": {"uri": "s3://bucket", "endpointUrl": "http://minio:9000", "secretRef": {"name": "s3.keys"}}
    },
    "toleration": {"job": {"tolerations": [{"operator": "Exists", "effect": "NoSchedule"}]}},
    "selector": {"job": {"nodeSelector": {"node.kubernetes.io/instance-type": "p5.48xlarge", "empty": ""}}},
}


@pytest.mark.parametrize("name", AT_THE_LIMIT)
def test_what_the_command_line_takes_the_server_takes(cluster: Cluster, name: str) -> None:
    written = check_object("", document(name, **AT_THE_LIMIT[name]))
    assert written.chain is not None, written.problems
    read = check_object("", cluster.create(name, **AT_THE_LIMIT[name]))
    assert read.chain is not None
    assert digests(read.chain) == digests(written.chain)


def test_a_name_of_63_characters_is_taken(cluster: Cluster) -> None:
    assert cluster.create("a" * 63)["metadata"]["name"] == "a" * 63


def test_only_the_status_subresource_writes_the_status(cluster: Cluster) -> None:
    cluster.create()
    cluster.write_status("family", STATUS)
    patch = json.dumps({"spec": {"suspend": True}, "status": {"phase": "Complete", "etaSeconds": 1}})
    cluster("patch", "modelchain", "family", "--type=merge", "-p", patch)
    after = cluster.chain("family")
    assert after["spec"]["suspend"] is True
    assert after["status"] == STATUS
    patch = json.dumps({"spec": {"suspend": False}, "status": {"phase": "Suspended"}})
    cluster("patch", "modelchain", "family", "--subresource=status", "--type=merge", "-p", patch)
    after = cluster.chain("family")
    assert after["spec"]["suspend"] is True
    assert after["status"]["phase"] == "Suspended"


def test_the_generation_grows_with_the_spec_and_with_nothing_else(cluster: Cluster) -> None:
    created = cluster.create()
    assert created["metadata"]["generation"] == 1
    cluster.write_status("family", STATUS)
    cluster("label", "modelchain", "family", "team=vision")
    cluster("annotate", "modelchain", "family", "note=here")
    assert cluster.chain("family")["metadata"]["generation"] == 1
    cluster("patch", "modelchain", "family", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    assert cluster.chain("family")["metadata"]["generation"] == 2


def test_a_status_that_no_release_wrote_is_refused(cluster: Cluster) -> None:
    cluster.create()
    for status, field in (
        ({"phase": "Paused"}, "status.phase"),
        ({"columns": {"top1": 0.93}}, "status.columns.top1"),
        ({"speedupPlanned": "2.09x"}, "status.speedupPlanned"),
        ({"quality": {"metric": "digits/top1"}}, "status.quality.value"),
        ({"stages": [{"name": "small", "startedAt": "yesterday"}]}, "status.stages[0].startedAt"),
        ({"message": "x" * 5000}, "status.message"),
        ({"conditions": [{"type": "Ready", "status": "True"}]}, "status.conditions[0]"),
        ({"stages": [{"name": "small"}, {"name": "small"}]}, "status.stages[1]"),
    ):
        answer = cluster.refused(
            "patch",
            "modelchain",
            "family",
            "--subresource=status",
            "--type=merge",
            "-p",
            json.dumps({"status": status}),
        )
        # The oldest names what is wrong from the status on.
        assert (field.removeprefix("status.") if OLDEST else field) in answer


def test_a_rule_that_a_newer_crd_brings_holds_up_no_status_of_a_chain_that_was_there_before(
    control_plane: ControlPlane, cluster: Cluster
) -> None:
    """Kubernetes 1.30 and newer; an older one refuses it.
    https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-ratcheting
    """
    cluster.create()
    stricter: dict[str, Any] = copy.deepcopy(custom_resource_definition())
    spec = stricter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["x-kubernetes-validations"].append({"rule": "size(self.stages) > 2", "message": "too few stages"})
    probe = ("create", "--dry-run=server", "-f", "-", "-n", "default")

    def is_strict() -> bool:
        answer = control_plane.kubectl(*probe, text=json.dumps(document("probe")), check=False)
        return "too few stages" in answer.stderr

    control_plane.apply(stricter)
    try:
        wait_until(is_strict, "the stricter rule is in force", pause=0.2)
        if OLDEST:
            patch = json.dumps({"status": STATUS})
            write = ("patch", "modelchain", "family", "--subresource=status", "--type=merge", "-p", patch)
            assert "too few stages" in cluster.refused(*write)
        else:
            cluster.write_status("family", STATUS)
            assert cluster.chain("family")["status"] == STATUS
    finally:
        control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
        wait_until(lambda: not is_strict(), "the CRD is as it was", pause=0.2)


def test_the_columns_say_how_a_chain_stands(cluster: Cluster) -> None:
    cluster.create()
    head, row = cluster("get", "mc").splitlines()
    assert head.split() == ["NAME", "PHASE", "REASON", "STAGE", "PROGRESS", "ETA", "TOP-1", "SPEEDUP", "AGE"]
    cluster.write_status("family", STATUS)
    _, row = cluster("get", "mc").splitlines()
    assert row.split()[:7] == ["family", "Running", "small", "120/640", "2h05m", "93.3%", ">=1.75x"]
    head, row = cluster("get", "modelchains", "-o", "wide").splitlines()
    assert head.split()[-3:] == ["PLANNED", "SUSPEND", "MESSAGE"]
    assert "2.09x" in row
    assert row.endswith("stage small: training")


def test_short_name_and_category_find_a_chain(cluster: Cluster) -> None:
    cluster.create()
    for kind in ("mc", "modelchain", "modelchains", "modelchains.modelchain.dev", "all"):
        assert "modelchain.modelchain.dev/family" in cluster("get", kind, "-o", "name"), kind


def test_kubectl_waits_for_a_condition(cluster: Cluster) -> None:
    cluster.create()
    complete = {**STATUS["conditions"][0], "status": "True", "reason": "AllStagesComplete"}
    cluster.write_status("family", {"conditions": [complete]})
    assert "condition met" in cluster(
        "wait", "--for=condition=Complete", "modelchain/family", "--timeout=20s"
    )


@pytest.mark.parametrize(
    ("field", "lines"),
    [
        ("", ("A family of models, trained as one chain", "spec\t<Object> -required-")),
        ("spec.stages", ("<[]Object>", "The models, smallest first.", "name\t<string> -required-")),
        ("spec.stages.training", ("<Object>", "Overrides spec.training, field by field.")),
        ("spec.training.learningRate", ("<number>", "Peak learning rate. Default: 1e-3.")),
        ("spec.job.backend", ("Default: PyTorchJob.",) if OLDEST else ("ENUM: PyTorchJob Job", "Default: PyTorchJob.")),
        ("spec.job.podTemplate.spec", ("the trainer is container pytorch",)),
        ("spec.job.tolerations.effect", ("PreferNoSchedule",)),
        ("spec.retry.stallSeconds", ("<integer>", "stopped and retried. Default: 1800.")),
        ("status.conditions", ("<[]Object>", "lastTransitionTime\t<string> -required-", "that a person can act")),
        ("status.stages.weightsUri", ("Folder of the finished weights",)),
    ],
    ids=lambda value: value.replace(".", "-") or "chain" if isinstance(value, str) else "",
)  # fmt: skip
def test_kubectl_explains_the_fields(cluster: Cluster, field: str, lines: tuple[str, ...]) -> None:
    explained = cluster("explain", ".".join(["modelchain", *([field] if field else [])]))
    words = " ".join(explained.split(" "))
    folded = " ".join(explained.split())  # long descriptions are broken into lines
    for line in lines:
        assert line in words or line in folded, explained
