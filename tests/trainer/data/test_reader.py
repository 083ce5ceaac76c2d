"""Reading: one request a segment, ahead of need, in bounded memory, and never bytes of another file."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import pytest

from modelchain.errors import MissingInputError, UserDataError
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.order import SampleOrder, cut_blocks
from modelchain_trainer.data.reader import WindowReader, read_ahead_bytes, read_segment, segment_bytes
from modelchain_trainer.data.sample import Cause, CorruptSampleError
from modelchain_trainer.retry_policy import RetryPolicy
from tests.tar_files import write_tar
from tests.trainer.data.shards import CountingStore, index_of, noise, png, write_shards

BLOCK = 1 << 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """240 samples of 9 to 10 kB, 60 a shard."""
    folder = tmp_path_factory.mktemp("data")
    return write_shards(folder, 240, 60, lambda n: {"png": noise(52, n), "txt": f"number {n}".encode()})


@pytest.fixture
def counted(shards: tuple[str, ...], tmp_path: Path) -> tuple[DatasetIndex, CountingStore]:
    """Their index, with a store that counts."""
    index = index_of(shards, 240, tmp_path / "store")
    store = CountingStore(Path(shards[0]).parent)
    return dataclasses.replace(
        index, shards=tuple(dataclasses.replace(s, store=store) for s in index.shards)
    ), store


def order_of(index: DatasetIndex, *, batch: int = 16, window: int = 4) -> SampleOrder:
    return SampleOrder(cut_blocks(index, BLOCK), seed=0, global_batch_size=batch, window_blocks=window)


def reader_of(
    index: DatasetIndex, order: SampleOrder, *, first: int = 0, end: int = 60, budget: int = 10**9
) -> WindowReader:
    return WindowReader(
        index,
        order,
        range(order.lanes),
        first_step=first,
        end_step=end,
        budget=budget,
        retry_policy=RetryPolicy(0),
    )


def test_an_epoch_reads_each_sample_once_in_whole_blocks(counted: tuple[DatasetIndex, CountingStore]) -> None:
    index, store = counted
    order = order_of(index)
    reader = reader_of(index, order, end=order.steps_per_epoch)
    for step in range(order.steps_per_epoch):
        reader.advance(step)
        for part in order.slices(step, range(order.lanes)):
            read = [segment.result() for segment in reader.segments(part.window)]
            assert all(any(s.first <= sample < s.last for s in read) for sample in part.samples)
    total = sum(length for _, _, length in store.reads)
    everything = sum(segment_bytes(index, first, first + 60) for first in range(0, 240, 60))
    assert total <= everything  # headers between blocks are skipped
    assert total > 0.99 * everything
    blocks = len(cut_blocks(index, BLOCK)) - 1
    assert len(store.reads) <= blocks + order.lanes + 1  # lanes and the ring are cut within blocks
    assert max(length for _, _, length in store.reads) <= BLOCK
    reader.close()


def test_memory_is_bounded_and_what_is_needed_comes_anyway(
    counted: tuple[DatasetIndex, CountingStore],
) -> None:
    index, _ = counted
    order = order_of(index)
    for budget, most in ((0, 8 * BLOCK), (6 * BLOCK, 8 * BLOCK)):
        reader = reader_of(index, order, budget=budget)
        for step in range(40):
            reader.advance(step)
            for part in order.slices(step, range(order.lanes)):
                assert reader.segments(part.window)
            assert reader._held_bytes <= most
        reader.close()


def test_a_rank_of_one_lane_keeps_all_connections_busy(
    counted: tuple[DatasetIndex, CountingStore],
) -> None:
    index, store = counted
    block = 1 << 14  # one sample
    order = SampleOrder(cut_blocks(index, block), seed=0, global_batch_size=16, window_blocks=4)
    under_way = threading.Semaphore(0)
    answer = threading.Event()

    class Slow(CountingStore):
        def get_range(self, key: str, start: int, length: int) -> bytes:
            under_way.release()
            answer.wait(60)
            return super().get_range(key, start, length)

    slow = Slow(store.root)
    shards = tuple(dataclasses.replace(shard, store=slow) for shard in index.shards)
    reader = WindowReader(
        dataclasses.replace(index, shards=shards),
        order,
        [0],
        first_step=0,
        end_step=order.steps_per_epoch,
        budget=read_ahead_bytes(1, block),
        retry_policy=RetryPolicy(0),
    )
    reader.advance(0)
    try:
        assert all(under_way.acquire(timeout=30) for _ in range(8))
    finally:
        answer.set()
        reader.close()


def test_reading_goes_ahead_to_the_end_of_the_next_epoch_at_most(
    counted: tuple[DatasetIndex, CountingStore],
) -> None:
    index, _ = counted
    order = order_of(index)
    reader = reader_of(index, order, end=10**6)
    reader.advance(0)
    assert {window.epoch for window in reader._held} == {0, 1}
    reader.advance(order.steps_per_epoch)
    assert {window.epoch for window in reader._held} == {1, 2}
    reader.close()


def test_the_last_step_is_the_last_that_is_read_for(counted: tuple[DatasetIndex, CountingStore]) -> None:
    index, _ = counted
    order = order_of(index)
    reader = reader_of(index, order, end=2)
    reader.advance(0)
    needed = {part.window for step in (0, 1) for part in order.slices(step, range(order.lanes))}
    assert set(reader._held) == needed
    reader.close()


def test_a_reader_can_begin_anywhere(counted: tuple[DatasetIndex, CountingStore]) -> None:
    index, _ = counted
    order = order_of(index)
    for first in (1, 7, order.steps_per_epoch - 1, order.steps_per_epoch, 3 * order.steps_per_epoch + 5):
        reader = reader_of(index, order, first=first, end=first + 20, budget=0)
        for step in range(first, first + 20):
            reader.advance(step)
            assert all(reader.segments(part.window) for part in order.slices(step, range(order.lanes)))
        reader.close()


def test_a_shard_replaced_while_training_is_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 20, 20)
    index = index_of(shards, 20, tmp_path / "store")
    path = Path(shards[0])
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    with pytest.raises(UserDataError, match=r"data/0000\.tar: was replaced while"):
        read_segment(index, 5, 9, RetryPolicy())
    path.write_bytes(good[:9000])
    with pytest.raises(UserDataError, match=r"data/0000\.tar: was replaced while"):
        read_segment(index, 5, 9, RetryPolicy())
    path.write_bytes(good)  # with every header where it was: other pictures may be of the same size
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserDataError, match=r"data/0000\.tar: was replaced while"):
        read_segment(index, 5, 9, RetryPolicy())
    path.unlink()
    with pytest.raises(MissingInputError, match=r"data/0000\.tar: was removed while"):
        read_segment(index, 5, 9, RetryPolicy())


def test_missing_files_of_a_sample_are_told_apart(tmp_path: Path) -> None:
    members = [("0.png", png(0)), ("1.txt", b"one"), ("2.png", png(2)), ("2.txt", b"two")]
    index = index_of(
        [str(write_tar(tmp_path / "a.tar", members))], 3, tmp_path / "store", max_corrupt_fraction=1
    )
    segment = read_segment(index, 0, 3, RetryPolicy())
    with pytest.raises(CorruptSampleError, match=r"has no \.txt") as raised:
        segment.text(0, 0)
    assert raised.value.cause is Cause.MISSING_CAPTION
    with pytest.raises(CorruptSampleError, match="has no image") as raised:
        segment.image(1)
    assert raised.value.cause is Cause.MISSING_IMAGE
    assert segment.text(2, 0) == b"two"
