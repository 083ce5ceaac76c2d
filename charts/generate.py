"""values.schema.json, and the table of values in README.md, from the comments in a chart's values.yaml.

    python -m charts.generate charts/modelchain

The comments are those of helm-docs and helm-schema:

- `# --` begins a description, which goes on in the lines below it;
- lines between a pair of `# @schema` are JSON schema, in YAML, and go over what the default value shows;
- `# @section --` begins a section of the table, which holds until the next one.

A mapping has the keys that it shows and no others, unless its `# @schema` says `additionalProperties`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Schema: TypeAlias = dict[str, Any]

SCHEMA_FILE, VALUES_FILE, README_FILE = "values.schema.json", "values.yaml", "README.md"
_BEGIN, _END = "<!-- values, generated: begin -->", "<!-- values, generated: end -->"
_MARK, _DESCRIPTION, _SECTION = "@schema", "-- ", "@section -- "
_TYPES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


class CommentError(Exception):
    """A value without the comment that it needs. The message names its line."""


@dataclass(frozen=True)
class Comment:
    """What stands above a value."""

    description: str = ""
    section: str = ""
    schema: Schema = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """A key of values.yaml, with what its comments say."""

    path: tuple[str, ...]
    default: Any
    comment: Comment
    children: tuple[Value, ...]  # of a mapping whose keys are fixed

    @property
    def leaves(self) -> Iterator[Value]:
        """The values that a user sets one by one."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves


def read_values(text: str) -> tuple[Value, ...]:
    """The values of a file's text. Raises CommentError."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise CommentError("values.yaml is no mapping")
    return tuple(_children(root, text.splitlines(), ()))


def to_schema(values: Sequence[Value]) -> Schema:
    """JSON schema of the values of a whole chart. `global` is there for charts that have this one as a dependency."""
    schema = _mapping(values)
    schema["properties"]["global"] = {
        "type": "object",
        "description": "Of the chart around this one; not used.",
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def to_table(values: Sequence[Value]) -> str:
    """The values as tables in Markdown, one for each section."""
    lines: list[str] = []
    for value in (leaf for top in values for leaf in top.leaves):
        if value.comment.section:
            lines += [
                "",
                f"### {value.comment.section}",
                "",
                "| Value | What it does | Default |",
                "| --- | --- | --- |",
            ]
        cells = (f"`{'.'.join(value.path)}`", value.comment.description, f"`{json.dumps(value.default)}`")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines).strip()


def generate(chart: Path) -> dict[Path, str]:
    """What the files that are generated ought to hold."""
    values = read_values((chart / VALUES_FILE).read_text())
    readme = (chart / README_FILE).read_text()
    before, _, rest = readme.partition(_BEGIN)
    _, found, after = rest.partition(_END)
    if not found:
        raise CommentError(
            f"{chart / README_FILE}: no lines {_BEGIN} and {_END}, between which the table goes"
        )
    return {
        chart / SCHEMA_FILE: json.dumps(to_schema(values), indent=2) + "\n",
        chart / README_FILE: f"{before}{_BEGIN}\n\n{to_table(values)}\n\n{_END}{after}",
    }


def _children(node: yaml.MappingNode, lines: list[str], path: tuple[str, ...]) -> Iterator[Value]:
    for key, value in node.value:
        here = (*path, str(key.value))
        comment = _comment(lines, key.start_mark.line)
        fixed = isinstance(value, yaml.MappingNode) and "additionalProperties" not in comment.schema
        children = tuple(_children(value, lines, here)) if fixed else ()
        default = yaml.SafeLoader("").construct_document(value)
        where = f"line {key.start_mark.line + 1}: {'.'.join(here)}"
        if not children and not comment.description:
            raise CommentError(f"{where} has no description: write `# -- ...` above it")
        if default in ({}, [], None) and not comment.schema:
            raise CommentError(f"{where} does not show what it may hold: write `# @schema` above it")
        yield Value(here, default, comment, children)


def _comment(lines: list[str], line: int) -> Comment:
    """The comment that ends above a line. Plain comments, before a description, are for readers of the file."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    schema: list[str] = []
    description: list[str] = []
    section = ""
    in_schema = False
    for text in (re.sub(r"^\s*# ?", "", one) for one in lines[first:line]):
        if text.strip() == _MARK:
            in_schema = not in_schema
        elif in_schema:
            schema.append(text)
        elif text.startswith(_SECTION):
            section = text.removeprefix(_SECTION).strip()
        elif text.startswith(_DESCRIPTION):
            description = [text.removeprefix(_DESCRIPTION).strip()]
        elif description:
            description.append(text.strip())
    return Comment(" ".join(description), section, yaml.safe_load("\n".join(schema)) or {})


def _mapping(values: Sequence[Value]) -> Schema:
    properties = {value.path[-1]: _schema(value) for value in values}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _schema(value: Value) -> Schema:
    described = {"description": value.comment.description} if value.comment.description else {}
    if value.children:
        return {**described, **_mapping(value.children), **value.comment.schema}
    if isinstance(value.default, dict):
        kind: Schema = {"type": "object"}
    elif isinstance(value.default, list):
        kind = {"type": "array"}
    else:
        kind = {"type": _TYPES[type(value.default)]}
    return {**described, "default": value.default, **kind, **value.comment.schema}


if __name__ == "__main__":
    try:
        for file, content in generate(Path(sys.argv[1])).items():
            file.write_text(content)
    except CommentError as error:
        sys.exit(f"error: {error}")
