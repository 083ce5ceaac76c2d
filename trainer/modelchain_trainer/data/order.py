"""Which samples a step sees: a pure function of (data, seed, step), whatever the number of ranks and workers.

One request a sample would cost more than the training, so data is read in blocks: runs of consecutive samples
of one shard. In each epoch

1. the blocks are permuted, laid end to end, and the ring they form is cut open at a random sample;
2. the first `steps_per_epoch * global_batch_size` samples are cut into L equal *lanes*. Lane l fills the rows
   [l * G/L, (l+1) * G/L) of every batch, reading on through its part. What remains, less than one batch, is
   left out;
3. inside a lane, samples are shuffled within a *window* of some blocks.

Of several sources, of which some are seen more often than others, mix.py does the first: it says which runs of samples
make an epoch, in which order. A sample's second copy has the number of the sample plus that of all samples.

So `window_blocks` blocks are open at any time, and each batch takes an equal share from each of them. L is
the largest divisor of the global batch that is at most `window_blocks`: a rank, which has consecutive rows,
reads only the lanes that its rows lie in. Where the world size divides L, all ranks together read every byte
once; otherwise a lane that several ranks share is read by each of them (raise `windowBlocks` to the world
size to avoid that).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import ConfigurationError
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.mix import Mix, Source
from modelchain_trainer.data.randomness import Purpose, bits, key, permutation

Int64 = NDArray[np.int64]

_EPOCHS_KEPT = 2  # while the end of one is trained, the next is read ahead


@dataclass(frozen=True)
class Window:
    """A run of a lane's positions whose samples are shuffled together."""

    epoch: int
    lane: int
    number: int
    begin: int  # first position in the lane
    end: int
    # Samples [first, last) that are read with one request each. A copy's are those of its sample plus a multiple of N.
    segments: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Slice:
    """A part of a batch out of one window: `samples` fill the rows from `row` on."""

    window: Window
    row: int  # in the global batch
    samples: Int64


def cut_blocks(index: DatasetIndex, block_bytes: int) -> Int64:
    """First sample of each block, and N: as many samples as fit in `block_bytes`, at least one, never across
    shards.
    """
    boundaries: list[int] = []
    for first, last in zip(index.first_samples[:-1].tolist(), index.first_samples[1:].tolist(), strict=True):
        starts = index.starts[first:last]
        ends = starts + index.lengths[first:last]
        sample = 0
        while sample < last - first:
            boundaries.append(first + sample)
            fitting = int(np.searchsorted(ends, starts[sample] + block_bytes, side="right")) - sample
            sample += max(fitting, 1)
    return np.array([*boundaries, len(index)], np.int64)


def shuffle(window: Window, seed: int) -> Int64:
    """The samples of a window, in the order in which they are seen."""
    samples = np.concatenate([np.arange(first, last) for first, last in window.segments])
    return samples[
        permutation(key(Purpose.WINDOW, seed, window.epoch, window.lane, window.number), len(samples))
    ]


class SampleOrder:
    """The order of all samples in all steps. Any step costs the same to ask for: nothing is replayed."""

    def __init__(
        self,
        blocks: Int64,
        *,
        seed: int,
        global_batch_size: int,
        window_blocks: int,
        sources: Sequence[Source] = (),
    ) -> None:
        """`blocks` as from `cut_blocks`. Raises ConfigurationError where the data is less than one batch."""
        self.lanes = next(
            n for n in range(min(window_blocks, global_batch_size), 0, -1) if global_batch_size % n == 0
        )
        repeated = any(source.repeat != 1 for source in sources)
        self._mix = (
            Mix(blocks, sources, seed=seed, lanes=self.lanes, global_batch_size=global_batch_size)
            if repeated
            else None
        )
        samples = int(blocks[-1]) if self._mix is None else self._mix.samples
        if samples < global_batch_size:
            raise ConfigurationError(
                f"training.globalBatchSize {global_batch_size} is more than the {samples} samples; "
                "make it smaller"
            )
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.steps_per_epoch = samples // global_batch_size
        self.lane_rows = global_batch_size // self.lanes
        self._window_blocks = window_blocks // self.lanes
        self._blocks = blocks
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    def epoch_of(self, step: int) -> tuple[int, int]:
        """Epoch of a step, counted from 0, and the step's number in it."""
        return divmod(step, self.steps_per_epoch)

    def step_samples(self, step: int) -> Int64:
        """Numbers of the samples in the rows of a step's global batch: [G]."""
        return np.concatenate([part.samples for part in self.slices(step, range(self.lanes))])

    def slices(self, step: int, lanes: Sequence[int]) -> list[Slice]:
        """The parts of a step's batch that come from these lanes, by rows."""
        number, step_in_epoch = self.epoch_of(step)
        epoch = self._epoch(number)
        begin = step_in_epoch * self.lane_rows
        return [part for lane in lanes for part in epoch.slices(lane, begin, begin + self.lane_rows)]

    def windows(self, epoch: int, lane: int) -> tuple[Window, ...]:
        """The windows of a lane in an epoch, in order."""
        return self._epoch(epoch).windows(lane)

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            self._epochs[number] = _Epoch(
                *self._runs(number),
                self.seed,
                number,
                self.steps_per_epoch * self.lane_rows,
                self.lane_rows,
                self._window_blocks,
            )
            while len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[number]

    def _runs(self, epoch: int) -> tuple[tuple[Int64, Int64], int]:
        """First samples and lengths of the runs of an epoch, in order, and where their ring is cut open."""
        if self._mix is not None:
            return self._mix.epoch(epoch), 0
        order = permutation(key(Purpose.BLOCKS, self.seed, epoch), len(self._blocks) - 1)
        cut = bits(key(Purpose.ROTATION, self.seed, epoch), 1)[0] % np.uint64(self._blocks[-1])
        return (self._blocks[:-1][order], np.diff(self._blocks)[order]), int(cut)


class _Epoch:
    def __init__(
        self,
        runs: tuple[Int64, Int64],
        rotation: int,
        seed: int,
        number: int,
        lane_length: int,
        lane_rows: int,
        window_blocks: int,
    ) -> None:
        self._number, self._seed = number, seed
        self._lane_length, self._lane_rows, self._window_blocks = lane_length, lane_rows, window_blocks
        self._first_samples, lengths = runs
        # Of each run, end to end.
        self._positions = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self._rotation = rotation
        self._windows: dict[int, tuple[Window, ...]] = {}
        self._shuffled: OrderedDict[tuple[int, int], Int64] = OrderedDict()

    def windows(self, lane: int) -> tuple[Window, ...]:
        if lane not in self._windows:
            segments = self._segments(lane)
            windows: list[Window] = []
            begin = 0
            for first in range(0, len(segments), self._window_blocks):
                chosen = tuple(segments[first : first + self._window_blocks])
                end = begin + sum(last - start for start, last in chosen)
                windows.append(Window(self._number, lane, len(windows), begin, end, chosen))
                begin = end
            self._windows[lane] = tuple(windows)
        return self._windows[lane]

    def _samples(self, window: Window) -> Int64:
        place = (window.lane, window.number)
        if place not in self._shuffled:
            self._shuffled[place] = shuffle(window, self._seed)
            while len(self._shuffled) > 4 * max(1, len(self._windows)):
                self._shuffled.popitem(last=False)
        return self._shuffled[place]

    def slices(self, lane: int, begin: int, end: int) -> list[Slice]:
        windows = self.windows(lane)
        parts: list[Slice] = []
        number = bisect_right(windows, begin, key=lambda window: window.end)
        row = lane * self._lane_rows
        while begin < end:
            window = windows[number]
            stop = min(end, window.end)
            samples = self._samples(window)[begin - window.begin : stop - window.begin]
            parts.append(Slice(window, row, samples))
            row += stop - begin
            begin = stop
            number += 1
        return parts

    def _segments(self, lane: int) -> list[tuple[int, int]]:
        """The runs of samples that make the lane: whole blocks, and parts of blocks where it was cut."""
        total = int(self._positions[-1])
        first = self._rotation + lane * self._lane_length
        last = first + self._lane_length
        if last <= total:
            return self._run(first, last)
        if first >= total:
            return self._run(first - total, last - total)
        return self._run(first, total) + self._run(0, last - total)

    def _run(self, first: int, last: int) -> list[tuple[int, int]]:
        begin = int(np.searchsorted(self._positions, first, side="right")) - 1
        end = int(np.searchsorted(self._positions, last, side="left"))
        runs: list[tuple[int, int]] = []
        for block in range(begin, end):
            shift = int(self._first_samples[block]) - int(self._positions[block])
            runs.append(
                (
                    max(first, int(self._positions[block])) + shift,
                    min(last, int(self._positions[block + 1])) + shift,
                )
            )
        return runs
