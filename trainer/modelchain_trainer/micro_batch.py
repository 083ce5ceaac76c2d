"""How many samples one forward pass of a process takes, where the chain leaves it open (`microBatchSize: Auto`).

On a GPU it is tried: a forward and a backward pass with the longest texts, of the whole share of a process first, of
half as many each time they do not fit into `MEMORY_SHARE` of the memory. The rest is left to what a trial does not see:
the loss over all rows of the batch, buffers of NCCL, fragments. On a CPU, where memory that is short ends the process,
it is at most `MOST_ON_CPU`; where weights lie in parts on the ranks at most `MOST_IN_PARTS`, for a rank that runs out
of memory while weights are gathered leaves the others waiting.

What was found is kept in the stage's folder: a later attempt on as many GPUs of the same kind takes the same, so it
goes on bit for bit. Another size has the same gradient to rounding, for it adds up in another order.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from modelchain.artifacts import MICRO_BATCH, FoundMicroBatch, MicroBatchRecord
from modelchain.resolve import largest_divisor
from modelchain.resolved import ResolvedStage
from modelchain.spec import FOUND_BY_TRAINER, Sharding
from modelchain_trainer.attempt import Attempt
from modelchain_trainer.distributed.collectives import GradientSum, Group
from modelchain_trainer.ending import out_of_memory
from modelchain_trainer.tasks import task_of
from modelchain_trainer.tasks.task import Setting, StepBatch

logger = logging.getLogger(__name__)

MOST_ON_CPU = 64
MOST_IN_PARTS = 16
MEMORY_SHARE = 0.9  # of a GPU's, that a trial may take


@dataclass(frozen=True)
class Trial:
    """A forward and a backward pass of some rows by one process alone. It leaves no trace."""

    setting: Setting
    widest_batch: Callable[[int], StepBatch]  # of so many rows

    @classmethod
    def of(cls, setting: Setting) -> Trial:
        """With the models of a training step, as they lie on the device."""
        alone, stage = Group(), with_size(setting.stage, None)
        # What is compiled takes no more memory, and longer until it runs.
        stage = stage.model_copy(update={"training": stage.training.model_copy(update={"compile": False})})
        gradients = GradientSum(_trained(setting), alone)
        alone_setting = replace(setting, stage=stage, group=alone, gradients=gradients)
        return cls(alone_setting, task_of(stage).source(stage).widest_batch)

    def largest(self, share: int, most: int) -> int | None:
        """The largest of `largest_divisor(share, most)` and its halves that fits; None if not even one row does.

        What the model keeps together counts as one row.
        """
        objective, model = task_of(self.setting.stage).objective(self.setting), self.setting.model
        together = model.config.rows_together

        def fits(rows: int) -> bool:
            try:
                objective.accumulate(
                    self.widest_batch(rows), weight=1.0, taught=self.setting.teacher is not None
                )
            except torch.OutOfMemoryError:
                return False
            return True

        def fits_and_clears(rows: int) -> bool:
            found = fits(rows)  # what it held is gone only when it has returned
            for parameter in _trained(self.setting):
                parameter.grad = None
            gc.collect()
            if self.setting.device.type == "cuda":
                torch.cuda.empty_cache()
            model.end_step(self.setting.group, skip=torch.ones((), device=self.setting.device))
            return found

        if most < together:
            return None
        with self._less_memory(share):
            found = largest_that_fits(
                share // together, most // together, lambda groups: fits_and_clears(groups * together)
            )
            return None if found is None else found * together

    @contextmanager
    def _less_memory(self, share: int) -> Iterator[None]:
        """Less than the GPU has, and with what a step has there beside the trial: the share's pictures, an average."""
        device, training = self.setting.device, self.setting.stage.training
        if device.type != "cuda":
            yield
            return
        row = self.widest_batch(1).images.numel()
        average = sum(p.numel() for p in self.setting.model.parameters()) if training.ema_decay else 0
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, device)
        try:
            beside = (
                torch.empty(share * row, dtype=torch.uint8, device=device),
                torch.empty(average, device=device),
            )
            yield
            del beside
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)


def largest_that_fits(share: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest divisor of `share` of at most `most`, or of half of that and so on, that fits; None if none does."""
    size = largest_divisor(share, most)
    while not fits(size):
        if size == 1:
            return None
        size = largest_divisor(share, size // 2)
    return size


def with_size(stage: ResolvedStage, size: int | None) -> ResolvedStage:
    """The stage with micro-batches of this size."""
    training = stage.training.model_copy(update={"micro_batch_size": size})
    return stage.model_copy(update={"training": training})


def settle(attempt: Attempt, setting: Setting, sharding: Sharding) -> ResolvedStage:
    """The setting's stage with a size in place of Auto, the same on every rank. All ranks call it.

    Raises GpuOutOfMemoryError where not even one sample fits.
    """
    stage, ranks = setting.stage, attempt.ranks
    if stage.training.micro_batch_size != FOUND_BY_TRAINER:
        return stage
    if not stage.training.steps:
        return with_size(stage, None)  # of no step
    share = stage.training.global_batch_size // ranks.world_size
    here = FoundMicroBatch(
        processes=ranks.world_size,
        device=_name_of(setting.device),
        sharding=sharding,
        gradient_checkpointing=stage.training.gradient_checkpointing,
        size=share,
    )
    known = ranks.share("micro-batch", lambda: str(_known(attempt, here) or ""))
    if known:
        return with_size(stage, int(known))
    together = stage.model_config_.rows_together
    if setting.device.type == "cpu":
        size = together * largest_divisor(share // together, max(1, MOST_ON_CPU // together))
    elif sharding is Sharding.FULL:
        size = largest_divisor(share, MOST_IN_PARTS)
    else:
        found = Trial.of(setting).largest(share, share)
        if found is None:
            smallest = with_size(stage, together).training
            raise out_of_memory(
                share, smallest, f"of {together}" if together > 1 else "of one sample", together=together
            )
        size = share // ranks.agree(share // found)  # what fits on the smallest GPU
    logger.info("stage %s: micro-batches of %d samples", stage.name, size)
    if ranks.first:
        _record(attempt, here.model_copy(update={"size": size}))
    return with_size(stage, size)


def _known(attempt: Attempt, here: FoundMicroBatch) -> int | None:
    """What an earlier attempt found under the same circumstances."""
    return next((one.size for one in _read(attempt).found if one.circumstances == here.circumstances), None)


def _record(attempt: Attempt, found: FoundMicroBatch) -> None:
    record = _read(attempt)
    record = record.model_copy(update={"found": (*record.found, found)})
    data = record.model_dump_json(by_alias=True, indent=2).encode()
    attempt.retry_policy.call(lambda: attempt.store.put(_key(attempt), data))


def _read(attempt: Attempt) -> MicroBatchRecord:
    found = attempt.retry_policy.call(lambda: attempt.store.find(_key(attempt)))
    try:
        return MicroBatchRecord.model_validate_json(found[0]) if found else MicroBatchRecord()
    except ValueError:
        logger.warning("%s: damaged; it is written anew", attempt.store.uri_of(_key(attempt)))
        return MicroBatchRecord()


def _key(attempt: Attempt) -> str:
    return f"{attempt.stage.folder}/{MICRO_BATCH}"


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _trained(setting: Setting) -> list[nn.Parameter]:
    projections = [] if setting.projections is None else list(setting.projections.parameters())
    return [*setting.model.parameters(), *projections]
