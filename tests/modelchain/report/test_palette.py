"""Colours that can be told apart."""

from __future__ import annotations

import pytest

from modelchain.report.palette import MUTED, SURFACE, TEXT, stage_colours
from modelchain.spec import MAX_STAGES


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours `#rrggbb`, 1 to 21 (WCAG 2.2)."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert contrast("#123456", "#123456") == 1


@pytest.mark.parametrize("count", [*range(1, 12), MAX_STAGES])
def test_every_stage_has_a_colour_of_its_own_that_stands_out_in_light_and_dark(count: int) -> None:
    colours = stage_colours(count)
    for scheme in ("light", "dark"):
        shades = [getattr(colour, scheme) for colour in colours]
        assert len(set(shades)) == count
        assert min(contrast(shade, getattr(SURFACE, scheme)) for shade in shades) >= 3
    assert len({colour.variable for colour in colours}) == count


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(scheme: str) -> None:
    for text in (TEXT, MUTED):
        assert contrast(getattr(text, scheme), getattr(SURFACE, scheme)) >= 4.5
