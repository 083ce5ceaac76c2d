"""Figures for people: with a unit, and no more digits than are meaningful."""

from __future__ import annotations

_PREFIXES = (
    ("", 1.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Z", 1e21),
    ("Y", 1e24),
)


def scale(largest: float) -> tuple[float, str]:
    """The divisor and the SI prefix that suit numbers up to `largest`."""
    prefix, divisor = max((p for p in _PREFIXES if p[1] <= max(largest, 1.0)), key=lambda p: p[1])
    return divisor, prefix


def macs(value: float) -> str:
    """Multiply-accumulates: 1.23 TMACs."""
    divisor, prefix = scale(value)
    return f"{digits(value / divisor)} {prefix}MACs"


def count(value: float) -> str:
    """A number of things: 1,234,567; with a prefix from ten million on."""
    if value < 1e7:
        return f"{value:,.0f}"
    divisor, prefix = scale(value)
    return f"{digits(value / divisor)} {prefix.replace('G', 'B')}"


def duration(seconds: float) -> str:
    """Seconds as 41 s, 12 min 05 s, 3 h 20 min or 2 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def percent(share: float) -> str:
    """A share of one as 28.2 %."""
    value = 100 * share
    return f"{value:.2f} %" if 0 < abs(value) < 1 else f"{value:.1f} %"


def metric(name: str, value: float) -> str:
    """A metric of an evaluation: shares in percent, all else as it is."""
    return percent(value) if is_share(name) else digits(value)


def is_share(name: str) -> bool:
    """Whether a metric, by its name, is a share of the samples: top1, top5, imageToText@5 ..."""
    last = name.rpartition("/")[2]
    return last.startswith("top") or "@" in last


def digits(value: float) -> str:
    """Three significant digits (two below 0.0095), and all those before the point."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    if abs(value) >= 0.0095 or value == 0:
        return f"{value:.2f}" if abs(value) >= 0.9995 or value == 0 else f"{value:.3f}"
    return f"{value:.2g}"


def shorten(text: str, length: int) -> str:
    """`text` with its middle left out where it is longer than `length`."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"
