"""The table of metrics in docs/monitoring.md, as the operator exports them: `python -m tests.monitoring.reference`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.metrics_core import Metric

from tests.monitoring.life import families, whole_life

PAGE = Path(__file__).parents[2] / "docs/monitoring.md"
BEGIN = "<!-- metrics: written by python -m tests.monitoring.reference -->"
END = "<!-- end of metrics -->"

SECTIONS = {
    "modelchain_chain": "Chains",
    "modelchain_stage_": "Stages",
    "modelchain_": "The operator",
}


def page_with(found: Iterable[Metric]) -> str:
    """The page with the table of these metrics in it."""
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{_tables(found)}\n{END}{after}"


def _tables(found: Iterable[Metric]) -> str:
    rows: dict[str, list[str]] = {title: [] for title in SECTIONS.values()}
    for family in found:
        if family.name.startswith("modelchain_"):
            prefix = next(prefix for prefix in SECTIONS if family.name.startswith(prefix))
            rows[SECTIONS[prefix]].append(_row(family))
    head = "| Metric | Type | Labels | Meaning |\n| --- | --- | --- | --- |"
    return "\n".join(f"\n### {title}\n\n{head}\n" + "\n".join(sorted(lines)) for title, lines in rows.items())


def _row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    listed = ", ".join(f"`{label}`" for label in labels)
    return f"| `{name}` | {family.type} | {listed} | {family.documentation} |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        text = page_with(families(whole_life(Path(folder))).values())
    PAGE.write_text(text)
