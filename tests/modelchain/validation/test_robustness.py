"""Whatever stands in a file, the answer is a list of problems or a chain that resolves, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelchain.cost import plan
from modelchain.resolve import resolve
from modelchain.validation import check_file
from tests.modelchain.documents import document

NOT_CHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
ANYTHING = st.sampled_from(
    [
        *(
            None,
            True,
            0,
            -1,
            1,
            3,
            7,
            1000,
            2**62,
            1.5,
            1e-9,
            1e300,
            "",
            "a",
            "1e-3",
            "12k",
            "{}",
            "{3..1}",
            "s3://",
        ),
        *(
            [],
            [1],
            ["a", "a"],
            [[]],
            [None],
            {},
            {"a": 1},
            {"epochs": None},
            {"uri": 5},
            {"name": "tiny"},
            "tiny",
        ),
        *(
            {"embedDim": 8},
            {"vision": {"width": 1}},
            {"type": "Linear", "until": 2},
            "x" * 2000,
            "\u00e9\n\u4e2d",
        ),
    ]
)
NAMES = (
    "epochs",
    "model",
    "from",
    "fromWeights",
    "samples",
    "shards",
    "status",
    "podTemplate",
    "podTemplat",
    "",
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every path in a document, and a few that are not there."""
    yield path
    if isinstance(value, dict):
        yield from ((*path, name) for name in NAMES)
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


PLACES = sorted(set(places(document())), key=str)


def put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict) and isinstance(path[0], str):
        return value | {path[0]: put(value.get(path[0]), path[1:], new)}
    if isinstance(value, list) and isinstance(path[0], int) and path[0] < len(value):
        return [put(item, path[1:], new) if at == path[0] else item for at, item in enumerate(value)]
    return value


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(st.sampled_from(PLACES), ANYTHING), min_size=1, max_size=4))
def test_a_changed_chain_is_valid_or_has_problems_in_single_lines(
    tmp_path: FilePath, changes: list[tuple[tuple[str | int, ...], Any]]
) -> None:
    value: Any = document()
    for path, new in changes:
        value = put(value, path, new)
    file = tmp_path / "chain.yaml"
    file.write_text(json.dumps(value))
    for checked in check_file(file):
        assert (checked.chain is None) == bool(checked.problems)
        for problem in checked.problems:
            assert "\n" not in str(problem)
            assert problem.message
        if checked.chain is not None:
            assert plan(resolve(checked.chain)).chain_macs > 0


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.binary(max_size=60) | st.text(st.sampled_from("a:-[]{}&*!|>'\"#%@\n\t 1.~<"), max_size=60))
def test_any_bytes_are_an_answer_too(tmp_path: FilePath, content: bytes | str) -> None:
    file = tmp_path / "chain.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert all(checked.problems for checked in check_file(file))


def test_control_characters_of_a_file_stay_out_of_messages(tmp_path: FilePath) -> None:
    file = tmp_path / "chain.yaml"
    for path in (
        ("spec", "stages", 1, "name"),
        ("spec", "data", "shards", 0),
        ("spec", "a\x1b[2J\nb"),
        ("spec", "store"),
    ):
        file.write_text(json.dumps(put(document(), path, "a\x1b[2J\nb{")))
        (checked,) = check_file(file)
        assert checked.problems
        assert all(str(problem).isprintable() for problem in checked.problems)
