"""Rows of a batch out of the bytes of their samples.

A sample that can't be used is replaced by another one of its window, whose bytes are in memory already. Which
one is a function of the seed and of the place in the epoch, hence the same for every world size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import UserDataError
from modelchain_trainer.data.corruption import Corrupt, describe
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.order import SampleOrder, Slice, Window, shuffle
from modelchain_trainer.data.randomness import Purpose, bits, key, uniforms
from modelchain_trainer.data.reader import Segment, read_segment
from modelchain_trainer.data.sample import (
    CROP_NUMBERS,
    CorruptSampleError,
    Pixels,
    crop_and_resize_into,
    decode_image,
    enough_pixels,
    random_crop,
)
from modelchain_trainer.data.text_field import TextField
from modelchain_trainer.retry_policy import RetryPolicy

Part: TypeAlias = tuple[Slice, Sequence[Future[Segment]]]  # rows of a batch, and the segments of their window

# Tried in the window, and as many again in the whole data set, each with a request of its own.
_SUBSTITUTES = 16
_SMALL_IMAGE = 1 << 16  # bytes in memory; opening such a file costs more than decoding it
_SMALL_IMAGES = 256 << 20  # bytes of them that are kept: all of a data set of thumbnails
_IMAGE_OVERHEAD = 1024  # bytes of an image besides its pixels


class Assembler:
    """Decodes, crops, and writes the numbers of texts. May be called from several threads at once."""

    def __init__(
        self,
        index: DatasetIndex,
        order: SampleOrder,
        field: TextField,
        *,
        seed: int,
        image_size: int,
        crop_scale: tuple[float, float],
        draft: bool = True,
        retry_policy: RetryPolicy,
    ) -> None:
        self._index, self._order, self._field, self._retry_policy = index, order, field, retry_policy
        self._seed, self._image_size, self._crop_scale = seed, image_size, crop_scale
        self._enough = enough_pixels(image_size, crop_scale) if draft else None
        self._small_images: dict[int, Pixels] = {}
        self._small_bytes = 0

    def fill(
        self,
        step: int,
        parts: Sequence[Part],
        images_BHW3: Pixels,
        tokens_CBT: NDArray[np.int64],
    ) -> list[Corrupt]:
        """Write the samples of `parts`, whose rows follow each other, into rows; returns those it replaced. A copy of a
        sample is another crop of it.

        Raises UserDataError where no substitute can be used either, and whatever reading raised.
        """
        epoch, step_in_epoch = self._order.epoch_of(step)
        first = step_in_epoch * self._order.global_batch_size + parts[0][0].row  # place in the epoch
        samples_B = np.concatenate([part.samples for part, _ in parts]).astype(np.uint64)
        crops = uniforms(key(Purpose.CROP, self._seed, epoch, samples_B), CROP_NUMBERS).tolist()
        corrupt: list[Corrupt] = []
        row = 0
        for part, segments in parts:
            read = [segment.result() for segment in segments]
            for sample in (part.samples % len(self._index)).tolist():
                numbers = crops[row]
                try:
                    image_HW3, texts = self._load(_holder(read, sample), sample)
                except CorruptSampleError as error:
                    corrupt.append(Corrupt(sample, error.cause, str(error)))
                    sample, image_HW3, texts = self._substitute(
                        part.window, read, epoch, first + row, corrupt[-1]
                    )
                    numbers = uniforms(key(Purpose.CROP, self._seed, epoch, sample), CROP_NUMBERS).tolist()
                height, width, _ = image_HW3.shape
                box = random_crop(width, height, self._crop_scale, numbers)
                crop_and_resize_into(image_HW3, box, images_BHW3[row])
                for column, text in enumerate(texts):
                    self._field.encode_into(text, tokens_CBT[column, row])
                row += 1
        return corrupt

    def _load(self, segment: Segment, sample: int) -> tuple[Pixels, list[Any]]:
        image_HW3 = self._small_images.get(sample)
        data = segment.image(sample) if image_HW3 is None else b""
        texts = [
            self._field.decode(segment.text(sample, column, self._field.missing), name)
            for column, name in enumerate(self._index.text_keys)
        ]
        if image_HW3 is None:
            image_HW3 = np.array(decode_image(data, enough=self._enough))
            self._keep(sample, image_HW3)
        return image_HW3, texts

    def _keep(self, sample: int, image_HW3: Pixels) -> None:
        """Keep a small image for the epochs to come. The first ones stay: most are seen about equally often."""
        size = image_HW3.nbytes + _IMAGE_OVERHEAD
        if size <= _SMALL_IMAGE and self._small_bytes + size <= _SMALL_IMAGES:
            self._small_bytes += size  # threads may count past each other; it is no exact limit
            self._small_images[sample] = image_HW3

    def _substitute(
        self, window: Window, segments: Sequence[Segment], epoch: int, place: int, corrupt: Corrupt
    ) -> tuple[int, Pixels, list[Any]]:
        for sample, segment in self._candidates(window, segments, epoch, place):
            try:
                return sample, *self._load(segment, sample)
            except CorruptSampleError:
                continue  # counted when its own turn comes
        raise UserDataError(
            f"{describe(self._index, corrupt)}; and none of {2 * _SUBSTITUTES} other samples could be used "
            "in its place; fix the shards"
        )

    def _candidates(
        self, window: Window, segments: Sequence[Segment], epoch: int, place: int
    ) -> Iterator[tuple[int, Segment]]:
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
