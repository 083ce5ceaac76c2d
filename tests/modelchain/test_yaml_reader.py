"""kubectl's reading.

What scalars mean was compared with the output of sigs.k8s.io/yaml v1.6.0 for the same text.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelchain.yaml_reader import JsonValue, YamlError, read_documents


def value(text: str) -> JsonValue:
    (document,) = read_documents(text)
    assert document.problems == ()
    return document.value


@pytest.mark.parametrize(
    ("scalar", "expected"),
    [
        ("1e-3", 0.001),  # text for PyYAML
        ("3e-6", 3e-6),
        ("1E5", 100000),
        ("1.0", 1),  # JSON has one kind of number
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1),
        ("+3", 3),
        ("-7", -7),
        ("1_000", 1000),
        ("017", 15),
        ("0o17", 15),
        ("08", 8),
        ("0x1F", 31),
        ("-0b11", -3),
        ("9223372036854775807", 2**63 - 1),
        ("yes", True),
        ("No", False),
        ("on", True),
        ("OFF", False),
        ("y", True),
        ("true", True),
        ("tRuE", "tRuE"),
        ("~", None),
        ("null", None),
        ("", None),
        ("1:30", "1:30"),  # minutes and seconds for PyYAML
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T10:00:00Z", "2026-01-31T10:00:00Z"),
        ("12k", "12k"),
        ("64Gi", "64Gi"),
        ("1e", "1e"),
        ("0x", "0x"),
        ("'1e-3'", "1e-3"),
        ('"yes"', "yes"),
        ("!!str 5", "5"),
        ("!!float 1", 1),
        ("=", "="),
    ],
)
def test_scalar_means_what_it_means_to_kubectl(scalar: str, expected: JsonValue) -> None:
    read = value(
        f"a: [{scalar}]" if scalar not in ("", "-") else f"a:\n- {scalar}" if not scalar else "a: ['-']"
    )
    assert read == {"a": [expected]}
    item = read["a"][0] if isinstance(read, dict) and isinstance(read["a"], list) else None
    assert type(item) is type(expected)


def test_odd_scalars_mean_what_they_mean_to_kubectl() -> None:
    text = """[1__0, _1, +.5, .5_0, 0_17, +0x10, 0o, 00, -0, -0.0, +-3, 0B1, 0O17, .e3, .1e3, 1.5E+3, 0x_1F,
      1_e3, 09.5, 0777777, 0x1p4, .0x1p4, .inf1, 1.e3, +_1, 0b102, 0b]"""
    assert value(text) == [
        *(10, "_1", 0.5, 0.5, 15, 16, "0o", 0, 0, 0, "+-3", 1, 15, ".e3", 100, 1500, 31, 1000),
        *(9.5, 262143, "0x1p4", ".0x1p4", ".inf1", 1000, 1, "0b102", "0b"),
    ]


def test_keys_are_texts_as_in_json() -> None:
    assert value("y: 1\nno: 0\n5: 2\n1.5: 3\n'on': 4") == {"true": 1, "false": 0, "5": 2, "1.5": 3, "on": 4}


@pytest.mark.parametrize(
    ("text", "path", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3", ("a",), 3, "written twice, first in line 1"),
        ("a:\n  b: 1\n  b: 2", ("a", "b"), 3, "written twice, first in line 2"),
        ("on: 1\n'true': 2", ("true",), 2, "written twice"),
        ("a: .nan", ("a",), 1, ".nan is no number that JSON knows"),
        ("a: [1, -.inf]", ("a", 1), 1, "-.inf is no number"),
        ("a: 9223372036854775808", ("a",), 1, "too large"),
        ("a: " + "9" * 10000, ("a",), 1, "too large"),
        ("a: 1e999", ("a",), 1, "too large"),
        ("a: !secret x", ("a",), 1, "the tag !secret has no meaning here"),
        ("a: !!binary aGk=", ("a",), 1, "the tag !!binary"),
        ("a: !!set {x}", ("a",), 1, "the tag !!set"),
        ("a: !!int 1.5", ("a",), 1, "'1.5' is no int"),
        ("? [a]\n: b", (), 1, "can't be the name of a field"),
        ("~: b", (), 1, "the name of a field is missing"),
        ("a: {<<: 5}", ("a",), 1, "<< merges mappings only"),
    ],
)
def test_what_kubectl_would_refuse_is_noted_with_its_place(
    text: str, path: tuple[str | int, ...], line: int, words: str
) -> None:
    (document,) = read_documents(text)
    (problem,) = document.problems
    assert (problem.path, problem.line) == (path, line)
    assert words in problem.message
    assert problem.remedy


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\n", 3, "did not find expected"),
        ("a:\n\t- b", 2, "indented with spaces"),
        ("a: b: c", 1, "mapping values are not allowed"),
        ("x\na: 1", 2, ""),
        ("a: 1\nb: *none", 2, "alias *none"),
        ("a: &a [*a]", 1, "inside the value it names"),
        ("a: 1\nb: \x07", 2, "U+0007"),
        ("[" * 100_000, 1, "nested more than"),
        (b"a: 1\nb: \xff", 2, "0xff is not UTF-8"),
        ("a: 1\n".encode("utf-16"), 1, "UTF-8"),
    ],
)
def test_what_is_no_yaml_raises_one_error_with_its_line(text: str | bytes, line: int, words: str) -> None:
    with pytest.raises(YamlError) as caught:
        read_documents(text)
    assert caught.value.line == line
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aliases_that_stand_for_billions_are_refused_at_once() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(YamlError, match="once aliases are written out"):
        read_documents("\n".join(["a0: &a0 [x]", *levels]))


def test_aliases_that_nest_deeply_are_refused() -> None:
    levels = [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5000)]
    with pytest.raises(YamlError, match="nested more than"):
        read_documents("\n".join(["a0: &a0 [x]", *levels]))


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(YamlError, match="MiB"):
        read_documents("a: " + "x" * 9 * 2**20)


def test_anchors_and_merges_write_out_what_they_name() -> None:
    text = "a: &a {x: 1, u: 2}\nb: {<<: *a, u: 3}\nc: {<<: [*a, {z: 4}], x: 0}\nd: *a"
    assert value(text) == {
        "a": {"x": 1, "u": 2},
        "b": {"x": 1, "u": 3},
        "c": {"x": 0, "u": 2, "z": 4},
        "d": {"x": 1, "u": 2},
    }


def test_each_field_knows_its_line() -> None:
    (document,) = read_documents("# a chain\nspec:\n  stages:\n    - name: a\n    - name: b\n      from: a\n")
    assert document.line_of(("spec", "stages", 1, "from")) == 6
    assert document.line_of(("spec", "stages", 1)) == 5
    assert document.line_of(("spec", "stages", 1, "training", "epochs")) == 5  # not written: the stage's line
    assert document.line_of(("status",)) == 2


def test_documents_that_say_nothing_are_passed_over() -> None:
    documents = read_documents(b"\xef\xbb\xbf---\n# nothing\n---\na: 1\n---\n---\nb: 2\n...\n")
    assert [(document.value, document.line) for document in documents] == [({"a": 1}, 4), ({"b": 2}, 7)]
    assert read_documents("") == read_documents("# only a comment\n") == []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["", "yes", "1e-3", "12k", "<<", "~", "a: b", "# x", "- y", "\u00e9\u4e2d", "'", '"', "{", "*a"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz", min_size=1), inner, max_size=4)
    ),
    max_leaves=10,
)


def same_number(value: JsonValue) -> JsonValue:
    """Integral floats as integers, as JSON has only one kind of number."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, list):
        return [same_number(item) for item in value]
    if isinstance(value, dict):
        return {key: same_number(item) for key, item in value.items()}
    return value


@given(st.dictionaries(st.text("abc", min_size=1), json_values, max_size=5))
def test_json_reads_as_itself(original: dict[str, JsonValue]) -> None:
    """JSON is YAML: what `kubectl get -o json` prints can be read back."""
    text = json.dumps(original)
    if original:
        assert value(text) == same_number(original)
