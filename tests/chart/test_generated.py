"""What is generated into the chart is what it was generated from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import modelchain
from charts.generate import CommentError, generate, read_values, to_schema, to_table
from modelchain.crd import custom_resource_definition, to_chart_template

CHART = Path(__file__).parents[2] / "charts" / "modelchain"
CRD = CHART / "templates" / "crd.yaml"

VALUES = """\
# For readers of the file.

# @schema
# minimum: 1
# @schema
# -- How many,
# or | so
# @section -- First
count: 1
nested:
  # -- Whether
  enabled: false
# @schema
# additionalProperties: {type: string}
# @schema
# -- Any labels
labels: {tier: one}
"""


@pytest.mark.parametrize("file", sorted(generate(CHART)), ids=lambda file: file.name)
def test_the_files_are_what_the_comments_say(file: Path) -> None:
    assert file.read_text() == generate(CHART)[file], f"{file.name} is stale: run `make chart` and commit"


def test_the_crd_is_what_the_types_say() -> None:
    assert CRD.read_text() == to_chart_template(custom_resource_definition()), (
        "charts/modelchain/templates/crd.yaml is stale: run `make crds` and commit"
    )


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (modelchain.__version__,) * 2


def test_a_schema_says_type_default_and_bounds_of_every_value_and_allows_no_other() -> None:
    schema = to_schema(read_values(VALUES))
    count = {"description": "How many, or | so", "default": 1, "type": "integer", "minimum": 1}
    assert schema["properties"]["count"] == count
    assert schema["properties"]["nested"]["additionalProperties"] is False
    assert schema["properties"]["labels"]["additionalProperties"] == {"type": "string"}
    assert schema["additionalProperties"] is False


def test_a_table_has_a_line_for_everything_that_can_be_set() -> None:
    assert to_table(read_values(VALUES)).splitlines() == [
        "### First",
        "",
        "| Value | What it does | Default |",
        "| --- | --- | --- |",
        "| `count` | How many, or \\| so | `1` |",
        "| `nested.enabled` | Whether | `false` |",
        '| `labels` | Any labels | `{"tier": "one"}` |',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  b: 1\n", "line 2: a.b has no description"),
        ("# -- Any\na: {}\n", "line 2: a does not show what it may hold"),
        ("# -- Any\na: []\n", "line 2: a does not show what it may hold"),
    ],
)
def test_a_value_that_is_not_explained_is_refused(text: str, message: str) -> None:
    with pytest.raises(CommentError, match=message):
        read_values(text)


def test_braces_in_a_description_do_not_become_a_template() -> None:
    definition: dict[str, Any] = custom_resource_definition()
    definition["spec"]["group"] = "{{ .Values.group }}"
    assert '{{ "{{" }} .Values.group }}' in to_chart_template(definition)
