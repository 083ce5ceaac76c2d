"""JSON of the API server, which may be nested more deeply than Python's json module reads.

The API server takes objects up to 10,000 deep where a schema leaves a field open (job.podTemplate). Python's json
raises RecursionError from about 1,000 on, or from a limit of the C stack; one such chain must not break the listing
that it is in.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 200  # of what is read completely; `modelchain.validation` refuses chains from a third of that on
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]')


def loads(data: bytes) -> Any:
    """The value; where it is nested deeper than can be read, with null for what lies below MAX_DEPTH. Raises
    ValueError for what is not JSON.
    """
    try:
        return json.loads(data)
    except RecursionError:
        return json.loads(_cut(data))


def shallow(value: Any) -> Any:
    """The value with null for what lies below MAX_DEPTH, changed in place, so that it can be written."""
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        part, depth = stack.pop()
        if not isinstance(part, dict | list):
            continue
        places = list(part) if isinstance(part, dict) else range(len(part))
        for place in places:
            if depth >= MAX_DEPTH and isinstance(part[place], dict | list):
                part[place] = None
            else:
                stack.append((part[place], depth + 1))
    return value


def _cut(data: bytes) -> bytes:
    """The text with null for what lies below MAX_DEPTH, without reading it as values."""
    kept: list[bytes] = []
    depth = begin = 0
    for found in _BRACKETS.finditer(data):
        mark = found[0]
        if mark in b"{[":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += [data[begin : found.start()], b"null"]
        elif mark in b"}]":
            depth -= 1
            if depth == MAX_DEPTH:
                begin = found.end()
    return b"".join([*kept, data[begin:]])
