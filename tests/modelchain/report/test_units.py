"""Figures as people read them."""

from __future__ import annotations

import pytest

from modelchain.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00 MACs"),
        (999, "999 MACs"),
        (1234, "1.23 kMACs"),
        (4.05e12, "4.05 TMACs"),
        (99.96e15, "100 PMACs"),
    ],
)
def test_compute_has_a_prefix_and_three_digits(value: float, text: str) -> None:
    assert units.macs(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (86399, "1 d 0 h"),
        (200000, "2 d 8 h"),
    ],
)
def test_durations_never_show_sixty_of_anything(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("digits/top1", 0.9312, "93.1 %"), ("c/imageToText@5", 0.004, "0.40 %"), ("c/loss", 1.2345, "1.23")],
)
def test_shares_are_percentages_and_losses_are_not(name: str, value: float, text: str) -> None:
    assert units.metric(name, value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1_234_567, "1,234,567"), (86_190_000, "86.2 M"), (1.5e9, "1.50 B")]
)
def test_large_counts_get_a_prefix(value: float, text: str) -> None:
    assert units.count(value) == text


def test_long_names_lose_their_middle_and_keep_both_ends() -> None:
    assert units.shorten("short", 24) == "short"
    short = units.shorten("a-very-long-name-of-a-model-large", 24)
    assert len(short) == 24
    assert short.startswith("a-very-long")
    assert short.endswith("model-large")
