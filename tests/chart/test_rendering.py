"""What the chart makes of values, and which values it refuses. No cluster, but for the schemas of one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelchain_operator.settings import LeaseName, LogFormat, OwnIdentityStore, Settings, read_settings
from tests.chart.golden import FOLDER, VALUES, snapshot
from tests.chart.helm import CHART, NAMESPACE, RELEASE, Object, environment, helm, objects, only, render
from tests.chart.openapi import LOCATION, serve_foreign_kinds, write_schemas
from tests.control_plane import binaries
from tests.control_plane.plane import ControlPlane

pytestmark = pytest.mark.long

LEASE = LeaseName(NAMESPACE, RELEASE)
EVERYTHING = CHART.parents[1] / "tests" / "chart" / "values" / "everything.yaml"


def test_lint_finds_nothing_to_warn_of() -> None:
    for file in VALUES:
        helm("lint", "--strict", str(CHART), "--values", str(file))


@pytest.mark.parametrize("values", VALUES, ids=lambda file: file.stem)
def test_the_objects_are_those_of_the_snapshot(values: Path) -> None:
    assert snapshot(values) == (FOLDER / values.name).read_text(), (
        f"another chart: if that is meant, `make chart`, and read the difference to {values.name}"
    )


def test_the_operator_understands_its_environment_and_defaults_are_its_own() -> None:
    settings = read_settings([], environment(only(objects(render()), "Deployment"), "modelchain-0"))
    image = settings.default_image
    assert image is not None
    assert image.startswith("ghcr.io/modelchain/modelchain-trainer:")
    assert settings == Settings(
        default_image=image, log_format=LogFormat.JSON, identity="modelchain-0", lease=LEASE
    )


def test_every_setting_reaches_the_operator() -> None:
    values: dict[str, Any] = {
        "namespaces": ["team-a", "team-b"],
        "trainer": {"image": {"repository": "example.com/trainer", "tag": "1"}},
        "resyncSeconds": 604800,
        "progressSeconds": 2,
        "workers": 3,
        "maxRunningChains": 5,
        "ownIdentityStores": [
            {"uri": "s3://models/a"},
            {"uri": "s3://models/b", "endpointUrl": "https://s3.example.com"},
        ],
        "allowedEndpoints": ["https://*.example.com", "http://minio.storage:9000"],
        "artifactCheckSeconds": 60,
        "storeThreads": 4,
        "storeRequestsPerSecond": 100000,
        "metrics": {"maxChains": 1_000_000},
        "log": {"format": "text", "level": "debug"},
        "leaderElection": {"leaseDurationSeconds": 60, "renewDeadlineSeconds": 40, "retryPeriodSeconds": 3},
    }
    told = environment(only(objects(render(values=values)), "Deployment"), "modelchain-0")
    assert read_settings([], told) == Settings(
        namespaces=("team-a", "team-b"),
        default_image="example.com/trainer:1",
        resync_seconds=604800,
        progress_seconds=2,
        workers=3,
        max_running_chains=5,
        own_identity_stores=(
            OwnIdentityStore("s3://models/a"),
            OwnIdentityStore("s3://models/b", "https://s3.example.com"),
        ),
        allowed_endpoints=("https://*.example.com", "http://minio.storage:9000"),
        artifact_check_seconds=60,
        store_threads=4,
        store_requests_per_second=100000,
        metrics_max_chains=1_000_000,
        log_level="debug",
        identity="modelchain-0",
        lease=LEASE,
        lease_duration_seconds=60,
        renew_deadline_seconds=40,
        retry_period_seconds=3,
    )


@pytest.mark.parametrize(
    ("values", "refusal"),
    [
        ({"imag": {"tag": "1"}}, "at '': additional properties 'imag' not allowed"),
        ({"image": {"tga": "1"}}, "at '/image': additional properties 'tga' not allowed"),
        ({"image": {"tag": 1.2}}, "at '/image/tag': got number, want string"),
        ({"image": {"digest": "0.1.0"}}, "at '/image/digest': '0.1.0' does not match pattern"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy': value must be one of 'Always'"),
        ({"namespaces": "team-a"}, "at '/namespaces': got string, want array"),
        ({"namespaces": ["Team A"]}, "at '/namespaces/0': 'Team A' does not match pattern"),
        ({"resyncSeconds": 1}, "at '/resyncSeconds': minimum: got 1, want 5"),
        ({"workers": "8"}, "at '/workers': got string, want integer"),
        ({"ownIdentityStores": ["s3://models"]}, "at '/ownIdentityStores/0': got string, want object"),
        (
            {"ownIdentityStores": [{"uri": "s3://models", "secretName": "s3"}]},
            "at '/ownIdentityStores/0': additional properties 'secretName' not allowed",
        ),
        ({"ownIdentityStores": [{"uri": "models/chains"}]}, "at '/ownIdentityStores/0/uri': "),
        ({"allowedEndpoints": []}, "at '/allowedEndpoints': minItems: got 0, want 1"),
        ({"allowedEndpoints": ["minio:9000"]}, "at '/allowedEndpoints/0': 'minio:9000' does not match"),
        ({"log": {"level": "loud"}}, "at '/log/level': value must be one of 'debug'"),
        ({"crds": {"enabled": "yes"}}, "at '/crds/enabled': got string, want boolean"),
        ({"serviceAccount": {"annotations": {"a": 1}}}, "at '/serviceAccount/annotations/a': got number"),
        ({"podDisruptionBudget": {"maxUnavailable": "1"}}, "at '/podDisruptionBudget/maxUnavailable': '1'"),
        ({"extraEnv": [{"value": "1"}]}, "at '/extraEnv/0': missing property 'name'"),
        ({"metrics": {"serviceMonitor": {"interval": 30}}}, "at '/metrics/serviceMonitor/interval': got"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(values: Mapping[str, Any], refusal: str) -> None:
    with pytest.raises(AssertionError) as refused:
        render(values=values)
    assert refusal in str(refused.value)


def test_a_chart_that_has_this_one_as_a_dependency_may_set_global_values() -> None:
    assert render(values={"global": {"imageRegistry": "example.com"}}) == render()


def test_an_older_kubernetes_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"chart requires kubeVersion: >=1\.29"):
        render("--kube-version", "1.28.0")


def test_dashboards_and_alerts_arrive_as_they_are() -> None:
    found = objects(render("--values", str(EVERYTHING)))
    dashboards = {
        name: text for item in found if item["kind"] == "ConfigMap" for name, text in item["data"].items()
    }
    files = sorted((CHART / "files" / "dashboards").glob("*.json"))
    assert sorted(dashboards) == [file.name for file in files] != []
    for file in files:
        assert json.loads(dashboards[file.name]) == json.loads(file.read_text())
    alerts = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert only(found, "PrometheusRule")["spec"] == alerts
    assert alerts["groups"]


def test_names_are_unique_to_the_release() -> None:
    def names(release: str, namespace: str) -> set[tuple[str, str, str]]:
        shared = "crds.enabled=false,trainJob.installRuntime=false"  # of one release in a cluster
        chosen = ["--values", str(EVERYTHING), "--set", shared, "--namespace", namespace]
        rendered = objects(helm("template", release, str(CHART), *chosen).stdout)
        return {
            (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
            for item in rendered
        }

    first = names("modelchain", "one")
    for other in (names("modelchain", "two"), names("second", "one"), names("second-modelchain", "one")):
        assert not first & other


def test_the_longest_name_still_makes_names_that_are_labels() -> None:
    found = objects(render("--values", str(EVERYTHING), "--set", f"fullnameOverride={'x' * 53}"))
    names = [item["metadata"]["name"] for item in found if item["kind"] in {"Deployment", "Pod", "Service"}]
    assert len(names) == 3
    assert max(map(len, names)) == len("x" * 53 + "-metrics") <= 63


@pytest.mark.xdist_group("control-plane")
def test_objects_are_what_the_api_server_knows(control_plane: ControlPlane, tmp_path: Path) -> None:
    rendered = {file.stem: render("--values", str(file)) for file in VALUES}
    kinds = {(item["apiVersion"], item["kind"]) for text in rendered.values() for item in objects(text)}
    schemas = tmp_path / "schemas"
    schemas.mkdir()
    with serve_foreign_kinds(control_plane):
        write_schemas(control_plane, kinds, schemas)
    for name, text in rendered.items():
        done = kubeconform(text, schemas)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        assert "Errors: 0, Skipped: 0" in done.stdout
    wrong = only(objects(rendered["default"]), "Deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    assert "imagePolicy" in kubeconform(yaml.safe_dump(wrong), schemas).stdout


def kubeconform(text: str, schemas: Path) -> subprocess.CompletedProcess[str]:
    command = ["-strict", "-summary", "-schema-location", str(schemas / LOCATION)]
    return subprocess.run(
        [binaries.path("kubeconform"), *command], check=False, input=text, capture_output=True, text=True
    )


def test_labels_of_a_release_are_on_all_that_it_makes() -> None:
    found: list[Object] = objects(render("--values", str(EVERYTHING)))
    for item in found:
        labels = item["metadata"]["labels"]
        assert labels["team"] == "training", item["metadata"]["name"]
        assert labels["app.kubernetes.io/instance"] == "modelchain"
        assert labels.get("app.kubernetes.io/name", "modelchain") == "modelchain", "ours win over others'"
