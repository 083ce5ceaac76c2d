"""Rows of a batch out of the bytes of their samples.

A sample that can't be used is replaced by another one of its window, whose bytes are in memory already. Which
one is a function of the seed and of the place in the epoch, hence the same for every world size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import UserDataError
from modelchain_trainer.data.corruption import Corrupt, describe
from modelchain_trainer.data.decoding import Decoder, DecodesRows, Files, Row, Unusable
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.order import SampleOrder, Slice, Window, shuffle
from modelchain_trainer.data.randomness import Purpose, bits, key, uniforms
from modelchain_trainer.data.reader import Segment, read_segment
from modelchain_trainer.data.sample import CROP_NUMBERS, CorruptSampleError, Pixels
from modelchain_trainer.retry_policy import RetryPolicy

Part: TypeAlias = tuple[Slice, Sequence[Future[Segment]]]  # rows of a batch, and the segments of their window
_Origin: TypeAlias = tuple[Window, Sequence[Segment]]

# Tried in the window, and as many again in the whole data set, each with a request of its own.
_SUBSTITUTES = 16


class Assembler:
    """Takes the files of samples out of what was read. May be called from several threads at once."""

    def __init__(
        self,
        index: DatasetIndex,
        order: SampleOrder,
        decoder: Decoder,
        *,
        seed: int,
        retry_policy: RetryPolicy,
        decode: DecodesRows | None = None,
    ) -> None:
        """`decode`: what decodes whole parts; by default `decoder`, which decodes substitutes."""
        self._index, self._order, self._retry_policy, self._seed = index, order, retry_policy, seed
        self._decoder, self._decode = decoder, decode or decoder

    def fill(
        self,
        step: int,
        parts: Sequence[Part],
        images_BHW3: Pixels,
        tokens_CBT: NDArray[np.int64],
    ) -> list[Corrupt]:
        """Write the samples of `parts`, whose rows follow each other, into rows; returns those it replaced. A copy of a
        sample is another crop of it.

        Raises UserDataError where no substitute can be used either, DecodingEndedError, and whatever reading raised.
        """
        epoch, step_in_epoch = self._order.epoch_of(step)
        first = step_in_epoch * self._order.global_batch_size + parts[0][0].row  # place in the epoch
        samples_B = np.concatenate([part.samples for part, _ in parts]).astype(np.uint64)
        crops = uniforms(key(Purpose.CROP, self._seed, epoch, samples_B), CROP_NUMBERS).tolist()
        rows: list[Row] = []
        origins: list[_Origin] = []
        for part, segments in parts:
            read = [segment.result() for segment in segments]
            for sample in (part.samples % len(self._index)).tolist():
                rows.append(
                    self._row(self._decode, len(rows), sample, _holder(read, sample), crops[len(rows)])
                )
                origins.append((part.window, read))
        corrupt: list[Corrupt] = []
        samples = (samples_B % np.uint64(len(self._index))).tolist()
        for row, cause, message in self._decode(rows, images_BHW3, tokens_CBT):
            corrupt.append(Corrupt(samples[row], cause, message))
            here = slice(row, row + 1)
            self._substitute(
                origins[row], epoch, first + row, corrupt[-1], images_BHW3[here], tokens_CBT[:, here]
            )
        return corrupt

    def _row(
        self, decode: DecodesRows, number: int, sample: int, segment: Segment, crop: Sequence[float]
    ) -> Row:
        """What is to be decoded, or why it can't be."""
        try:
            image = b"" if decode.knows(sample) else segment.image(sample)
            texts = tuple(
                segment.text(sample, column, self._decoder.field.missing)
                for column in range(len(self._decoder.text_keys))
            )
        except CorruptSampleError as error:
            return Unusable(number, error.cause, str(error))
        return Files(sample, image, texts, crop)

    def _substitute(
        self,
        origin: _Origin,
        epoch: int,
        place: int,
        corrupt: Corrupt,
        images_1HW3: Pixels,
        tokens_C1T: NDArray[np.int64],
    ) -> None:
        """Write another sample into a row. One that can't be used either is counted when its own turn comes."""
        for sample, segment in self._candidates(origin, epoch, place):
            crop = uniforms(key(Purpose.CROP, self._seed, epoch, sample), CROP_NUMBERS).tolist()
            if not self._decoder(
                [self._row(self._decoder, 0, sample, segment, crop)], images_1HW3, tokens_C1T
            ):
                return
        raise UserDataError(
            f"{describe(self._index, corrupt, self._retry_policy)}; and none of {2 * _SUBSTITUTES} other samples "
            "could be used in its place; fix the shards"
        )

    def _candidates(self, origin: _Origin, epoch: int, place: int) -> Iterator[tuple[int, Segment]]:
        window, segments = origin
        numbers = bits(key(Purpose.SUBSTITUTE, self._seed, epoch, place), 2 * _SUBSTITUTES).tolist()
        near = shuffle(window, self._seed) % len(self._index)
        for number in numbers[:_SUBSTITUTES]:
            sample = int(near[number % len(near)])
            yield sample, _holder(segments, sample)
        for number in numbers[_SUBSTITUTES:]:
            sample = number % len(self._index)
            yield sample, read_segment(self._index, sample, sample + 1, self._retry_policy)


def _holder(segments: Sequence[Segment], sample: int) -> Segment:
    return next(segment for segment in segments if segment.first <= sample < segment.last)
