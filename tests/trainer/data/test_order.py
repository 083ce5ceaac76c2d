"""The order of samples: complete, repeatable, independent of who asks, and close together on disk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain.errors import ConfigurationError
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.order import SampleOrder, cut_blocks, shuffle


def blocks_of(sizes: list[int]) -> np.ndarray:
    """Blocks of these numbers of samples."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def order_of(sizes: list[int], *, seed: int = 0, batch: int = 8, window: int = 4) -> SampleOrder:
    return SampleOrder(blocks_of(sizes), seed=seed, global_batch_size=batch, window_blocks=window)


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) >= 12)


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, seed=st.integers(0, 2**31 - 1), batch=st.integers(2, 12), window=st.integers(1, 20))
def test_an_epoch_sees_each_sample_once_but_for_less_than_a_batch(
    sizes: list[int], seed: int, batch: int, window: int
) -> None:
    order = order_of(sizes, seed=seed, batch=batch, window=window)
    for epoch in (0, 1, 7):
        first = epoch * order.steps_per_epoch
        steps = [order.step_samples(first + step) for step in range(order.steps_per_epoch)]
        assert all(len(samples) == batch for samples in steps)
        seen = np.concatenate(steps)
        assert len(np.unique(seen)) == len(seen)
        assert seen.min() >= 0
        assert seen.max() < sum(sizes)
        assert sum(sizes) - len(seen) < batch


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, window=st.integers(1, 20), step=st.integers(0, 10**6), seed=st.integers(0, 99))
def test_any_step_can_be_asked_for_first(sizes: list[int], window: int, step: int, seed: int) -> None:
    order = order_of(sizes, window=window, seed=seed)
    order.step_samples(0)  # something else was asked before
    order.step_samples(step + order.steps_per_epoch)
    assert (
        order.step_samples(step).tolist()
        == order_of(sizes, window=window, seed=seed).step_samples(step).tolist()
    )


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, window=st.integers(1, 20), step=st.integers(0, 200))
def test_the_slices_of_lanes_make_the_batch(sizes: list[int], window: int, step: int) -> None:
    """However lanes are shared out among ranks."""
    order = order_of(sizes, window=window)
    whole = order.step_samples(step)
    for lane in reversed(range(order.lanes)):
        for part in order.slices(step, [lane]):
            assert whole[part.row : part.row + len(part.samples)].tolist() == part.samples.tolist()
            assert lane * order.lane_rows <= part.row < (lane + 1) * order.lane_rows


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, window=st.integers(1, 20), epoch=st.integers(0, 50))
def test_a_window_is_some_blocks_and_each_segment_lies_in_one(
    sizes: list[int], window: int, epoch: int
) -> None:
    order = order_of(sizes, window=window)
    blocks = blocks_of(sizes)
    for lane in range(order.lanes):
        position = 0
        for number, one in enumerate(order.windows(epoch, lane)):
            assert (one.epoch, one.lane, one.number, one.begin) == (epoch, lane, number, position)
            assert 1 <= len(one.segments) <= window // order.lanes
            for first, last in one.segments:
                assert np.searchsorted(blocks, first, side="right") == np.searchsorted(
                    blocks, last, side="left"
                )
            assert sorted(shuffle(one, 0)) == sorted(
                s for first, last in one.segments for s in range(first, last)
            )
            position = one.end
        assert position == order.steps_per_epoch * order.lane_rows


def test_a_step_takes_its_samples_from_few_windows() -> None:
    order = order_of([50] * 200, batch=64, window=16)
    assert order.lanes == 16
    for step in range(0, 3 * order.steps_per_epoch, 17):
        windows = {(part.window.lane, part.window.number) for part in order.slices(step, range(16))}
        assert len(windows) <= 2 * 16


def test_lanes_divide_the_batch() -> None:
    assert [order_of([500], batch=batch, window=16).lanes for batch in (2, 7, 11, 24, 32, 34, 100, 101, 126)] == [
        2, 7, 11, 12, 16, 2, 10, 1, 14,
    ]  # fmt: skip


def test_epochs_and_seeds_differ() -> None:
    sizes = [20] * 10
    orders = {
        tuple(order_of(sizes, seed=seed).step_samples(epoch * 25).tolist())
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_what_is_left_out_of_an_epoch_changes() -> None:
    order = order_of([30, 7], batch=8)  # 37 samples: 4 steps, 5 left out
    left_out: set[int] = set()
    for epoch in range(60):
        seen = np.concatenate([order.step_samples(epoch * 4 + step) for step in range(4)])
        left_out |= set(range(37)) - set(seen.tolist())
    assert len(left_out) == 37


def test_neighbours_are_torn_apart() -> None:
    """Batches are not runs of the shard: a data set sorted by class is mixed."""
    order = order_of([100] * 40, batch=64, window=16)
    classes = np.repeat(np.arange(10), 400)
    counts = [
        np.bincount(classes[order.step_samples(step)], minlength=10) for step in range(order.steps_per_epoch)
    ]
    assert np.mean([count.max() for count in counts]) < 20  # of 64; 6.4 is even
    assert np.mean([(count > 0).sum() for count in counts]) > 7


def test_the_order_is_that_of_the_first_release() -> None:
    order = order_of([5, 3, 9, 4, 6, 7, 2, 8], seed=11, batch=8, window=4)
    assert order.step_samples(0).tolist() == [4, 2, 12, 16, 41, 43, 35, 17]
    assert order.step_samples(4).tolist() == [9, 10, 40, 36, 21, 34, 28, 27]
    assert order.step_samples(1234567).tolist() == [40, 38, 0, 2, 28, 31, 13, 21]


def test_blocks_hold_what_fits_and_never_cross_shards() -> None:
    lengths = np.array([300, 300, 500, 1500, 200, 200, 200, 700], np.int32)
    starts = np.array([0, 512, 1024, 2048, 4096, 0, 512, 1024], np.int64)  # the sixth begins a second shard
    index = SimpleNamespace(starts=starts, lengths=lengths, first_samples=np.array([0, 5, 8]))
    cut = cut_blocks(cast("DatasetIndex", cast("object", _Sized(index))), 1024)
    assert cut.tolist() == [0, 2, 3, 4, 5, 7, 8]


def test_less_data_than_a_batch_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"globalBatchSize 8 is more than the 7 samples"):
        order_of([4, 3], batch=8)


class _Sized:
    """The part of an index that blocks are cut from."""

    def __init__(self, columns: SimpleNamespace) -> None:
        self.starts, self.lengths, self.first_samples = columns.starts, columns.lengths, columns.first_samples

    def __len__(self) -> int:
        return len(self.starts)
