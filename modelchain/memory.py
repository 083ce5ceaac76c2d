"""What a stage needs of each GPU, by calculation: weights, gradients, moments, averages, a teacher.

Master weights, their gradients and AdamW's two moments are fp32. Activations come on top: they grow with the
micro-batch, and shrink to each block's input with `gradientCheckpointing`.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelchain.cost import parameters
from modelchain.families import AnyConfig, family_of
from modelchain.families.towers import block_parameters
from modelchain.resolved import ResolvedStage
from modelchain.spec import Precision, Sharding

FP32_BYTES, BF16_BYTES = 4, 2
MOMENTS = 2  # of each parameter
MOMENTS_SHARE = 1 / 8  # of a GPU's memory, from which on moments are sharded unless the spec says
KEPT_SHARE = 1 / 2  # of a GPU's memory: where more would be kept all the same, weights are sharded too
BLOCKS_AT_ONCE = 2  # gathered: the one that runs and the one that comes next


@dataclass(frozen=True)
class StageMemory:
    """What a stage needs of each of its GPUs, in bytes, without activations."""

    name: str
    ranks: int
    sharding: Sharding
    kept: int  # from step to step, at most
    gathered: int  # at once in a step, at most


def memory_of(stage: ResolvedStage, *, gpu_bytes: int) -> StageMemory:
    """What a stage needs of GPUs of so many bytes, trained by as many processes as its job has."""
    ranks = stage.job.nodes * stage.job.processes_per_node
    return StageMemory(
        name=stage.name,
        ranks=ranks,
        sharding=sharding_of(stage, ranks=ranks, gpu_bytes=gpu_bytes),
        kept=kept_bytes(stage, ranks=ranks, gpu_bytes=gpu_bytes),
        gathered=gathered_bytes(stage, ranks=ranks, gpu_bytes=gpu_bytes),
    )


def sharding_of(stage: ResolvedStage, *, ranks: int, gpu_bytes: int) -> Sharding:
    """What is kept in parts on the ranks: as `training.sharding` says, else by its size."""
    if ranks == 1:
        return Sharding.NONE
    if stage.training.sharding is not None:
        return stage.training.sharding
    if MOMENTS * FP32_BYTES * _trained(stage) <= MOMENTS_SHARE * gpu_bytes:
        return Sharding.NONE
    kept = _kept_bytes(stage, ranks, Sharding.OPTIMIZER)
    # What is gathered block by block is trained whole.
    if stage.training.locked_tower is not None or not family_of(stage.model_config_).in_parts:
        return Sharding.OPTIMIZER
    return Sharding.FULL if kept > KEPT_SHARE * gpu_bytes else Sharding.OPTIMIZER


def kept_bytes(stage: ResolvedStage, *, ranks: int, gpu_bytes: int) -> int:
    """Bytes that one of `ranks` GPUs of `gpu_bytes` each keeps of a stage between two steps, at most.

    Where moments are sharded, a rank has an equal part of them, and at most one parameter more than that. Sharded
    fully it has equal parts of everything, but for what a table's last row takes on one rank and not on another.
    """
    return _kept_bytes(stage, ranks, sharding_of(stage, ranks=ranks, gpu_bytes=gpu_bytes))


def gathered_bytes(stage: ResolvedStage, *, ranks: int, gpu_bytes: int) -> int:
    """Bytes that a step of a fully sharded stage gathers on each GPU at once, at most; 0 for any other.

    Of student and teacher what lies outside of blocks and two blocks; of the student also the gradients of that much.
    """
    if sharding_of(stage, ranks=ranks, gpu_bytes=gpu_bytes) is not Sharding.FULL:
        return 0
    whole = 2 * FP32_BYTES * _at_once(stage.model_config_)
    if stage.teacher is not None and family_of(stage.teacher.model_config_).in_parts:
        whole += FP32_BYTES * _at_once(stage.teacher.model_config_)
    return whole


def _kept_bytes(stage: ResolvedStage, ranks: int, sharding: Sharding) -> int:
    model, training = stage.model_config_, stage.training
    count, trained = parameters(model), _trained(stage)
    weights = (1 + (training.ema_decay is not None)) * count  # and their average
    match sharding:
        case Sharding.NONE:
            kept = weights + (1 + MOMENTS) * trained  # gradients and moments
        case Sharding.OPTIMIZER:
            moments = min(trained, trained // ranks + family_of(model).largest_parameter(model))
            kept = weights + trained + MOMENTS * moments
        case Sharding.FULL:
            kept = -(-(weights + (1 + MOMENTS) * trained) // ranks)
    if stage.teacher is None:
        return FP32_BYTES * kept
    teacher = _teacher_bytes(stage, stage.teacher.model_config_)
    in_parts = sharding is Sharding.FULL and family_of(stage.teacher.model_config_).in_parts
    return FP32_BYTES * kept + (-(-teacher // ranks) if in_parts else teacher)


def _trained(stage: ResolvedStage) -> int:
    """Parameters that are not locked."""
    model, tower = stage.model_config_, stage.training.locked_tower
    locked = 0 if tower is None else family_of(stage.model_config_).of_tower(model, tower, 1)[0]
    return parameters(model) - locked


def _teacher_bytes(stage: ResolvedStage, teacher: AnyConfig) -> int:
    # In bf16 its matrix products' weights are kept in bf16; embeddings are not.
    width = BF16_BYTES if stage.training.precision is Precision.BF16 else FP32_BYTES
    embeddings = family_of(teacher).embedding_parameters(teacher)
    return width * (parameters(teacher) - embeddings) + FP32_BYTES * embeddings


def _at_once(model: AnyConfig) -> int:
    """Parameters that are whole on a rank at once: those outside of blocks, and the largest blocks."""
    towers = family_of(model).towers(model)
    blocks = sum(tower.layers * block_parameters(tower) for tower in towers)
    return parameters(model) - blocks + BLOCKS_AT_ONCE * max(map(block_parameters, towers), default=0)
