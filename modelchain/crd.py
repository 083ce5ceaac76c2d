"""The CustomResourceDefinition of `ModelChain`, generated from the types in `modelchain.spec` and `modelchain.status`.

A structural schema (Kubernetes: "Specifying a structural schema") has no unions, no references and no `null`; lists and
texts are bounded so that the cost of the CEL rules can be estimated. No default is written into it: one that decides
weights would be frozen into stored resources, and one inside a stage would hide the chain's value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, cast

import yaml
from pydantic import BaseModel

from modelchain.spec import (
    GROUP,
    KIND,
    VERSION,
    EvaluationSpec,
    ModelChainSpec,
    StageSpec,
    StoreSpec,
    TextSpec,
    VisionSpec,
)
from modelchain.status import ChainStatus

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Schema: TypeAlias = dict[str, Json]

PLURAL = "modelchains"
CRD_NAME = f"{PLURAL}.{GROUP}"
MAX_TEXT = 4096  # where a type sets no bound of its own
MAX_ENTRIES = 256

_MEANINGLESS = (
    "title",
    "default",
    "additionalProperties",
    "$defs",
    "const",
    "exclusiveMinimum",
    "exclusiveMaximum",
)


@dataclass(frozen=True)
class Rule:
    """A validation rule in CEL (Kubernetes: "Validation rules"); `path` is the field that the message is about."""

    expression: str
    message: str
    path: str = ""

    def to_schema(self) -> Schema:
        """As an entry of x-kubernetes-validations."""
        rule: Schema = {"rule": self.expression, "message": self.message}
        return rule | {"fieldPath": self.path} if self.path else rule


RULES: dict[type[BaseModel], tuple[Rule, ...]] = {
    ModelChainSpec: (
        Rule(
            "self.stages.all(s, !has(s.from) || self.stages.exists(t, t.name == s.from))",
            "a stage's from names no stage of this chain: give the name of a stage that stands before it",
            ".stages",
        ),
        Rule(
            "self.stages.all(s, self.stages.exists_one(t, t.name == s.name))",
            "two stages have the same name: rename one",
            ".stages",
        ),
        Rule(
            "(has(self.data) && has(self.data.shards)) || self.stages.all(s, has(s.data) && has(s.data.shards))",
            "no shards to train on: give data.shards here or in every stage",
        ),
        Rule(
            "(has(self.data) && has(self.data.samples)) || self.stages.all(s, has(s.data) && has(s.data.samples))",
            "the number of samples is missing: give data.samples here or in every stage",
        ),
        Rule(
            "(has(self.training) && has(self.training.epochs))"
            " || self.stages.all(s, has(s.training) && has(s.training.epochs))",
            "the number of epochs is missing: give training.epochs here or in every stage",
        ),
        Rule(
            "!has(self.stages[0].from)",
            "the first stage has no predecessor: remove its from, or start it fromWeights",
            ".stages",
        ),
        Rule(
            "self.stages.all(s, !has(s.fromWeights) || s.name == self.stages[0].name)",
            "fromWeights is only for the first stage: another one starts from its predecessor",
            ".stages",
        ),
    ),
    StageSpec: (
        Rule(
            "has(self.model) != has(self.modelConfig)",
            "give either model or modelConfig, and only one of them",
        ),
        Rule(
            "!has(self.from) || self.from != self.name",
            "a stage can't come from itself: name another",
            ".from",
        ),
    ),
    StoreSpec: (
        Rule(
            "self.uri.startsWith('s3://') || self.uri.startsWith('file:///') || !self.uri.contains('://')",
            "a store on a cluster is s3://bucket/prefix or file:///folder",
            ".uri",
        ),
        Rule(
            "!has(self.endpointUrl) || self.endpointUrl.startsWith('http://') || self.endpointUrl.startsWith('https://')",
            "an endpoint starts with http:// or https://",
            ".endpointUrl",
        ),
    ),
    EvaluationSpec: (
        Rule(
            "self.type != 'ZeroShot' || has(self.classes) != has(self.classesUri)",
            "ZeroShot needs its class names: give either classes or classesUri, and only one of them",
        ),
        Rule(
            "self.type == 'ZeroShot' || !(has(self.classes) || has(self.classesUri) || has(self.templates))",
            "Retrieval has no classes or templates: remove them, or set type to ZeroShot",
        ),
    ),
    VisionSpec: (
        Rule(
            "self.width % (has(self.headWidth) ? self.headWidth : 64) == 0",
            "headWidth must divide width",
            ".width",
        ),
        Rule(
            "(has(self.imageSize) ? self.imageSize : 224) % (has(self.patchSize) ? self.patchSize : 16) == 0",
            "patchSize must divide imageSize",
        ),
    ),
    TextSpec: (Rule("self.width % self.heads == 0", "heads must divide width", ".width"),),
}

COLUMNS: tuple[Schema, ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Stage", "type": "string", "jsonPath": ".status.stage"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.eta"},
    {"name": "Top-1", "type": "string", "jsonPath": ".status.top1"},
    {"name": "Speedup", "type": "string", "jsonPath": ".status.speedup"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
)


def custom_resource_definition() -> Schema:
    """The CRD as a value."""
    schema: Schema = {
        "type": "object",
        "description": "A family of models, trained as one chain of ascending size: each grows out of its predecessor.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                # Names of jobs and pods end in a hash and must fit 63: the rest of the name is cut, never refused.
                "properties": {"name": {"type": "string", "maxLength": 253}},
            },
            "spec": _with_description(structural_schema(ModelChainSpec), "What to train, and how."),
            "status": _with_description(structural_schema(ChainStatus), "What has become of it so far."),
        },
    }
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": list(COLUMNS),
        "schema": {"openAPIV3Schema": schema},
    }
    names: Schema = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": PLURAL,
        "singular": KIND.lower(),
        "shortNames": ["mc"],
        "categories": ["all"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def to_yaml(definition: Schema) -> str:
    """The file in crds/, with a line that says where it comes from."""
    text = yaml.safe_dump(definition, sort_keys=False, width=120, allow_unicode=True)
    return (
        f"# Generated from modelchain/spec.py and modelchain/status.py by `make crds`; do not edit.\n{text}"
    )


def structural_schema(kind: type[BaseModel]) -> Schema:
    """The structural schema of a type: references and unions with null resolved, bounds in OpenAPI v3's form."""
    document = kind.model_json_schema(by_alias=True, mode="validation")
    definitions = cast("dict[str, Schema]", document.get("$defs", {}))
    return _structural(document, definitions)


def _structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    schema = _referenced(_without_null(schema), definitions)
    result: Schema = {key: value for key, value in schema.items() if key not in _MEANINGLESS}
    rules = _RULES_BY_NAME.get(str(schema.get("title", "")))
    if "const" in schema:
        result["enum"] = [schema["const"]]
    _add_exclusive_bounds(schema, result)
    match schema.get("type"):
        case "object":
            _add_object(schema, result, definitions)
        case "array":
            result.pop("prefixItems", None)
            result["items"] = _structural(
                cast("Schema", schema.get("items") or {"type": "object"}), definitions
            )
            result.setdefault("maxItems", MAX_ENTRIES)
        case "string" if "enum" not in result:
            result.setdefault("maxLength", MAX_TEXT)
        case "integer":
            result["format"] = "int64"
        case "number":
            result["format"] = "double"
    if rules:
        result["x-kubernetes-validations"] = [rule.to_schema() for rule in rules]
    return result


def _add_object(schema: Schema, result: Schema, definitions: dict[str, Schema]) -> None:
    properties = cast("dict[str, Schema]", schema.get("properties", {}))
    if properties:
        result["properties"] = {name: _structural(field, definitions) for name, field in properties.items()}
        return
    values = schema.get("additionalProperties")
    if isinstance(values, dict) and values:
        result["additionalProperties"] = _structural(values, definitions)
        result.setdefault("maxProperties", MAX_ENTRIES)
    else:
        result["x-kubernetes-preserve-unknown-fields"] = True


def _add_exclusive_bounds(schema: Schema, result: Schema) -> None:
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            result[bound], result[exclusive] = schema[exclusive], True


def _without_null(schema: Schema) -> Schema:
    """`X | None` is X: a field that is not there has no value, and null counts as not there."""
    options = schema.get("anyOf")
    if not isinstance(options, list):
        return schema
    [only] = [cast("Schema", option) for option in options if option != {"type": "null"}]
    return {**only, **{key: value for key, value in schema.items() if key != "anyOf"}}


def _referenced(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    target = definitions[reference.rpartition("/")[2]]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _with_description(schema: Schema, description: str) -> Schema:
    return {
        "description": description,
        **{key: value for key, value in schema.items() if key != "description"},
    }


_RULES_BY_NAME = {kind.__name__: rules for kind, rules in RULES.items()}


if __name__ == "__main__":
    print(to_yaml(custom_resource_definition()), end="")
