"""A chain written for a cluster, on this machine: the same global batch, the same memory of a forward pass."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

from modelchain.errors import ConfigurationError
from modelchain.resolve import largest_divisor
from modelchain.resolved import ResolvedChain, ResolvedStage
from modelchain.spec import FOUND_BY_TRAINER

NVIDIA_SMI_SECONDS = 20


def visible_gpus(environment: Mapping[str, str] | None = None) -> int:
    """GPUs that a process started here would see: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists."""
    environment = os.environ if environment is None else environment
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        devices = [device.strip() for device in listed.split(",")]
        # CUDA stops at the first that does not exist; -1 is how one says "none".
        known = next((at for at, device in enumerate(devices) if device in {"", "-1"}), len(devices))
        return len(devices[:known])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        answer = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return (
        sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0
    )


def fit_chain(
    chain: ResolvedChain, *, gpus: int, processes: int | None, micro_batch_size: int | None
) -> ResolvedChain:
    """Every stage as it is trained here; digests stay what they are.

    `processes` default to the visible GPUs, or to one where there is none or the stage asks for none. A
    process takes no more samples in a forward pass than the file planned for one on the cluster, unless
    `micro_batch_size` says otherwise or the file leaves it to the trainer; the rest of its share is accumulated. Raises
    ConfigurationError where processes do not divide the batch, or would part samples that BatchNorm norms together.
    """

    def fitted(stages: tuple[ResolvedStage, ...]) -> tuple[ResolvedStage, ...]:
        return tuple(
            fit_stage(stage, gpus=gpus, processes=processes, micro_batch_size=micro_batch_size)
            for stage in stages
        )

    return chain.model_copy(update={"stages": fitted(chain.stages), "baselines": fitted(chain.baselines)})


def fit_stage(
    stage: ResolvedStage, *, gpus: int, processes: int | None, micro_batch_size: int | None
) -> ResolvedStage:
    """One stage of `fit_chain`."""
    job, training = stage.job, stage.training
    usable = gpus if job.gpus_per_node > 0 else 0
    world = processes or max(1, usable)
    batch = training.global_batch_size
    if batch % world:
        raise ConfigurationError(
            f"stage {stage.name}: training.globalBatchSize {batch} cannot be divided among {world} processes; "
            f"use --processes {largest_divisor(batch, world)}"
        )
    share = batch // world
    together = stage.model_config_.rows_together if training.steps else 1
    normed = (
        f"stage {stage.name}: the {together} samples that it norms together (normBatchSize) do not divide"
    )
    if share % together:
        raise ConfigurationError(
            f"{normed} the {share} of each of {world} processes; "
            f"use --processes {largest_divisor(batch // together, world)}"
        )
    planned = batch // (job.nodes * job.processes_per_node)
    planned = min(planned, training.micro_batch_size or planned)
    micro = min(share, micro_batch_size or max(1, planned))
    if micro % together:
        raise ConfigurationError(
            f"{normed} a micro-batch of {micro}; "
            f"use --micro-batch-size {max(together, micro // together * together)}"
        )
    if training.micro_batch_size == FOUND_BY_TRAINER and micro_batch_size is None:
        micro = FOUND_BY_TRAINER
    here = {"nodes": 1, "processes_per_node": world, "gpus_per_node": min(world, usable)}
    return stage.model_copy(
        update={
            "job": job.model_copy(update=here),
            "training": training.model_copy(update={"micro_batch_size": micro}),
        }
    )
