"""Batches for one rank, made by threads, or by processes that they hand the bytes to, while the model trains.

What a batch holds depends on the data, the seed and the step alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from modelchain.errors import ConfigurationError
from modelchain.families.towers import image_patches, kept_patches
from modelchain.resolved import ResolvedStage
from modelchain_trainer.data.assembly import Assembler, Part
from modelchain_trainer.data.corruption import Corrupt, CorruptionCounter
from modelchain_trainer.data.decoding import Decoder, DecodingProcesses
from modelchain_trainer.data.index import DatasetIndex
from modelchain_trainer.data.mix import sources_of
from modelchain_trainer.data.order import SampleOrder, Slice, cut_blocks
from modelchain_trainer.data.patches import choose_patches
from modelchain_trainer.data.reader import WindowReader, read_ahead_bytes
from modelchain_trainer.data.text_field import TextField
from modelchain_trainer.retry_policy import RetryPolicy

_CHUNK = 32  # samples of one task, at most
_FEWEST_AHEAD, _MOST_AHEAD = 2, 8  # batches in preparation
_AHEAD_BYTES = 256 << 20

_Task = Callable[[], list[Corrupt]]


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's rows of a step's global batch."""

    images: torch.Tensor  # uint8 [B, 3, H, W]; in memory the colours of a pixel lie together (channels last)
    tokens: torch.Tensor  # int64 [C, B, T]: texts, samples, what the field makes of a text
    step: int
    patches: torch.Tensor | None = None  # int64 [B, K]: places of those that the student sees; None: all


@dataclass(frozen=True, eq=False)
class _Pending:
    batch: Batch
    tasks: Sequence[Future[list[Corrupt]] | _Task]


class TrainingLoader:
    """Iterates over the batches of steps first_step .. stage.training.steps - 1, in order.

    `wait_seconds` is the time that the consumer has waited for batches so far. `__next__` raises
    UserDataError where too many samples are corrupt or a shard was replaced, MissingInputError where one is
    gone, StoreUnavailable where the store stayed away for too long, and DecodingEndedError.
    """

    def __init__(
        self,
        index: DatasetIndex,
        stage: ResolvedStage,
        *,
        rank: int,
        world_size: int,
        first_step: int,
        field: TextField,
        pin_memory: bool = False,
        processes: bool = False,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        """`pin_memory`: batches in page-locked memory, for copies to a GPU. `processes`: the stage's `dataWorkers` are
        processes. Raises ConfigurationError.
        """
        data, training = stage.data, stage.training
        if training.global_batch_size % world_size:
            raise ConfigurationError(
                f"training.globalBatchSize {training.global_batch_size} is not divisible by the {world_size} "
                "processes; change one of them"
            )
        self.wait_seconds = 0.0
        self._pin_memory = pin_memory
        self._patch_tower = stage.model_config_.patch_tower
        self._image_size = _image_side(stage)
        self._texts, self._text_width = len(index.text_keys), field.width
        self._seed, self._patch_dropout = training.seed, training.patch_dropout
        self._step, self._end_step = first_step, training.steps
        self._rows = training.global_batch_size // world_size
        self._first_row = rank * self._rows
        block_bytes = data.block_mebibytes << 20
        self._order = SampleOrder(
            cut_blocks(index, block_bytes),
            seed=training.seed,
            global_batch_size=training.global_batch_size,
            window_blocks=data.window_blocks,
            sources=sources_of(data, index),
        )
        lane_rows = self._order.lane_rows
        self._lanes = range(self._first_row // lane_rows, -(-(self._first_row + self._rows) // lane_rows))
        self._retry_policy = retry_policy or RetryPolicy()
        blocks_open = len(self._lanes) * (data.window_blocks // self._order.lanes)
        self._reader = WindowReader(
            index,
            self._order,
            self._lanes,
            first_step=first_step,
            end_step=training.steps,
            budget=read_ahead_bytes(blocks_open, block_bytes),
            retry_policy=self._retry_policy,
        )
        workers = training.data_workers
        decoder = Decoder(
            field,
            index.text_keys,
            image_size=self._image_size,
            crop_scale=data.random_crop_scale,
            draft=data.draft_decoding,
        )
        self._processes = DecodingProcesses(decoder, workers) if processes and workers else None
        self._assembler = Assembler(
            index,
            self._order,
            decoder,
            seed=training.seed,
            retry_policy=self._retry_policy,
            decode=self._processes,
        )
        self._counter = CorruptionCounter(
            index,
            data.max_corrupt_fraction,
            f"data.maxCorruptFraction {data.max_corrupt_fraction:g} allows",
        )
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="modelchain-decode") if workers else None
        batch_bytes = self._rows * 3 * self._image_size**2
        self._ahead = min(max(_AHEAD_BYTES // batch_bytes, _FEWEST_AHEAD), _MOST_AHEAD)
        self._pending: deque[_Pending] = deque()

    @property
    def corrupt(self) -> dict[str, int]:
        """Samples of this rank that were replaced since this loader began, by cause."""
        return dict(self._counter.by_cause)

    def __iter__(self) -> TrainingLoader:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            while len(self._pending) <= self._ahead and self._step < self._end_step:
                self._pending.append(self._prepare(self._step))
                self._step += 1
            if not self._pending:
                raise StopIteration
            pending = self._pending.popleft()
            corrupt = [
                c for task in pending.tasks for c in (task.result() if isinstance(task, Future) else task())
            ]
            self._counter.add(self._rows, corrupt)
        except BaseException:
            self.close()
            raise
        self.wait_seconds += time.perf_counter() - started
        return pending.batch

    def close(self) -> None:
        """Stop reading and decoding; the loader can't be used afterwards."""
        self._reader.close()
        self._pending.clear()
        self._step = self._end_step
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            self._processes.close()

    def _prepare(self, step: int) -> _Pending:
        self._reader.advance(step)
        size, rows, pin = self._image_size, self._rows, self._pin_memory
        images_BHW3 = torch.empty((rows, size, size, 3), dtype=torch.uint8, pin_memory=pin)
        tokens_CBT = torch.zeros((self._texts, rows, self._text_width), dtype=torch.int64, pin_memory=pin)
        images, tokens = images_BHW3.numpy(), tokens_CBT.numpy()
        patches_BK = None
        if self._patch_dropout:
            assert self._patch_tower is not None, "nothing has patches that could be left out"
            kept = kept_patches(self._patch_tower, self._patch_dropout)
            patches_BK = torch.empty((rows, kept), dtype=torch.int64, pin_memory=pin)
        tasks: list[Future[list[Corrupt]] | _Task] = []
        for parts in _tasks_of(self._parts(step)):
            first = parts[0][0].row - self._first_row
            mine = slice(first, first + sum(len(part.samples) for part, _ in parts))
            task = partial(self._assembler.fill, step, parts, images[mine], tokens[:, mine])
            tasks.append(task if self._pool is None else self._pool.submit(task))
            if patches_BK is not None:
                self._choose_patches(step, parts, patches_BK[mine])
        return _Pending(Batch(images_BHW3.permute(0, 3, 1, 2), tokens_CBT, step, patches_BK), tasks)

    def _parts(self, step: int) -> Iterator[Part]:
        """This rank's rows of a step, in order, in parts of at most `_CHUNK` samples."""
        for part in self._order.slices(step, self._lanes):
            segments = self._reader.segments(part.window)
            begin = max(part.row, self._first_row)
            end = min(part.row + len(part.samples), self._first_row + self._rows)
            for first in range(begin, end, _CHUNK):
                last = min(first + _CHUNK, end)
                samples = part.samples[first - part.row : last - part.row]
                yield Slice(part.window, first, samples), segments

    def _choose_patches(self, step: int, parts: Sequence[Part], patches_nK: torch.Tensor) -> None:
        assert self._patch_tower is not None
        epoch, _ = self._order.epoch_of(step)
        patches_nK.numpy()[:] = choose_patches(
            self._seed,
            epoch,
            np.concatenate([part.samples for part, _ in parts]),
            patches=image_patches(self._patch_tower),
            kept=patches_nK.shape[1],
        )


def _tasks_of(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Parts that follow each other, put together up to `_CHUNK` samples.

    Of many lanes each has a few rows of a batch, and a task of its own for them would cost more than small pictures.
    """
    task: list[Part] = []
    samples = 0
    for part in parts:
        if task and samples + len(part[0].samples) > _CHUNK:
            yield task
            task, samples = [], 0
        task.append(part)
        samples += len(part[0].samples)
    if task:
        yield task


def widest_batch(stage: ResolvedStage, rows: int, *, texts: int, width: int) -> Batch:
    """A batch of the form of a stage's, with `texts` texts of `width` numbers a sample, the largest at their ends."""
    side, dropout = _image_side(stage), stage.training.patch_dropout
    images_BHW3 = torch.zeros((rows, side, side, 3), dtype=torch.uint8)
    tokens_CBT = torch.arange(width).expand(texts, rows, width).contiguous()
    patches_BK, tower = None, stage.model_config_.patch_tower
    if dropout and tower is not None:
        patches_BK = torch.arange(kept_patches(tower, dropout)).expand(rows, -1).contiguous()
    return Batch(images_BHW3.permute(0, 3, 1, 2), tokens_CBT, 0, patches_BK)


def _image_side(stage: ResolvedStage) -> int:
    side = stage.model_config_.image_side
    assert side is not None, "it has no images"
    return side
