"""JSON schemas for kubeconform, from the OpenAPI document of a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.control_plane import binaries
from tests.control_plane.plane import ControlPlane
from tests.processes import wait_until

Schema = dict[str, Any]

LOCATION = "{{ .ResourceKind }}_{{ .Group }}_{{ .ResourceAPIVersion }}.json"  # kubeconform's own placeholders
_PREFIX = "#/definitions/"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def write_schemas(plane: ControlPlane, kinds: Iterable[tuple[str, str]], folder: Path) -> None:
    """A schema for each of some kinds, given as apiVersion and kind. Fields that the API does not know are refused."""
    document = json.loads(plane.kubectl("get", "--raw", "/openapi/v2").stdout)["definitions"]
    served = {
        (one["group"], one["version"], one["kind"]): name
        for name, definition in document.items()
        for one in definition.get("x-kubernetes-group-version-kind", ())
    }
    for api_version, kind in kinds:
        group, _, version = api_version.rpartition("/")
        wanted = served[group, version, kind]
        schema = {"$ref": _PREFIX + wanted, "definitions": _reached(document, wanted)}
        (folder / f"{kind.lower()}_{group or version}_{version}.json").write_text(json.dumps(schema))


@contextmanager
def serve_foreign_kinds(plane: ControlPlane) -> Iterator[None]:
    """ServiceMonitor, PrometheusRule and ClusterTrainingRuntime, with nobody who looks after them: served, and in
    OpenAPI, until the block ends.
    """
    monitoring, training = binaries.prometheus_operator_crds(), binaries.trainer_manifests() / "base" / "crds"
    files = {
        "servicemonitors": monitoring / "monitoring.coreos.com_servicemonitors.yaml",
        "prometheusrules": monitoring / "monitoring.coreos.com_prometheusrules.yaml",
        "clustertrainingruntimes": training / "trainer.kubeflow.org_clustertrainingruntimes.yaml",
    }
    manifests = [argument for file in files.values() for argument in ("-f", str(file))]
    plane.kubectl("apply", "--server-side", *manifests)
    try:
        wait_until(
            lambda: all(kind in plane.kubectl("get", "--raw", "/openapi/v2").stdout for kind in files),
            "OpenAPI has the kinds of others",
            pause=1,
        )
        yield
    finally:
        plane.kubectl("delete", *manifests)
        wait_until(
            lambda: all(plane.kubectl("get", kind, "-A", check=False).returncode for kind in files),
            "the kinds of others are served no more",
            pause=0.5,
        )


def _reached(document: dict[str, Schema], first: str) -> dict[str, Schema]:
    """A definition and all those that it refers to, as JSON schema."""
    found: dict[str, Schema] = {}
    wanted = [first]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = {"type": ["string", "number"]} if name == _QUANTITY else _converted(document[name])
            wanted += [one.removeprefix(_PREFIX) for one in _references(found[name])]
    return found


def _converted(part: Schema) -> Schema:
    """OpenAPI 2 knows no field that is text or number, and lets fields pass that it says nothing of."""
    if part.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    result = dict(part)
    if "properties" in part:
        result["properties"] = {name: _converted(field) for name, field in part["properties"].items()}
        result.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            result[key] = _converted(part[key])
    return result


def _references(part: Any) -> list[str]:
    if isinstance(part, list):
        return [found for one in part for found in _references(one)]
    if not isinstance(part, dict):
        return []
    own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
    return own + [found for one in part.values() for found in _references(one)]
