"""What the chart makes of several sets of values, pinned in snapshots/.

python -m tests.chart.golden        writes them anew; read the difference before committing it
"""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.chart.helm import Object, objects, render

VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
FOLDER = Path(__file__).parent / "snapshots"


def snapshot(values: Path) -> str:
    """The objects of a release with the values of a file, without what is generated or lies in files of its own."""
    rendered = objects(render("--values", str(values)))
    return yaml.dump_all([_without_copies(item) for item in rendered], Dumper=_Dumper, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _without_copies(item: Object) -> Object:
    match item["kind"]:
        case "CustomResourceDefinition":
            return {**item, "spec": "as in crds/"}
        case "PrometheusRule":
            return {**item, "spec": "as in files/alerts.yaml"}
        case "ConfigMap":
            return {**item, "data": {name: f"as in files/dashboards/{name}" for name in item["data"]}}
    return item


if __name__ == "__main__":
    for file in VALUES:
        (FOLDER / file.name).write_text(snapshot(file))
