"""What was stamped before a step of the clock is compared with the time of day after it."""

from __future__ import annotations

import time

import pytest

from modelchain.clock import clock_step, steady
from modelchain.stage_probe import StoreSnapshot


@pytest.mark.parametrize("hours", [8, -8])
def test_a_step_is_seen_and_does_not_move_the_stamps(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    before, real = steady(), time.time
    assert clock_step() == 0
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    assert steady() - before < 3600
    assert abs(clock_step() - hours * 3600) < 60


def test_a_snapshot_of_the_store_moves_with_a_step() -> None:
    snapshot = StoreSnapshot({}, 10.0, {("tiny", 1): 20.0}, read_at={"tiny": 30.0})
    moved = snapshot.shifted(5.0)
    assert (moved.readable_since, moved.progress_changed_at, moved.read_at) == (
        15.0,
        {("tiny", 1): 25.0},
        {"tiny": 35.0},
    )
    assert snapshot.shifted(0.0) is snapshot
