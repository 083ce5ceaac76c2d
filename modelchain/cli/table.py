"""Plain tables and numbers for people. No colours, no library: `modelchain plan` must start quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = (
    (10**24, "Y"),
    (10**21, "Z"),
    (10**18, "E"),
    (10**15, "P"),
    (10**12, "T"),
    (10**9, "G"),
    (10**6, "M"),
)


@dataclass(frozen=True)
class Column:
    """A column and its title; columns of numbers are aligned right."""

    title: str
    right: bool = False


def render(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """The table as text: columns two spaces apart, no newline at the end."""
    titles = [column.title for column in columns]
    widths = [max(len(cell) for cell in cells) for cells in zip(titles, *rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for column, width, cell in zip(columns, widths, row, strict=True)
        ).rstrip()
        for row in (titles, *rows)
    )
    return "\n".join(lines)


def count(number: float) -> str:
    """A large number with three or four digits and its unit: 1253589504 is '1.25 G', 2891445 is '2.89 M'."""
    for size, unit in _UNITS:
        if number >= size:
            value = number / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{number:,.0f}"
