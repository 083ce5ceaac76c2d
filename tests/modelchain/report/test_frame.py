"""Labels above the plots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelchain.report.frame import stack_labels

ROOM = 6.0

labels = st.lists(st.tuples(st.floats(0, 5.9), st.floats(0.3, 3.0)), min_size=1, max_size=32).map(
    lambda pairs: sorted(pairs, key=lambda pair: pair[0])
)


@given(labels)
def test_labels_never_cover_each_other_and_stay_inside(pairs: list[tuple[float, float]]) -> None:
    starts, widths = [start for start, _ in pairs], [width for _, width in pairs]
    places = stack_labels(starts, widths, ROOM)
    for (x, _), width in zip(places, widths, strict=True):
        assert x >= 0
        assert x + width <= ROOM + 1e-9
    for i, (x, row) in enumerate(places):
        for j in range(i):
            other_x, other_row = places[j]
            apart = x >= other_x + widths[j] - 1e-9 or other_x >= x + widths[i] - 1e-9
            assert row != other_row or apart


@given(labels)
def test_no_line_rises_through_a_label_that_stands_at_its_own_line(pairs: list[tuple[float, float]]) -> None:
    starts, widths = [start for start, _ in pairs], [width for _, width in pairs]
    places = stack_labels(starts, widths, ROOM)
    for (x, row), width, own in zip(places, widths, starts, strict=True):
        if x <= own:  # moved left for want of room
            continue
        crossing = [r for line, (_, r) in zip(starts, places, strict=True) if x < line < x + width]
        assert all(other < row for other in crossing)


def test_labels_with_room_between_them_share_the_lowest_row() -> None:
    assert [row for _, row in stack_labels([0.0, 2.0, 4.0], [1.0, 1.0, 1.0], ROOM)] == [0, 0, 0]
