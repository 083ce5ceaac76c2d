"""What a stage keeps on each GPU from step to step, by calculation: weights, gradients, moments, averages, a teacher.

Master weights, their gradients and AdamW's two moments are fp32. Activations come on top: they grow with the
micro-batch, and shrink to each block's input with `gradientCheckpointing`.
"""

from __future__ import annotations

from modelchain.cost import parameters
from modelchain.resolved import ResolvedStage, ResolvedTraining
from modelchain.spec import Precision
from modelchain.tasks import task_of

FP32_BYTES, BF16_BYTES = 4, 2
MOMENTS = 2  # of each parameter
MOMENTS_SHARE = 1 / 8  # of a GPU's memory, from which on moments are sharded unless the spec says


def shards_moments(training: ResolvedTraining, parameters: int, gpu_bytes: int) -> bool:
    """Whether moments are sharded over the ranks: as `training.shardOptimizer` says, else by their size."""
    if training.shard_optimizer is not None:
        return training.shard_optimizer
    return MOMENTS * FP32_BYTES * parameters > MOMENTS_SHARE * gpu_bytes


def kept_bytes(stage: ResolvedStage, *, ranks: int, gpu_bytes: int) -> int:
    """Bytes that one of `ranks` GPUs of `gpu_bytes` each keeps of a stage between two steps, at most.

    Where moments are sharded, a rank has an equal part of them, and at most one parameter more than that.
    """
    model, training = stage.model_config_, stage.training
    count = parameters(model)
    copies = 2 + (training.ema_decay is not None)  # weights, gradients, their average
    if ranks > 1 and shards_moments(training, count, gpu_bytes):
        moments = min(count, count // ranks + task_of(stage.task).largest_parameter(model))
    else:
        moments = count
    kept = FP32_BYTES * (copies * count + MOMENTS * moments)
    if stage.teacher is not None:
        # In bf16 its matrix products' weights are kept in bf16; embeddings are not, which this leaves out.
        width = BF16_BYTES if training.precision is Precision.BF16 else FP32_BYTES
        teacher = stage.teacher.model_config_
        embeddings = task_of(stage.task).embedding_parameters(teacher)
        kept += width * (parameters(teacher) - embeddings) + FP32_BYTES * embeddings
    return kept
