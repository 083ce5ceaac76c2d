"""Several sources, some of them seen more than once an epoch: which runs of samples make an epoch, and in which order.

A source that is repeated 2.5 times gives each of its blocks twice, and half of its samples once more. Whose turn that
is, a ring of its blocks in an order of its own says: each epoch goes on where the one before has stopped. So no sample
has ever more turns than one more than another of its source, neither in an epoch nor over all of them. But for the less
than a batch that an epoch leaves out, each turn is seen.

The copies of a sample lie apart: k of them about a k-th of the epoch, the more exactly the more blocks a lane has; with
some tens of blocks, hardly any batch holds a sample twice. Each copy has a number of its own: the sample's plus a
multiple of N, the number of all samples. Crops and dropped patches follow from that number, so they differ from copy to
copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelchain.mix import seen_in_epoch
from modelchain.resolved import ResolvedData
from modelchain.shards import expand_all
from modelchain_trainer.data.randomness import Purpose, key, permutation, uniforms

if TYPE_CHECKING:
    from modelchain_trainer.data.index import DatasetIndex

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Samples [first, last) of the data set."""

    first: int
    last: int
    repeat: float

    @property
    def seen(self) -> int:
        """Samples that an epoch sees of it, repetitions counted."""
        return seen_in_epoch(self.last - self.first, self.repeat)


def sources_of(data: ResolvedData, index: DatasetIndex) -> tuple[Source, ...]:
    """Where the sources of a stage lie in its index, in their order; none where its data are one."""
    bounds = index.first_samples.tolist()
    shards = [shard.uri for shard in index.shards]
    found: list[Source] = []
    pattern = shard = 0
    for source in data.sources:
        uris = set(expand_all(data.shards[pattern : pattern + source.patterns]))
        pattern += source.patterns
        first = shard
        while shard < len(shards) and shards[shard] in uris:
            shard += 1
        found.append(Source(bounds[first], bounds[shard], source.repeat))
    assert shard == len(shards) or not data.sources, "shards of no source"
    return tuple(found)


class Mix:
    """The runs of samples of each epoch. `blocks` are those of all sources: first sample of each, and N."""

    def __init__(
        self, blocks: Int64, sources: Sequence[Source], *, seed: int, lanes: int, global_batch_size: int
    ) -> None:
        self.samples = sum(source.seen for source in sources)  # an epoch
        self._left_out = self.samples % global_batch_size
        self._blocks, self._seed, self._lanes = blocks, seed, lanes
        self._rings = [
            _Ring(blocks, source, key(Purpose.TURNS, seed, number))
            for number, source in enumerate(sources)
            if source.last > source.first
        ]

    def epoch(self, number: int) -> tuple[Int64, Int64]:
        """First samples and lengths of the epoch's runs, in the order in which they are laid end to end: those that the
        epoch leaves out last.
        """
        total, count = int(self._blocks[-1]), len(self._blocks) - 1
        rank = np.empty(count, np.int64)
        rank[permutation(key(Purpose.BLOCKS, self._seed, number), count)] = np.arange(count)
        random = uniforms(key(Purpose.PLACES, self._seed, number), count + 1)
        runs: list[tuple[Int64, Int64]] = []
        places: list[NDArray[np.float64]] = []
        for ring in self._rings:
            for copies, block, first, length in ring.epoch(number):
                # Runs that are seen equally often fill the epoch evenly, so that no lane has more of them than another,
                # and a copy that is some lanes on is so in time as well.
                order = np.argsort(rank[block])
                share = length / length.sum()
                place = np.empty(len(block))
                place[order] = np.cumsum(share[order]) - share[order]
                # But not in all lanes at the same times, or the few of a small source would come together.
                place += random[block] * np.clip(1 / self._lanes, share, 4 * share)
                for copy in range(copies):
                    runs.append((first + copy * total, length))
                    places.append((place + copy * self._apart(copies)) % 1)
        order = np.argsort(np.concatenate(places), kind="stable")
        firsts = np.concatenate([first for first, _ in runs])[order]
        lengths = np.concatenate([length for _, length in runs])[order]
        # What is left out, less than a batch, is taken evenly from the whole epoch. In one place it may be as long as a
        # lane, and a copy behind it would come into the lanes at another time than was meant.
        chosen = self._left_out * len(order) // self.samples
        out = ((np.arange(chosen) + random[-1]) * (len(order) / max(chosen, 1))).astype(np.int64)
        out = out[np.cumsum(lengths[out]) <= self._left_out]
        return (
            np.concatenate([np.delete(firsts, out), firsts[out]]),
            np.concatenate([np.delete(lengths, out), lengths[out]]),
        )

    def _apart(self, copies: int) -> float:
        """From a copy to the next on the line of the epoch, which lanes read side by side: whole lanes, and then a part
        of one, which is the time between them.
        """
        return (self._lanes // copies + 1 / copies) / self._lanes


class _Ring:
    """The blocks of a source in the order in which their turns come."""

    def __init__(self, blocks: Int64, source: Source, random: NDArray[np.uint64]) -> None:
        first, last = np.searchsorted(blocks, [source.first, source.last])
        self._block = first + permutation(random, int(last - first))
        self._first = blocks[self._block]
        self._length = blocks[self._block + 1] - self._first
        self._end = np.cumsum(self._length)
        self._samples = source.last - source.first
        self._times, self._more = divmod(source.seen, self._samples)

    def epoch(self, number: int) -> list[tuple[int, Int64, Int64, Int64]]:
        """How often each run of samples is seen: (times, its blocks, first samples, lengths)."""
        begin = number * self._more % self._samples
        end = begin + self._more
        turns = [(begin, min(end, self._samples)), (0, max(0, end - self._samples))]
        others = [(max(0, end - self._samples), begin), (min(end, self._samples), self._samples)]
        return [
            (times, *self._between(low, high))
            for times, parts in ((self._times + 1, turns), (self._times, others))
            for low, high in parts
            if times and low < high
        ]

    def _between(self, low: int, high: int) -> tuple[Int64, Int64, Int64]:
        """The runs at the places [low, high) of the ring: whole blocks, and parts of those that lie across an end."""
        begin = self._end - self._length
        start, stop = np.maximum(begin, low), np.minimum(self._end, high)
        chosen = start < stop
        return (
            self._block[chosen],
            (self._first + start - begin)[chosen],
            (stop - start)[chosen],
        )
