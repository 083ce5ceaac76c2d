"""The CRD is what the types say, in the form that the API server asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml
from pydantic import Field

from modelchain import __version__
from modelchain.block import Block
from modelchain.crd import CRD_NAME, Schema, custom_resource_definition, structural_schema, to_yaml
from modelchain.endpoint import ENDPOINT_PATTERN
from modelchain.uri import CREDENTIALS_PATTERN, URI_PATTERN

FILE = Path(__file__).parents[2] / "crds" / "modelchain.dev_modelchains.yaml"

# Kubernetes: "Specifying a structural schema", and what would hide a chain's value or freeze a default.
FORBIDDEN = {"anyOf", "allOf", "oneOf", "$ref", "$defs", "definitions", "default", "nullable", "const"}
# Only where the API has types of its own that grow from release to release.
FREE = {
    "job.affinity.nodeAffinity",
    "job.affinity.podAffinity",
    "job.affinity.podAntiAffinity",
    "job.podTemplate.spec",
    "job.resources.claims[]",
    "job.resources.limits",
    "job.resources.requests",
}


def schema() -> Schema:
    definition = custom_resource_definition()
    (version,) = cast("dict[str, list[dict[str, dict[str, Schema]]]]", definition["spec"])["versions"]
    return version["schema"]["openAPIV3Schema"]


def walk(part: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema within a schema, with the path of its field; values of a mapping are {}."""
    yield path, part
    for name, field in cast("dict[str, Schema]", part.get("properties", {})).items():
        yield from walk(field, f"{path}.{name}" if path else name)
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in part:
            yield from walk(cast("Schema", part[key]), path + mark)


def of_spec(path: str) -> str:
    """A path below spec or below a stage: the blocks there are the same."""
    return path.removeprefix("spec.").removeprefix("stages[].")


def test_the_file_is_what_the_types_say() -> None:
    assert FILE.read_text() == to_yaml(custom_resource_definition()), (
        "crds/ is stale: run `make crds` and commit"
    )


def test_the_file_is_one_yaml_document_of_the_crd() -> None:
    assert yaml.safe_load(FILE.read_text()) == custom_resource_definition()
    labels = {"app.kubernetes.io/version": __version__}
    assert custom_resource_definition()["metadata"] == {"name": CRD_NAME, "labels": labels}


def test_the_schema_is_structural() -> None:
    for path, part in walk(schema()):
        assert not FORBIDDEN & part.keys(), path
        refused = cast("Schema", part.get("not", {"pattern": ""}))
        assert refused.keys() == {"pattern"}, f"{path}: of values alone, no types"
        if part.get("x-kubernetes-int-or-string"):
            assert "type" not in part, path
            continue
        assert part.get("type") in {"object", "array", "string", "integer", "number", "boolean"}, path


def test_everything_that_can_be_long_is_bounded() -> None:
    for path, part in walk(schema()):
        free = part.get("x-kubernetes-preserve-unknown-fields")
        if part.get("x-kubernetes-int-or-string"):
            assert part["pattern"], path
        elif part["type"] == "string" and "enum" not in part:
            assert "maxLength" in part, path
        elif part["type"] == "array":
            assert "maxItems" in part, path
        elif "additionalProperties" in part:
            assert "maxProperties" in part, path
        elif part["type"] == "object" and path != "metadata":
            assert part.get("properties") or free, path


def test_no_address_may_hold_a_key() -> None:
    addresses = {
        path: part
        for path, part in walk(schema())
        if path.startswith("spec.") and path.removesuffix("[]").lower().endswith(("uri", "url", "shards"))
    }
    texts = {path: part for path, part in addresses.items() if part["type"] == "string"}
    assert {
        "spec.store.uri",
        "spec.store.endpointUrl",
        "spec.stages[].evaluation[].trainData.shards[]",
    } <= set(texts)
    for path, part in texts.items():
        if path.endswith("endpointUrl"):  # which has no query
            assert part["pattern"] == ENDPOINT_PATTERN, path
        else:
            assert part["pattern"] == URI_PATTERN, path
            assert part["not"] == {"pattern": CREDENTIALS_PATTERN}, path


def test_unknown_fields_are_kept_only_where_kubernetes_has_types_of_its_own() -> None:
    free = {
        of_spec(path) for path, part in walk(schema()) if part.get("x-kubernetes-preserve-unknown-fields")
    }
    assert free == FREE


def test_every_field_is_described() -> None:
    for path, part in walk(schema()):
        if path and not path.endswith(("[]", "{}")) and path not in {"metadata", "metadata.name"}:
            assert part.get("description"), path


def test_lists_that_may_hold_no_item_twice_say_so() -> None:
    types = {
        path: (part["x-kubernetes-list-type"], part.get("x-kubernetes-list-map-keys"))
        for path, part in walk(schema())
        if "x-kubernetes-list-type" in part
    }
    assert types["status.stages"] == ("map", ["name"])
    assert types["status.conditions"] == ("map", ["type"])
    assert types["spec.data.captionKeys"] == ("set", None)
    assert "spec.stages" not in types, "the order of stages decides: their list is one value"


def test_a_rule_stands_wherever_its_block_does() -> None:
    rules = {
        path: [cast("dict[str, str]", rule)["message"] for rule in cast("list[Schema]", found)]
        for path, part in walk(schema())
        if (found := part.get("x-kubernetes-validations"))
    }
    assert rules["spec.stages[].evaluation[]"] == rules["spec.evaluation[]"]
    assert rules["spec.stages[].job"] == rules["spec.job"]
    for path, messages in rules.items():
        assert len(messages) == len(set(messages)), path
        for message in messages:
            assert len(message) < 200, "a message is a line"


class Example(Block):
    fraction: float | None = Field(default=None, gt=0, lt=1, description="Above 0, below 1.")
    words: dict[str, str] = Field(default_factory=dict, max_length=3)
    count: int


def test_bounds_are_written_as_openapi_has_them() -> None:
    written = structural_schema(Example)
    properties = cast("dict[str, Schema]", written["properties"])
    assert properties["fraction"] == {
        "description": "Above 0, below 1.",
        "type": "number",
        "format": "double",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
    }
    assert properties["words"]["maxProperties"] == 3
    assert properties["count"] == {"type": "integer", "format": "int64"}
    assert written["required"] == ["count"]


class Union(Block):
    either: int | str


def test_a_union_is_refused_when_the_schema_is_made() -> None:
    with pytest.raises(TypeError, match="structural schema"):
        structural_schema(Union)
