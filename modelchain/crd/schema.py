"""The CustomResourceDefinition of `ModelChain`, generated from the types in `modelchain.spec` and `modelchain.status`.

A structural schema (Kubernetes: "Specifying a structural schema") has no unions, no references and no `null`; lists and
texts are bounded so that the cost of the CEL rules can be estimated. No default is written into it: one that decides
weights would be frozen into stored resources, and one inside a stage would hide the chain's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import yaml
from pydantic import BaseModel

from modelchain import __version__
from modelchain.crd.cel_rules import BLOCK_RULES, CHAIN_RULES, FIELD_RULES, Rule
from modelchain.spec import (
    AUTO,
    GROUP,
    KIND,
    VERSION,
    DataSpec,
    EvaluationDataSpec,
    JobSpec,
    ModelChainSpec,
    TrainingSpec,
)
from modelchain.status import ChainStatus, Measurement

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


# Lists that are no atom: two writers may each own items of them, and no item comes twice.
_LIST_TYPES: dict[tuple[type[BaseModel], str], Schema] = {
    (ChainStatus, "stages"): {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    (ChainStatus, "baselines"): {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    (ChainStatus, "formerStages"): {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    (Measurement, "models"): {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    (ChainStatus, "conditions"): {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    (DataSpec, "captionKeys"): {"x-kubernetes-list-type": "set"},
    (DataSpec, "imageKeys"): {"x-kubernetes-list-type": "set"},
    (EvaluationDataSpec, "captionKeys"): {"x-kubernetes-list-type": "set"},
    (EvaluationDataSpec, "imageKeys"): {"x-kubernetes-list-type": "set"},
}

_FREE: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

# Types of Kubernetes' own, as far as they never change. Quantities stay free: a pattern would refuse `cpu: 0.5`, which
# pods accept, and answer with a regular expression; the condition Accepted says what is wrong with one.
_KUBERNETES_TYPES: dict[tuple[type[BaseModel], str], Schema] = {
    (JobSpec, "resources"): {
        "type": "object",
        "properties": {
            "requests": _FREE | {"description": "What a node must have free, e.g. {cpu: 8, memory: 64Gi}."},
            "limits": _FREE | {"description": "What the container may use; GPUs are set by gpusPerNode."},
            "claims": {
                "type": "array",
                "maxItems": 64,
                "items": _FREE,
                "description": "Resource claims of the pod template that the container uses.",
            },
        },
    },
    (JobSpec, "affinity"): {
        "type": "object",
        "properties": {
            "nodeAffinity": _FREE | {"description": "Nodes to run on, by their labels."},
            "podAffinity": _FREE | {"description": "Pods to run near to."},
            "podAntiAffinity": _FREE | {"description": "Pods to run away from."},
        },
    },
    (JobSpec, "podTemplate"): {
        "type": "object",
        "properties": {
            "metadata": {
                "type": "object",
                "properties": {
                    name: {
                        "type": "object",
                        "maxProperties": 64,
                        "additionalProperties": {"type": "string", "maxLength": MAX_TEXT},
                        "description": f"{name.capitalize()} of the pods, beside those of the operator.",
                    }
                    for name in ("labels", "annotations")
                },
                "description": "Labels and annotations of the pods.",
            },
            "spec": _FREE
            | {"description": "A pod's spec; lists are merged by name, the trainer is container pytorch."},
        },
    },
    (TrainingSpec, "microBatchSize"): {  # bounds are asked of a number, the pattern of a text
        "x-kubernetes-int-or-string": True,
        "minimum": 1,
        "maximum": 65536,
        "pattern": f"^{AUTO}$",
    },
    (JobSpec, "tolerations"): {
        "type": "array",
        "maxItems": 64,
        "items": {
            "type": "object",
            "properties": {
                "key": {"type": "string", "maxLength": 317, "description": "Key of the taint. Default: any."},
                "operator": {"type": "string", "maxLength": 63, "description": "Exists, or Equal (default)."},
                "value": {"type": "string", "maxLength": 63, "description": "Value of the taint, for Equal."},
                "effect": {
                    "type": "string",
                    "maxLength": 63,
                    "description": "NoSchedule, PreferNoSchedule or NoExecute. Default: any.",
                },
                "tolerationSeconds": {
                    "type": "integer",
                    "format": "int64",
                    "description": "How long NoExecute is tolerated. Default: for ever.",
                },
            },
        },
    },
}

_WIDE = 1  # priority of columns that only `-o wide` shows
COLUMNS: tuple[Schema, ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {
        "name": "Reason",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Progressing")].reason',
    },
    {"name": "Stage", "type": "string", "jsonPath": ".status.stage"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.columns.progress"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.columns.eta"},
    {"name": "Top-1", "type": "string", "jsonPath": ".status.columns.top1"},
    {"name": "Speedup", "type": "string", "jsonPath": ".status.columns.speedupMeasured"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Planned", "type": "string", "jsonPath": ".status.columns.speedupPlanned", "priority": _WIDE},
    {"name": "Suspend", "type": "boolean", "jsonPath": ".spec.suspend", "priority": _WIDE},
    {"name": "Message", "type": "string", "jsonPath": ".status.message", "priority": _WIDE},
)


_CHART_HEAD = """\
{{- /* Generated from modelchain/spec.py and modelchain/status.py by `make crds`; do not edit. */}}
{{- if .Values.crds.enabled }}
{{- include "modelchain.requireCrdIsOurs" . }}
"""
_CHART_METADATA = """\
  labels:
    {{- include "modelchain.labels" . | nindent 4 }}
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""


def custom_resource_definition() -> Schema:
    """The CRD as a value."""
    schema: Schema = {
        "type": "object",
        "description": "A family of models, trained as one chain of ascending size: each grows out of its predecessor.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "maxLength": 128, "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "maxLength": 63, "description": KIND},
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}},
            "spec": _with_description(structural_schema(ModelChainSpec), "What to train, and how."),
            "status": _with_description(structural_schema(ChainStatus), "What has become of it so far."),
        },
        "x-kubernetes-validations": [dict(rule.to_schema()) for rule in CHAIN_RULES],
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
        "metadata": {"name": CRD_NAME, "labels": {"app.kubernetes.io/version": __version__}},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def to_yaml(definition: Schema) -> str:
    """The file in crds/, with a line that says where it comes from."""
    text = yaml.safe_dump(definition, sort_keys=False, width=120, allow_unicode=True)
    return (
        f"# Generated from modelchain/spec.py and modelchain/status.py by `make crds`; do not edit.\n{text}"
    )


def to_chart_template(definition: Schema) -> str:
    """The same in charts/modelchain/templates/: there, `helm upgrade` upgrades it."""
    text = yaml.safe_dump(definition, sort_keys=False, width=120, allow_unicode=True).replace(
        "{{", '{{ "{{" }}'
    )
    head, _, rest = text.partition(f"  name: {CRD_NAME}\n")
    rest = rest[rest.index("spec:\n") :]  # the chart has labels of its own
    return f"{_CHART_HEAD}{head}  name: {CRD_NAME}\n{_CHART_METADATA}{rest}{{{{- end }}}}\n"


def structural_schema(kind: type[BaseModel]) -> Schema:
    """The structural schema of a type: references and unions with null resolved, bounds in OpenAPI v3's form."""
    document = kind.model_json_schema(by_alias=True, mode="validation")
    definitions = cast("dict[str, Schema]", document.get("$defs", {}))
    return _structural(document, definitions)


def _structural(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    schema = _referenced(_without_null(schema), definitions)
    result: Schema = {key: value for key, value in schema.items() if key not in _MEANINGLESS}
    kind = _KINDS.get(str(schema.get("title", "")))
    if "const" in schema:
        result["enum"] = [schema["const"]]
    _add_exclusive_bounds(schema, result)
    match schema.get("type"):
        case "object":
            _add_object(schema, result, definitions)
            if kind is not None:
                _refine(kind, result)
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
    return result


def _refine(kind: type[BaseModel], result: Schema) -> None:
    """Add to a block what pydantic's schema does not say: rules, list types, Kubernetes' own types."""
    _add_rules(result, BLOCK_RULES.get(kind, ()))
    for name, field in cast("dict[str, Schema]", result.get("properties", {})).items():
        if (kind, name) in _KUBERNETES_TYPES:
            description = field["description"]
            field.clear()
            field |= _with_description(_KUBERNETES_TYPES[kind, name], str(description))
        field |= _LIST_TYPES.get((kind, name), {})
        _add_rules(field, FIELD_RULES.get((kind, name), ()))
        if (kind, f"{name}[]") in FIELD_RULES:
            _add_rules(cast("Schema", field["items"]), FIELD_RULES[kind, f"{name}[]"])


def _add_rules(schema: Schema, rules: Sequence[Rule]) -> None:
    if rules:
        schema["x-kubernetes-validations"] = [dict(rule.to_schema()) for rule in rules]


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
    kinds = [cast("Schema", option) for option in options if option != {"type": "null"}]
    if len(kinds) != 1:
        raise TypeError(f"a structural schema has no unions, so none of {kinds}")
    (only,) = kinds
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


_KINDS = {
    kind.__name__: kind
    for kind in (*BLOCK_RULES, *(kind for kind, _ in (*FIELD_RULES, *_LIST_TYPES, *_KUBERNETES_TYPES)))
}
