"""Colours of the report: one for each stage, in a light and a dark form, and those of text and lines.

All stage colours have a contrast of at least 3:1 to their background (WCAG 2.2, 1.4.11). Neighbours differ in
lightness or hue also for people who see no red or green; stages are told apart by markers and names besides.
"""

from __future__ import annotations

from dataclasses import dataclass

# In the order of a spectrum, since a chain has an order; evenly spaced ones are taken for a shorter chain.
_STAGES = (
    ("#2f5fd0", "#86a8ff"),
    ("#0c7fa8", "#4fc3ea"),
    ("#0a8468", "#43cfa6"),
    ("#5d7f0e", "#aecf52"),
    ("#a86a00", "#f0b94a"),
    ("#c94f16", "#ff9663"),
    ("#c22b5e", "#ff86ab"),
    ("#8a3fc0", "#cf9bff"),
)
_CHOICES = {1: (0,), 2: (0, 5), 3: (0, 2, 5), 4: (0, 2, 4, 6), 5: (0, 2, 4, 5, 7), 6: (0, 1, 2, 4, 5, 7)}

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")


@dataclass(frozen=True)
class Colour:
    """One colour on a light and on a dark background, and the name of its CSS variable."""

    variable: str
    light: str
    dark: str


TEXT = Colour("text", "#1a1f27", "#e8ebf0")
MUTED = Colour("muted", "#5a6472", "#a3adba")
GRID = Colour("line", "#d9dee5", "#353d49")
SURFACE = Colour("surface", "#ffffff", "#181c23")


def stage_colours(count: int) -> tuple[Colour, ...]:
    """As many different colours as there are stages."""
    if count <= len(_STAGES):
        chosen = [_STAGES[i] for i in _CHOICES.get(count, range(count))]
    else:
        last = len(_STAGES) - 1
        chosen = [_between(i * last / (count - 1)) for i in range(count)]
    return tuple(Colour(f"stage-{i}", light, dark) for i, (light, dark) in enumerate(chosen))


def _between(position: float) -> tuple[str, str]:
    """The colours at a place between two of the spectrum."""
    low = min(int(position), len(_STAGES) - 2)
    share = position - low
    light, dark = (
        "#"
        + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_rgb(one), _rgb(other), strict=True))
        for one, other in zip(_STAGES[low], _STAGES[low + 1], strict=True)
    )
    return light, dark


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
