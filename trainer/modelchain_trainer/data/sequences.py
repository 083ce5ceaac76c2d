"""Sequences of tokens for one rank: which, is a function of the data, the seed and the step alone.

In each epoch all sequences are permuted, and each step takes the next of them; what remains, less than one batch, is
left out. Rank r has the r-th equal part of each batch. Nothing is replayed to go on at a step.
"""

from __future__ import annotations

import torch
from numpy.typing import NDArray

from modelchain.errors import ConfigurationError
from modelchain.resolved import ResolvedTraining
from modelchain_trainer.data.loader import Batch
from modelchain_trainer.data.randomness import Purpose, key, permutation
from modelchain_trainer.data.token_stream import TokenStream


class SequenceOrder:
    """The order of all sequences in all steps."""

    def __init__(self, sequences: int, *, seed: int, global_batch_size: int) -> None:
        """Raises ConfigurationError where the data is less than one batch."""
        if sequences == 0:
            raise ConfigurationError(
                "the documents' tokens fill no sequence; add documents, or make the contextLength smaller"
            )
        if sequences < global_batch_size:
            raise ConfigurationError(
                f"training.globalBatchSize {global_batch_size} is more than the {sequences} sequences; make it smaller"
            )
        self._sequences, self._seed, self._batch = sequences, seed, global_batch_size
        self.steps_per_epoch = sequences // global_batch_size
        self._epoch, self._order = -1, permutation(key(Purpose.SEQUENCES, seed, 0), 0)

    def step_sequences(self, step: int) -> NDArray:
        """Numbers of the sequences in the rows of a step's global batch: int64 [G]."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = permutation(key(Purpose.SEQUENCES, self._seed, epoch), self._sequences)
        return self._order[number * self._batch : (number + 1) * self._batch]


class SequenceLoader:
    """Iterates over the batches of steps first_step .. training.steps - 1, in order."""

    wait_seconds = 0.0  # tokens are in memory, or in the page cache

    def __init__(
        self,
        stream: TokenStream,
        training: ResolvedTraining,
        *,
        rank: int,
        world_size: int,
        first_step: int,
        pin_memory: bool = False,
    ) -> None:
        """Raises ConfigurationError where the batch does not divide among the processes."""
        batch = training.global_batch_size
        if batch % world_size:
            raise ConfigurationError(
                f"training.globalBatchSize {batch} is not divisible by the {world_size} processes; change one of them"
            )
        self._stream, self._pin_memory = stream, pin_memory
        self._order = SequenceOrder(len(stream), seed=training.seed, global_batch_size=batch)
        rows = batch // world_size
        self._rows = slice(rank * rows, (rank + 1) * rows)
        self._step, self._end_step = first_step, training.steps
        # Documents that can't be used were left out before the first step, for all ranks.
        counted = rank == 0 and first_step == 0
        self.corrupt: dict[str, int] = dict(stream.unusable) if counted else {}

    def __iter__(self) -> SequenceLoader:
        return self

    def __next__(self) -> Batch:
        if self._step >= self._end_step:
            raise StopIteration
        numbers = self._order.step_sequences(self._step)[self._rows]
        tokens = torch.from_numpy(self._stream.rows(numbers))
        if self._pin_memory:
            tokens = tokens.pin_memory()
        images = torch.empty((len(numbers), 0, 0, 0), dtype=torch.uint8)
        self._step += 1
        return Batch(images, tokens, self._step - 1)

    def close(self) -> None:
        """Nothing is open."""
