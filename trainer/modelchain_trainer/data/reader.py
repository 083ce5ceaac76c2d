"""The bytes of samples, read in whole segments ahead of the step that needs them, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from modelchain.errors import MissingInputError, UserDataError
from modelchain.store import NotFound, Replaced
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.order import SampleOrder, Window
from modelchain_trainer.data.sample import Cause, CorruptSampleError
from modelchain_trainer.data.tar import RECORD, is_header
from modelchain_trainer.data.text_keys import extension_of
from modelchain_trainer.retry_policy import RetryPolicy

_THREADS = 8


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive samples [first, last) of one shard, in memory."""

    first: int
    last: int
    index: DatasetIndex
    data: bytes

    def image(self, sample: int) -> bytes:
        """The image file of a sample. Raises CorruptSampleError where there is none."""
        offset = int(self.index.image_offsets[sample])
        if offset < 0:
            others = (
                f"; files of other extensions in the shards: {self.index.unused}" if self.index.unused else ""
            )
            raise CorruptSampleError(Cause.MISSING_IMAGE, f"has no image{others}")
        return self._body(sample, offset, int(self.index.image_sizes[sample]))

    def text(self, sample: int, column: int, missing: Cause = Cause.MISSING_CAPTION) -> bytes:
        """The text file of a sample in that column of the index. Raises CorruptSampleError, with the cause `missing`,
        where there is none.
        """
        offset = int(self.index.text_offsets[sample, column])
        if offset < 0:
            raise CorruptSampleError(missing, f"has no .{extension_of(self.index.text_keys[column])}")
        return self._body(sample, offset, int(self.index.text_sizes[sample, column]))

    def _body(self, sample: int, offset: int, size: int) -> bytes:
        begin = int(self.index.starts[sample] - self.index.starts[self.first]) + offset
        return self.data[begin : begin + size]


def segment_bytes(index: DatasetIndex, first: int, last: int) -> int:
    """Bytes of the samples [first, last) of one shard, with what lies between them."""
    return int(index.starts[last - 1]) + int(index.lengths[last - 1]) - int(index.starts[first])


def read_ahead_bytes(blocks_open: int, block_bytes: int) -> int:
    """Memory for a rank whose windows hold so many blocks at a time: as much again is read ahead of them, and at
    least what keeps all connections busy. One of 64 ranks has two blocks open, and S3 takes as long to begin an
    answer as to send a block.
    """
    return (blocks_open + max(blocks_open, 2 * _THREADS)) * block_bytes


def read_segment(index: DatasetIndex, first: int, last: int, retry_policy: RetryPolicy) -> Segment:
    """Read the samples [first, last) of one shard with one request.

    Raises UserDataError where the shard is no longer what was indexed, MissingInputError where it is gone,
    and StoreUnavailable when the store stayed away for longer than `retry_policy`.
    """
    shard = index.shard_of(first)
    length = segment_bytes(index, first, last)
    start = int(index.starts[first])
    try:
        data = retry_policy.call(lambda: shard.store.get_range_of(shard.key, start, length, shard.etag))
    except NotFound as error:
        raise MissingInputError(
            f"{shard.uri}: was removed while it was used for training; put it back"
        ) from error
    except Replaced:
        data = b""
    if len(data) != length or not is_header(data[:RECORD]):
        raise UserDataError(
            f"{shard.uri}: was replaced while it was used for training; let nothing write to the shards"
        )
    return Segment(first, last, index, data)


class WindowReader:
    """Reads the windows of some lanes in the order of need, as far ahead as `budget` bytes allow, at
    most to the end of the next epoch.
    """

    def __init__(
        self,
        index: DatasetIndex,
        order: SampleOrder,
        lanes: Sequence[int],
        *,
        first_step: int,
        end_step: int,
        budget: int,
        retry_policy: RetryPolicy,
    ) -> None:
        """`budget`: bytes; exceeded only by what a single step needs. Steps first_step .. end_step - 1 will
        be asked for.
        """
        self._index, self._order = index, order
        self._end_step, self._budget, self._retry_policy = end_step, budget, retry_policy
        self._held: dict[Window, list[Future[Segment]]] = {}
        self._held_bytes = 0
        self._next = {lane: self._first_window(lane, first_step) for lane in lanes}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="modelchain-read")

    def advance(self, step: int) -> None:
        """Ask for what `step` needs, then for what later ones need; let go of what none needs any more."""
        for window in [window for window in self._held if self._last_step(window) < step]:
            del self._held[window]
            self._held_bytes -= self._bytes(window)
        while (lane := self._most_urgent()) is not None:
            window = self._next[lane]
            assert window is not None
            if self._first_step(window) > step:
                beyond_next_epoch = window.epoch > self._order.epoch_of(step)[0] + 1
                if beyond_next_epoch or self._held_bytes + self._bytes(window) > self._budget:
                    return
            self._held[window] = [
                self._pool.submit(read_segment, self._index, first, last, self._retry_policy)
                for first, last in self._segments(window)
            ]
            self._held_bytes += self._bytes(window)
            self._next[lane] = self._after(window)

    def segments(self, window: Window) -> list[Future[Segment]]:
        """The segments of a window that `advance` asked for. Whoever keeps the list keeps the bytes."""
        return self._held[window]

    def close(self) -> None:
        """Stop reading."""
        self._retry_policy.stop()
        self._held.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _most_urgent(self) -> int | None:
        waiting = [
            (self._first_step(window), lane) for lane, window in self._next.items() if window is not None
        ]
        return min(waiting)[1] if waiting else None

    def _first_window(self, lane: int, step: int) -> Window | None:
        if step >= self._end_step:
            return None
        epoch, _ = self._order.epoch_of(step)
        return next(window for window in self._order.windows(epoch, lane) if self._last_step(window) >= step)

    def _after(self, window: Window) -> Window | None:
        siblings = self._order.windows(window.epoch, window.lane)
        if window.number + 1 < len(siblings):
            following = siblings[window.number + 1]
        elif (window.epoch + 1) * self._order.steps_per_epoch < self._end_step:
            following = self._order.windows(window.epoch + 1, window.lane)[0]
        else:
            return None
        return following if self._first_step(following) < self._end_step else None

    def _first_step(self, window: Window) -> int:
        return window.epoch * self._order.steps_per_epoch + window.begin // self._order.lane_rows

    def _last_step(self, window: Window) -> int:
        return window.epoch * self._order.steps_per_epoch + (window.end - 1) // self._order.lane_rows

    def _bytes(self, window: Window) -> int:
        return sum(segment_bytes(self._index, first, last) for first, last in self._segments(window))

    def _segments(self, window: Window) -> list[tuple[int, int]]:
        """Of copies those of their samples."""
        copies = (first // len(self._index) * len(self._index) for first, _ in window.segments)
        return [
            (first - copy, last - copy) for (first, last), copy in zip(window.segments, copies, strict=True)
        ]
