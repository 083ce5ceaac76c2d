"""A chain written for a cluster, fitted to this machine."""

from __future__ import annotations

import pytest

from modelchain.errors import ConfigurationError
from modelchain.families import TimmConfig
from modelchain.local.fitting import fit_stage, visible_gpus
from modelchain.resolved import ResolvedStage
from modelchain.spec import FOUND_BY_TRAINER
from tests.modelchain.reconcile.chains import chain


def stage(*, batch: int = 1024, micro: int | None = None, nodes: int = 1, gpus: int = 8) -> ResolvedStage:
    """A stage of a cluster's chain."""
    resolved = chain().stages[0]
    training = resolved.training.model_copy(update={"global_batch_size": batch, "micro_batch_size": micro})
    job = resolved.job.model_copy(
        update={"nodes": nodes, "gpus_per_node": gpus, "processes_per_node": max(1, gpus)}
    )
    return resolved.model_copy(update={"training": training, "job": job})


def fitted(
    one: ResolvedStage, *, gpus: int = 0, processes: int | None = None, micro: int | None = None
) -> tuple[int, int, int | None]:
    """Processes, GPUs and micro-batch size of the stage here."""
    here = fit_stage(one, gpus=gpus, processes=processes, micro_batch_size=micro)
    assert here.digest == one.digest
    assert here.training.global_batch_size == one.training.global_batch_size
    assert here.job.nodes == 1
    return here.job.processes_per_node, here.job.gpus_per_node, here.training.micro_batch_size


@pytest.mark.parametrize(
    ("written", "here", "expected"),
    [
        (stage(), {}, (1, 0, 128)),  # a process takes no more than one of the eight would
        (stage(nodes=2), {}, (1, 0, 64)),
        (stage(micro=32), {}, (1, 0, 32)),
        (stage(micro=FOUND_BY_TRAINER), {"gpus": 2}, (2, 2, FOUND_BY_TRAINER)),
        (stage(micro=FOUND_BY_TRAINER), {"micro": 8}, (1, 0, 8)),
        (stage(micro=4096), {}, (1, 0, 128)),  # more than its share was never taken
        (stage(), {"gpus": 2}, (2, 2, 128)),
        (stage(), {"gpus": 16}, (16, 16, 64)),  # here the share is smaller than was planned
        (stage(gpus=0), {"gpus": 4}, (1, 0, 1024)),  # the file asks for the CPU
        (stage(), {"gpus": 4, "processes": 2}, (2, 2, 128)),
        (stage(), {"processes": 2}, (2, 0, 128)),
        (stage(), {"micro": 8}, (1, 0, 8)),
        (stage(), {"micro": 100_000}, (1, 0, 1024)),
    ],
)
def test_keeps_the_global_batch_and_the_memory_of_a_forward_pass(
    written: ResolvedStage, here: dict[str, int], expected: tuple[int, int, int]
) -> None:
    assert fitted(written, **here) == expected


def test_processes_that_do_not_divide_the_batch_are_refused_with_a_number_that_does() -> None:
    with pytest.raises(ConfigurationError, match=r"globalBatchSize 1000 .* 3 processes; use --processes 2"):
        fitted(stage(batch=1000), processes=3)


def normed(stage: ResolvedStage, **training: int) -> ResolvedStage:
    """With a model that norms 32 samples together."""
    model = TimmConfig(name="resnet18", classes=3)
    changed = stage.training.model_copy(update=training)
    return stage.model_copy(update={"model_config_": model, "training": changed})


@pytest.mark.parametrize(
    ("batch", "here", "remedy"),
    [
        (96, {"gpus": 2}, "48 of each of 2 processes; use --processes 1"),
        (192, {"processes": 4}, "48 of each of 4 processes; use --processes 3"),
        (96, {"processes": 1, "micro": 16}, "a micro-batch of 16; use --micro-batch-size 32"),
        (192, {"micro": 70}, "a micro-batch of 70; use --micro-batch-size 64"),
    ],
)
def test_samples_that_are_normed_together_are_not_parted(
    batch: int, here: dict[str, int], remedy: str
) -> None:
    written = normed(stage(batch=batch, gpus=1))
    with pytest.raises(ConfigurationError, match=rf"stage .*the 32 samples .*\(normBatchSize\).* {remedy}$"):
        fitted(written, **here)
    name, value = remedy.rpartition("--")[2].split()
    advised = here | {"processes" if name == "processes" else "micro": int(value)}
    processes, _, micro = fitted(written, **advised)
    assert (batch // processes) % 32 == 0
    assert micro is not None
    assert micro % 32 == 0


def test_a_stage_without_steps_norms_no_samples_together() -> None:
    assert fitted(normed(stage(batch=96, gpus=1), epochs=0, steps=0), gpus=2)[0] == 2


@pytest.mark.parametrize(
    ("listed", "count"), [("0,1,3", 3), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-8932f937,MIG-1", 2)]
)
def test_counts_the_gpus_that_cuda_would_show(listed: str, count: int) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == count
