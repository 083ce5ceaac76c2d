"""Objects that are nested more deeply than Python reads are read as far as they can be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelchain_operator.kubernetes.json_reader import MAX_DEPTH, loads, shallow


def nested(levels: int, *, lists: bool) -> bytes:
    opening, closing = (b"[", b"]") if lists else (b'{"a{\\"[":', b"}")
    return opening * levels + b'"]}"' + closing * levels


def depth(value: Any) -> int:
    found = 0
    while isinstance(value, dict | list):
        found += 1
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return found


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("levels", [1, MAX_DEPTH, 300, 9_000, 200_000])
def test_what_is_read_stands_beside_what_is_nested_too_deeply(levels: int, *, lists: bool) -> None:
    page = b'{"items": [{"before": 1, "deep": %s}, {"after": [2]}]}' % nested(levels, lists=lists)
    read = loads(page)
    (first, second) = read["items"]
    assert (first["before"], second) == (1, {"after": [2]})
    assert 1 <= depth(first["deep"]) <= levels
    assert depth(shallow(read)["items"][0]["deep"]) <= MAX_DEPTH
    assert json.loads(json.dumps(read)) == read, "it can be written again"


def test_what_is_not_deep_is_left_as_it_is() -> None:
    value = {"a": [1, {"b": None}], "c": "text"}
    assert loads(json.dumps(value).encode()) == value
    assert shallow(json.loads(json.dumps(value))) == value


def test_what_is_no_json_is_an_error_of_json() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        loads(b'{"a": }')
