"""YAML as kubectl reads it: the same file must mean the same chain here and in a cluster.

kubectl turns YAML into JSON with sigs.k8s.io/yaml, whose parser is go-yaml v2. It differs from PyYAML: `1e-3`
is a number, `0o17` and `017` are octal, `1:30` and dates are text, `y` is true, and 1.0 becomes the JSON
number 1. Stricter than either: duplicate keys, tags of one's own, NaN, infinities and numbers beyond 64 bits
are refused.

PyYAML only supplies the events here; what a scalar means is decided in `modelchain.yaml_scalar`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from modelchain.errors import UserDataError
from modelchain.yaml_scalar import NotJsonError, resolve_scalar

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
FieldPath: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 8 * 2**20  # an object of the API server has at most 1.5 MiB
MAX_DEPTH = 64
MAX_VALUES = 100_000  # after aliases are written out: a few lines of aliases can stand for billions


class YamlError(UserDataError):
    """A text that is no YAML at all. Lines and columns start at 1."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


@dataclass(frozen=True)
class ReadProblem:
    """Something in a document that kubectl would refuse too, or that is no JSON. The value is left out."""

    path: FieldPath
    line: int
    message: str
    remedy: str


@dataclass(frozen=True)
class Document:
    """One document: its value as JSON, where each field stands, and what was wrong with single values."""

    value: JsonValue
    line: int
    lines: Mapping[FieldPath, int]
    problems: tuple[ReadProblem, ...] = ()

    def line_of(self, path: FieldPath) -> int:
        """The line of a field, or of the nearest field around it that is written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return self.line


def read_documents(text: str | bytes) -> list[Document]:
    """All documents of a text that are not empty. Raises YamlError if it is not UTF-8 or no YAML."""
    decoded = _decoded(text).removeprefix("\ufeff")
    if len(decoded) > MAX_BYTES:
        raise YamlError(f"more than {MAX_BYTES // 2**20} MiB; keep long class lists in files of their own")
    return [_Converter().document(root, line) for line, root in _roots(decoded)]


def value_at(document: JsonValue, path: FieldPath) -> JsonValue:
    """What stands at a path; None where nothing does."""
    value = document
    for part in path:
        if isinstance(value, dict) and isinstance(part, str):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value


@dataclass
class _Node:
    """A value as it is written. `children` holds items, or keys and values in turn; None for a scalar."""

    line: int
    tag: str | None
    text: str = ""
    plain: bool = False
    children: list[_Node] | None = None
    mapping: bool = False


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise YamlError(f"byte {text[error.start]:#04x} is not UTF-8; save the file as UTF-8", line) from None


def _roots(text: str) -> Iterator[tuple[int, _Node]]:
    """The root node of each document that says anything, with its line.

    Without recursion, however deep it nests.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    anchors: dict[str, _Node] = {}
    stack: list[_Node] = []
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.DocumentStartEvent):
                anchors = {}
                continue
            if isinstance(event, yaml.CollectionEndEvent):
                node = stack.pop()
            elif isinstance(event, yaml.NodeEvent):
                node = _node(event, anchors, stack)
                if isinstance(event, yaml.CollectionStartEvent):
                    stack.append(node)
                    if len(stack) > MAX_DEPTH:
                        raise YamlError(f"nested more than {MAX_DEPTH} levels deep", node.line)
                    continue
            else:
                continue
            if stack and stack[-1].children is not None:
                stack[-1].children.append(node)
            elif node.children is not None or node.text or not node.plain:
                yield node.line, node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not YAML"
        if (
            "cannot start any token" in what
            and mark
            and text.splitlines()[mark.line][mark.column :][:1] == "\t"
        ):
            what = "a tab; YAML is indented with spaces"
        raise YamlError(what, mark and mark.line + 1, mark and mark.column + 1) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(
            f"character {_code_point(error.character)} is not allowed in YAML; remove it", line
        ) from None


def _code_point(character: str | bytes | int) -> str:
    number = character if isinstance(character, int) else ord(character)
    return f"U+{number:04X}"


def _node(event: yaml.NodeEvent, anchors: dict[str, _Node], stack: list[_Node]) -> _Node:
    line = 1 + (event.start_mark.line if event.start_mark else 0)
    if isinstance(event, yaml.AliasEvent):
        node = anchors.get(event.anchor or "")
        if node is None:
            raise YamlError(f"alias *{event.anchor}: nothing above is marked &{event.anchor}", line)
        if any(node is outer for outer in stack):
            raise YamlError(f"alias *{event.anchor} stands inside the value it names", line)
        return node
    if isinstance(event, yaml.ScalarEvent):
        node = _Node(line, event.tag, event.value, plain=not event.style)
    else:
        assert isinstance(event, yaml.CollectionStartEvent)
        node = _Node(line, event.tag, children=[], mapping=isinstance(event, yaml.MappingStartEvent))
    if event.anchor is not None:
        anchors[event.anchor] = node
    return node


# values


_TAG = "tag:yaml.org,2002:"


class _Converter:
    """Turns the nodes of one document into JSON, and notes lines and problems on the way."""

    def __init__(self) -> None:
        self._lines: dict[FieldPath, int] = {}
        self._problems: list[ReadProblem] = []
        self._values = 0

    def document(self, root: _Node, line: int) -> Document:
        """The document whose root is `root`."""
        value = self._value(root, ())
        return Document(value, line, self._lines, tuple(self._problems))

    def _value(self, node: _Node, path: FieldPath) -> JsonValue:
        """The value of a node; None, with a problem noted, where it has none in JSON."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES} values once aliases are written out", node.line)
        if len(path) > MAX_DEPTH:
            raise YamlError(
                f"nested more than {MAX_DEPTH} levels deep once aliases are written out", node.line
            )
        self._lines.setdefault(path, node.line)
        if node.children is None:
            return self._scalar(node, path)
        if node.tag not in (None, "!", _TAG + ("map" if node.mapping else "seq")):
            return self._refuse(path, node, f"the tag {_short(node.tag)} has no meaning here", "remove it")
        if node.mapping:
            return self._mapping(node, path)
        return [self._value(child, (*path, index)) for index, child in enumerate(node.children)]

    def _mapping(self, node: _Node, path: FieldPath) -> JsonValue:
        values: dict[str, JsonValue] = {}
        merged: list[_Node] = []
        lines: dict[str, int] = {}
        for key_node, value_node in _pairs(node):
            if key_node.plain and key_node.text == "<<":
                merged.append(value_node)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in values:
                message = f"the field is written twice, first in line {lines[key]}"
                self._refuse((*path, key), key_node, message, "remove one of the two")
                continue
            lines[key] = self._lines[(*path, key)] = key_node.line
            values[key] = self._value(value_node, (*path, key))
        for value_node in merged:
            self._merge(value_node, path, values)
        return values

    def _merge(self, node: _Node, path: FieldPath, values: dict[str, JsonValue]) -> None:
        """`<<: *one` or `<<: [*one, *two]`: fields that are not written here; the first of several wins."""
        sources = node.children if node.children is not None and not node.mapping else [node]
        for source in sources:
            if not source.mapping:
                self._refuse(path, source, "<< merges mappings only", "name a mapping, e.g. <<: *defaults")
                continue
            inherited = self._mapping(source, path)
            assert isinstance(inherited, dict)
            for key, value in inherited.items():
                values.setdefault(key, value)

    def _key(self, node: _Node, path: FieldPath) -> str | None:
        if node.children is not None:
            self._refuse(
                path, node, "a list or mapping can't be the name of a field", "write a name before the colon"
            )
            return None
        value = self._scalar(node, path)
        match value:
            case None:
                if not any(problem.line == node.line for problem in self._problems):
                    self._refuse(
                        path, node, "the name of a field is missing", "write a name before the colon"
                    )
                return None
            case bool():
                return "true" if value else "false"
            case int() | float():
                return f"{value:g}" if isinstance(value, float) else str(value)
            case str():
                return value
        raise AssertionError(f"a scalar of type {type(value)}")

    def _scalar(self, node: _Node, path: FieldPath) -> JsonValue:
        if node.tag in (None, "!"):
            return self._plain(node, path) if node.plain and node.tag is None else node.text
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp"):
            return node.text
        types = {"int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),)}.get(kind)
        if types is None:
            return self._refuse(path, node, f"the tag {_short(node.tag)} has no meaning here", "remove it")
        value = self._plain(node, path)
        if type(value) not in types:
            return self._refuse(
                path, node, f"{node.text!r} is no {kind}", f"remove the tag {_short(node.tag)}"
            )
        return value

    def _plain(self, node: _Node, path: FieldPath) -> JsonValue:
        try:
            return resolve_scalar(node.text)
        except NotJsonError as error:
            return self._refuse(path, node, error.message, error.remedy)

    def _refuse(self, path: FieldPath, node: _Node, message: str, remedy: str) -> None:
        self._problems.append(ReadProblem(path, node.line, message, remedy))


def _pairs(node: _Node) -> Iterator[tuple[_Node, _Node]]:
    children = node.children or []
    return zip(children[0::2], children[1::2], strict=True)


def _short(tag: str | None) -> str:
    return (tag or "").replace(_TAG, "!!")
