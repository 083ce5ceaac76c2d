"""Prepares matplotlib's SVG for the page: no external references, ids of its own, colours for light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from modelchain.report.palette import GRID, MUTED, SURFACE, TEXT, Colour

_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-f]{6}")


def inline(text: str, prefix: str, label: str, colours: Iterable[Colour]) -> str:
    """The SVG as an element for HTML. `prefix` keeps its ids apart, `label` is its alternative text."""
    root = ET.fromstring(text)  # noqa: S314 (matplotlib's own output)
    variables = {
        colour.light: f"var(--{colour.variable})" for colour in (*colours, TEXT, MUTED, GRID, SURFACE)
    }
    for parent in root.iter():
        for child in [child for child in parent if child.tag == f"{{{_SVG}}}metadata"]:
            parent.remove(child)
        for name, value in list(parent.attrib.items()):
            del parent.attrib[name]
            parent.set("href" if name == _XLINK_HREF else name, _attribute(name, value, prefix, variables))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    return ET.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, prefix: str, variables: dict[str, str]) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == _XLINK_HREF:
        return value.replace("#", f"#{prefix}-", 1)
    if name == "style" and "font:" in value:
        value = re.sub(r"font: ([^;]*?)(\d+(?:\.\d+)?px) [^;]*", r"font: \1\2 var(--font)", value)
    if name in ("style", "fill", "stroke"):
        value = _COLOUR.sub(lambda match: variables.get(match.group(), match.group()), value)
    return value.replace("url(#", f"url(#{prefix}-")
