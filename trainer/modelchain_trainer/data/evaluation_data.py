"""Samples of an evaluation set, in their own order, with the transform of evaluation.

A sample that can't be used is left out: there is no substitute for it in a measurement. Whether too many are is
decided of one reading of the whole set, by all ranks together, and so the same at each.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from modelchain.errors import UserDataError
from modelchain.evaluations import evaluation_of
from modelchain.resolved import ResolvedStore
from modelchain.spec import EvaluationSpec
from modelchain.store import Store
from modelchain_trainer.data.corruption import Corrupt, describe, describe_sample
from modelchain_trainer.data.index import DatasetIndex, OnProgress, first_samples, index_samples
from modelchain_trainer.data.reader import Segment, read_segment
from modelchain_trainer.data.sample import (
    Cause,
    CorruptSampleError,
    Pixels,
    decode_image,
    evaluation_transform,
)
from modelchain_trainer.data.text_field import decode_label
from modelchain_trainer.data.text_keys import text_of
from modelchain_trainer.retry_policy import RetryPolicy

DEFAULT_CLASS_KEY = "cls"

MAX_CORRUPT_FRACTION = 0.01

_BATCH = 128  # samples; the same for every world size, so that every world size computes the same

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluationBatch:
    """Readable samples of an evaluation set."""

    indices: torch.Tensor  # int64 [B]: their places in the set
    images: torch.Tensor  # uint8 [B, 3, H, W]; in memory the colours of a pixel lie together
    labels: torch.Tensor | None  # int64 [B], of a set with classes
    captions: list[list[str]] | None  # of a set with captions, by sample and caption key


@dataclass(frozen=True, eq=False)
class _Loaded:
    batch: EvaluationBatch
    corrupt: list[Corrupt]


class EvaluationReader:
    """The samples of one evaluation set; they may be read again and again."""

    def __init__(
        self,
        spec: EvaluationSpec,
        access: ResolvedStore,
        index_store: Store,
        *,
        image_size: int,
        caption_keys: Sequence[str],
        classes: int | None = None,
        workers: int = 4,
        on_progress: OnProgress | None = None,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        """`caption_keys`: of a set with captions that names none itself. `classes`: labels from there on
        are no labels. `workers`: threads that read and decode.

        Raises as `data.index.index_samples`, and UserDataError where the set has fewer samples than it says.
        """
        self._classes, self._told = classes, False
        self._labelled = "classKey" in evaluation_of(spec).data_fields
        keys = (
            [spec.data.class_key or DEFAULT_CLASS_KEY]
            if self._labelled
            else list(spec.data.caption_keys or caption_keys)
        )
        self._image_size, self._workers = image_size, max(workers, 1)
        self._retry_policy = retry_policy or RetryPolicy()
        self._index = index_samples(
            spec.data.shards,
            keys,
            access,
            index_store,
            on_progress,
            image_keys=spec.data.image_keys,
            retry_policy=self._retry_policy,
        )
        self._first_samples = frozenset(self._index.first_samples.tolist())
        self._length = spec.data.samples or len(self._index)
        if self._length > len(self._index):
            raise UserDataError(
                f"evaluation set {spec.name}: data.samples is {self._length}, but its shards hold "
                f"{len(self._index)} samples; write at most {len(self._index)}"
            )

    def __len__(self) -> int:
        """Samples of the set, unreadable ones included."""
        return self._length

    @property
    def index(self) -> DatasetIndex:
        """Where its samples lie: those of the set alone, if its shards have more."""
        return first_samples(self._index, self._length)

    def batches(self, rank: int, world_size: int) -> Iterator[EvaluationBatch]:
        """The batches of one rank, in order: those whose number is `rank` modulo `world_size`.

        What a batch holds does not depend on the world size. Raises UserDataError where a shard was replaced,
        MissingInputError where one is gone.
        """
        starts = range(rank * _BATCH, self._length, world_size * _BATCH)
        numbers = deque(range(start, min(start + _BATCH, self._length)) for start in starts)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="modelchain-evaluation") as pool:
            pending: deque[Future[_Loaded]] = deque()
            try:
                while numbers or pending:
                    while numbers and len(pending) <= self._workers:
                        pending.append(pool.submit(self._load, numbers.popleft()))
                    yield pending.popleft().result().batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def samples(self, indices: Sequence[int]) -> EvaluationBatch:
        """These samples, without those that can't be used."""
        return self._load(indices).batch

    def check_readable(self, readable_n: torch.Tensor, name: str) -> None:
        """Say, once, that the set has samples that can't be used. `readable_n`: those that one reading of all of it
        could use, bool [n], by all ranks together.

        Raises UserDataError, the same on every rank, where they are more than 1 % of the set `name`.
        """
        left_out = (~readable_n).nonzero()[:, 0].tolist()
        too_many = len(left_out) > MAX_CORRUPT_FRACTION * self._length
        if not left_out or (self._told and not too_many):
            return
        again = self._load(left_out[:1]).corrupt  # another rank may have read it, and found it otherwise
        found = f"evaluation set {name}: {len(left_out)} of its {self._length} samples can't be used"
        one = describe(self._index, again[0], self._retry_policy) if again else self.describe(left_out[0])
        example = f"for example {one}"
        if too_many:
            share = f"the share of {MAX_CORRUPT_FRACTION:g} that it may have"
            raise UserDataError(f"{found}, more than {share}; {example}; fix its shards")
        logger.warning("%s and are left out; %s", found, example)
        self._told = True

    def describe(self, sample: int) -> str:
        """A sample, for people: its key and its shard."""
        return describe_sample(self._index, sample, self._retry_policy)

    def _load(self, numbers: Sequence[int]) -> _Loaded:
        readable: list[int] = []
        images: list[Pixels] = []
        labels: list[int] = []
        captions: list[list[str]] = []
        corrupt: list[Corrupt] = []
        for segment in self._segments(numbers):
            for sample in range(segment.first, segment.last):
                try:
                    if self._labelled:
                        labels.append(_label(segment, sample, self._classes))
                    else:
                        captions.append(_captions(segment, sample))
                    image = decode_image(segment.image(sample))
                except CorruptSampleError as error:
                    del labels[len(readable) :], captions[len(readable) :]
                    corrupt.append(Corrupt(sample, error.cause, str(error)))
                    continue
                images.append(evaluation_transform(image, self._image_size))
                readable.append(sample)
        size = self._image_size
        pixels_BHW3 = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
        return _Loaded(
            EvaluationBatch(
                indices=torch.tensor(readable, dtype=torch.int64),
                images=torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2),
                labels=torch.tensor(labels, dtype=torch.int64) if self._labelled else None,
                captions=None if self._labelled else captions,
            ),
            corrupt,
        )

    def _segments(self, numbers: Sequence[int]) -> Iterator[Segment]:
        """The bytes of the samples: one request for each run of consecutive samples of one shard."""
        cuts = [
            place
            for place, (before, number) in enumerate(pairwise(numbers), start=1)
            if number != before + 1 or number in self._first_samples
        ]
        for begin, end in pairwise([0, *cuts, len(numbers)]):
            if begin < end:
                yield read_segment(self._index, numbers[begin], numbers[end - 1] + 1, self._retry_policy)


def _label(segment: Segment, sample: int, classes: int | None) -> int:
    key = segment.index.text_keys[0]
    return decode_label(segment.text(sample, 0, Cause.MISSING_LABEL), key, classes)


def _captions(segment: Segment, sample: int) -> list[str]:
    keys = segment.index.text_keys
    return [text_of(segment.text(sample, column), key) for column, key in enumerate(keys)]
