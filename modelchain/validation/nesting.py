"""How deeply a document may be nested: what reads it after us has a limit, and crosses it by an error of its own."""

from __future__ import annotations

from typing import TypeAlias

from modelchain.validation.problem import Finding
from modelchain.yaml_reader import FieldPath, JsonValue

Nested: TypeAlias = dict[str, JsonValue] | list[JsonValue]

_NESTED = (dict, list)
MAX_NESTING = 64  # lists and mappings within each other; a pod template needs about 15


def too_deep(document: Nested) -> Finding | None:
    """What is wrong with a document that is nested deeper than that: at its first such place, named by the field
    that it begins in. Takes a stack of its own, not Python's.
    """
    stack: list[tuple[Nested, FieldPath, int]] = [(document, (), 1)]
    while stack:
        value, path, depth = stack.pop()
        if depth > MAX_NESTING:
            message = f"lists and mappings are nested more than {MAX_NESTING} deep"
            return Finding(path, message, "write it flatter", frozenset())
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        # Of the path, what a person wants to read: the field, not the sixty within it.
        stack += [
            (item, (*path, key) if len(path) < 6 else path, depth + 1)
            for key, item in entries
            if isinstance(item, _NESTED)
        ]
    return None
