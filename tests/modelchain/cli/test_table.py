from __future__ import annotations

import pytest

from modelchain.cli.table import Column, count, render


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (512, "512"),
        (65_536, "65,536"),
        (2_891_445, "2.89 M"),
        (27_899_777, "27.9 M"),
        (427_280_641, "427 M"),
        (1_253_589_504, "1.25 G"),
        (7.32e18, "7.32 E"),
        (1.2e25, "12.0 Y"),
    ],
)
def test_large_numbers_are_short(number: float, text: str) -> None:
    assert count(number) == text


def test_columns_line_up() -> None:
    table = render((Column("NAME"), Column("SIZE", right=True)), [("a", "1"), ("longer", "1,000")])
    assert table == "NAME     SIZE\na           1\nlonger  1,000"


def test_a_table_without_rows_is_its_header() -> None:
    assert render((Column("NAME"), Column("SIZE")), []) == "NAME  SIZE"
