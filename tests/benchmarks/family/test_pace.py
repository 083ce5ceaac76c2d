"""No run is begun that would be cut off."""

from __future__ import annotations

from benchmarks.family.pace import Pace, StageTime


def test_a_run_is_expected_to_take_what_the_slowest_of_its_kind_took() -> None:
    pace = Pace()
    assert pace.estimate([StageTime("w32", 100)]) == 0  # nothing is known yet
    pace.learn([StageTime("w32", 100, 5.0), StageTime("w128", 100, 20.0)], 31.0)
    pace.learn([StageTime("w32", 10, 1.0)], 2.0)
    assert pace.estimate([StageTime("w32", 200)]) == 3 + 200 * 0.1
    assert pace.estimate([StageTime("w32", 200), StageTime("w128", 50)]) == 2 * 3 + 200 * 0.1 + 50 * 0.2
    pace.learn([], 9.0)  # all its stages were there
    assert pace.estimate([StageTime("new", 100)]) == 3
