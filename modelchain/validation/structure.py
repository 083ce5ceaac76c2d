"""Fields and types: holds a document against the resource's types and says what does not fit, in a person's
words.

Reading is strict, as the API server's: "12" is no number, 1 is no boolean, `caption_keys` is not
`captionKeys`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

from modelchain.families import FAMILIES, open_clip_adapter, timm_adapter
from modelchain.spec import API_VERSION, AUTO, KIND, ModelChain, ModelChainSpec, StageSpec
from modelchain.validation.names import misnamed, nearest
from modelchain.validation.nesting import too_deep
from modelchain.validation.problem import STAGE_NAMES, Finding, dotted, quoted
from modelchain.yaml_reader import FieldPath, JsonValue, value_at

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

FREE_FORM = frozenset(
    {"affinity", "podTemplate", "resources", "status", "tolerations"}
)  # Kubernetes' own types


@dataclass(frozen=True)
class Parsed:
    """What could be read.

    With findings, `chain` is what is left without the values they are about, if that stands.
    """

    chain: ModelChain | None
    findings: tuple[Finding, ...]


def parse(value: dict[str, JsonValue], unreadable: Collection[FieldPath] = ()) -> Parsed:
    """Read a document.

    A null is a field that is not set; for values at `unreadable` there is a finding already.
    """
    deep = too_deep(value)
    if deep is not None:  # before anything recurses into it
        return Parsed(None, (deep,))
    document = _without_nulls(value)
    findings: list[Finding] = []
    for _round in range(3):  # taking a wrong value out can leave a block that lacks something
        try:
            return Parsed(_validated(document), tuple(findings))
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=True)
            if not findings:
                findings = [
                    _finding(detail, value)
                    for detail in details
                    if not any(detail["loc"][: len(path)] == path for path in unreadable)
                ]
            taken = [
                _take_out(document, detail["loc"]) for detail in reversed(details)
            ]  # lists from their end
            if not all(taken):
                break
    return Parsed(None, tuple(findings))


def _validated(document: JsonValue) -> ModelChain:
    # By way of JSON: strict mode then still reads the text of an enum. By alias only: the server knows no
    # other name.
    return ModelChain.model_validate_json(json.dumps(document), strict=True, by_alias=True, by_name=False)


def _without_nulls(value: JsonValue) -> dict[str, JsonValue]:
    """A copy without nulls in mappings, but for Kubernetes' own types."""

    def copy(part: JsonValue) -> JsonValue:
        if isinstance(part, list):
            return [copy(item) for item in part]
        if isinstance(part, dict):
            return {
                key: item if key in FREE_FORM else copy(item)
                for key, item in part.items()
                if item is not None
            }
        return part

    copied = copy(value)
    assert isinstance(copied, dict)
    return copied


# A value that is wrong is taken out, so the rules can look at the rest and all that is wrong is said at once.


def _take_out(document: dict[str, JsonValue], location: FieldPath) -> bool:
    """Remove the value at `location`, or the smallest thing around it that may be left out.

    False if there is none.
    """
    for length in range(len(location), 0, -1):
        path = location[:length]
        around = value_at(document, path[:-1])
        key = path[-1]
        if isinstance(around, dict) and isinstance(key, str) and _optional(path):
            around.pop(key, None)
            return True
        if _is_name(path) and isinstance(around, dict):
            around[str(key)] = "-".join(["x", *(str(part) for part in path if isinstance(part, int))])
            return True
        if path == ("spec", "store"):
            assert isinstance(around, dict)
            around["store"] = {"uri": "unknown"}
            return True
    return False


def _is_name(path: FieldPath) -> bool:
    return path == ("metadata", "name") or (len(path) == 4 and path[1] == "stages" and path[3] == "name")


def _optional(path: FieldPath) -> bool:
    """Whether a document may go without this field; true for unknown fields."""
    model = _model_at(path[:-1])
    if model is None:
        return True
    info = _fields(model).get(str(path[-1]))
    return info is None or not info.is_required()


# The resource's types, walked by path.


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _model_at(path: FieldPath) -> type[BaseModel] | None:
    """The type of the block at `path`; None within a field that is no block."""
    model: type[BaseModel] | None = ModelChain
    for part in path:
        if isinstance(part, int):
            continue
        info = _fields(model).get(part) if model is not None else None
        model = None if info is None else _block_in(info.annotation)
    return model


def _block_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _block_in(part)) is not None), None)


def _homes(name: str, path: FieldPath) -> Iterator[str]:
    """Where a field of that name belongs, as seen from the block at `path`."""
    in_stage = len(path) >= 3 and path[1] == "stages"
    root: FieldPath = path[:3] if in_stage else ("spec",)
    model = StageSpec if in_stage else ModelChainSpec
    for block, info in _fields(model).items():
        inner = _block_in(info.annotation)
        if block == name:
            yield dotted((*root, block))
        elif inner is not None and block != "stages" and name in _fields(inner):
            yield dotted((*root, block, name))


# Pydantic's errors, in words.

_SHORT_NAMES = ("stages.name", "evaluation.name")
_PATTERNS = {
    **dict.fromkeys(
        (*_SHORT_NAMES, "from", "teacher", "train"),
        "use lower-case letters, digits and dashes, a letter first, at most 30 characters",
    ),
    "sha256": "write 64 lower-case hexadecimal digits, as sha256sum prints them",
    "captionKeys": "write a file extension such as txt or caption.txt, or a field of a JSON file such as json:caption",
    "imageKeys": "write a file extension such as jpg or input.jpg, without a leading path",
    "classKey": "write a file extension such as cls, or a field of a JSON file such as json:label",
    "textKey": "write a file extension such as txt, or a field of a JSON file such as json:text",
    "image": "write e.g. registry.example.com/team/trainer:1.0, without blanks",
    "region": "write a region such as us-east-1: letters, digits and dashes",
    "gpuResourceName": "write the name of an extended resource, such as nvidia.com/gpu",
    "managedBy": "write the name of a controller, such as kueue.x-k8s.io/multikueue",
    **dict.fromkeys(
        ("labels", "nodeSelector"),
        "write at most 63 letters, digits, dashes, dots and underscores, a letter or digit first and last",
    ),
    **dict.fromkeys(
        (
            "secretRef.name",
            "caBundleRef.name",
            "queueName",
            "schedulingPolicy.queue",
            "priorityClass",
            "priorityClassName",
            "runtime",
            "serviceAccountName",
        ),
        "write the name of a Kubernetes object: lower-case letters, digits, dashes and dots",
    ),
    **dict.fromkeys(
        ("keys.accessKeyId", "keys.secretAccessKey", "keys.sessionToken", "caBundleRef.key"),
        "write a key of that object: letters, digits, dashes, dots and underscores",
    ),
}
_NEAREST = {"timmConfig.name": timm_adapter.near, "vision.name": open_clip_adapter.near}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MULTIPLES = {"k": 10**3, "K": 10**3, "M": 10**6, "m": 10**6, "G": 10**9, "B": 10**9}


def _finding(detail: ErrorDetails, document: JsonValue) -> Finding:
    path: FieldPath = detail["loc"]
    unknown = (
        misnamed(path, detail["input"], document)
        if detail["type"] in ("string_pattern_mismatch", "string_too_long")
        else None
    )
    message, remedy, about = (*unknown, []) if unknown else _words(path, detail)
    parts = [part for part in path if isinstance(part, str)]
    names = {*parts[-1:], ".".join(parts[-2:]), *about}
    if _is_name(path):
        names.add(STAGE_NAMES)
    names.update(family.field for family in FAMILIES if family.field in parts)
    return Finding(path, message, remedy, frozenset(names))


def _words(path: FieldPath, detail: ErrorDetails) -> tuple[str, str, list[str]]:
    """Message, remedy, and further fields that the finding is about."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    names = [part for part in path if isinstance(part, str)]
    name, dotted_name = names[-1] if names else "", ".".join(names[-2:])
    if kind == "extra_forbidden":
        return _unknown_field(path)
    if kind == "missing":
        return "is missing", _description(path), []
    if kind in ("literal_error", "enum"):
        return _wrong_choice(path, value, str(context.get("expected", "")))
    if kind in ("int_type", "int_from_float", "int_parsing", "float_type", "float_parsing"):
        return *_wrong_number(name, value, whole=kind.startswith("int")), []
    if kind == "string_type":
        remedy = (
            f'put it in quotes: "{quoted(value)}"' if not isinstance(value, list | dict) else "write one text"
        )
        return f"is {_with_type(value)}, a text is needed", remedy, []
    if kind == "bool_type":
        return f"is {_with_type(value)}, true or false is needed", "write true or false, without quotes", []
    if kind == "list_type":
        return (
            f"is {_with_type(value)}, a list is needed",
            f"write it as a list: {name}: [{_example(value)}]",
            [],
        )
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"is {_with_type(value)}, a mapping is needed", "write fields under it, indented", []
    bounds = {
        "greater_than_equal": ("ge", "at least"),
        "less_than_equal": ("le", "at most"),
        "greater_than": ("gt", "more than"),
        "less_than": ("lt", "less than"),
    }
    if kind in bounds:
        key, words = bounds[kind]
        limit = context.get(key)
        number = f"{int(limit)}" if isinstance(limit, float) and limit.is_integer() else f"{limit}"
        return f"{quoted(value)} is out of range", f"write a number of {words} {number}", []
    if kind in ("too_short", "too_long"):
        limit = context.get("min_length", context.get("max_length"))
        words = "at least" if kind == "too_short" else "at most"
        unit = "entry" if limit == 1 else "entries"
        length = context.get("actual_length") or len(value)  # pydantic counts a mapping up to the limit alone
        return f"has {length} entries", f"write {words} {limit} {unit}", []
    if kind in ("string_too_short", "string_too_long"):
        limit = context.get("min_length", context.get("max_length"))
        if kind == "string_too_short":
            return "is empty", "write a text, or remove the field", []
        if dotted_name in _SHORT_NAMES:
            return f"{quoted(value)} is too long", _PATTERNS[dotted_name], []
        return f"has {len(str(value))} characters", f"write at most {limit}", []
    if kind == "string_pattern_mismatch":
        if path[0] == "metadata":
            return f"{quoted(value)} is no Kubernetes name", "use lower-case letters, digits and dashes", []
        if dotted_name in _NEAREST:
            return f"{quoted(value)} is no model's name", _NEAREST[dotted_name](value), []
        about = next((key for key in (dotted_name, *names[-2:-1], name) if key in _PATTERNS), None)
        remedy = _PATTERNS[about] if about else f"match {context.get('pattern')}"
        return f"{quoted(value)} is not allowed", remedy, []
    return detail["msg"][:1].lower() + detail["msg"][1:], _description(path), []


def _unknown_field(path: FieldPath) -> tuple[str, str, list[str]]:
    name, around = str(path[-1]), _model_at(path[:-1])
    known = _fields(around) if around is not None else {}
    near = nearest(name, known)
    if near:
        return f"there is no field {quoted(name)}", f"did you mean {' or '.join(near)}?", near
    homes = list(_homes(name, path[:-1]))
    if homes:
        return f"there is no field {quoted(name)} here", f"it belongs at {' or '.join(homes)}", [name]
    return f"there is no field {quoted(name)}", f"remove it; known here: {', '.join(known)}", []


def _wrong_choice(path: FieldPath, value: object, expected: str) -> tuple[str, str, list[str]]:
    if path in (("apiVersion",), ("kind",)):
        wanted = API_VERSION if path == ("apiVersion",) else KIND
        return f"{quoted(value)} is unknown to this version of ModelChain", f"write {path[0]}: {wanted}", []
    choices = re.findall(r"'([^']*)'", expected)
    near = nearest(value, choices) if isinstance(value, str) else []
    remedy = f"did you mean {near[0]}?" if near else f"write {' or '.join(choices)}"
    return f"{quoted(value)} is none of {', '.join(choices)}", remedy, []


def _wrong_number(name: str, value: object, *, whole: bool) -> tuple[str, str]:
    wanted = "a whole number" if whole else "a number"
    message = f"is {_with_type(value)}, {wanted} is needed"
    if name == "microBatchSize" and str(value).lower() == AUTO.lower():
        return message, f"write {AUTO}"
    if name in ("samples", "tokens") and str(value).lower() == AUTO.lower():
        told = "else write about how many: the trainer counts, and says how many there are"
        if name == "tokens":
            return message, told.removeprefix("else ")
        return (
            message,
            f"run `modelchain samples` on a shard index of webdataset (wids), which prints it; {told}",
        )
    if isinstance(value, float):
        return message, f"write {int(value)} or {int(value) + 1}"
    if not isinstance(value, str):
        return message, f"write {wanted}"
    text = value.strip().replace(",", "").replace("_", "")
    match = re.fullmatch(r"([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z%]*)", text)
    if match is None:
        return message, f"write {wanted}"
    number, unit = float(match[1]), match[2]
    if not unit:
        return message, f"remove the quotes: {name}: {match[1]}"
    if name.endswith("Seconds") and unit in _UNITS:
        return message, f"the unit is seconds, without a suffix: {name}: {number * _UNITS[unit]:.0f}"
    if name.endswith("Mebibytes") and unit in ("Mi", "MiB", "M", "MB"):
        return message, f"the unit is MiB, without a suffix: {name}: {number:.0f}"
    if unit == "%":
        return message, f"write the share: {name}: {number / 100:g}"
    if unit in _MULTIPLES:
        return message, f"write the number in full: {name}: {number * _MULTIPLES[unit]:.0f}"
    return message, f"write {wanted} without a unit: {name}: {match[1]}"


def _with_type(value: object) -> str:
    """`the text "12k"`, `true`, `1.5`, `a list`."""
    return f"the text {quoted(value)}" if isinstance(value, str) else quoted(value)


def _example(value: object) -> str:
    return quoted(value) if not isinstance(value, dict) else "..."


def _description(path: FieldPath) -> str:
    """What to write, from the field's own description; of the document as a whole there is none."""
    if not path:
        return "write it as text in UTF-8"
    model = _model_at(path[:-1])
    info = _fields(model).get(str(path[-1])) if model is not None else None
    first = (info.description if info is not None else None) or ""
    return f"add {path[-1]}" + (f": {first[:1].lower()}{first[1:].rstrip('.')}" if first else "")
