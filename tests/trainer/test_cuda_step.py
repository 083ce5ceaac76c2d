"""The training step on a GPU, traced where there is none.

Fake tensors (torch's own) have a device and a shape but no numbers: an operation between devices raises, and so
does reading a number of a tensor, which on a GPU would hold up the processor until the device is done.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from modelchain.families import OpenClipConfig
from modelchain.families.open_clip_adapter import image_towers
from modelchain.spec import LossName, TaskName
from modelchain_trainer.captions import Captions
from modelchain_trainer.data import sample
from modelchain_trainer.losses import Features
from modelchain_trainer.model.classifier import Classifier
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.language_model import LanguageModel
from modelchain_trainer.model.open_clip_adapter import OpenClip
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.step import StepResult, TrainStep
from modelchain_trainer.tasks import contrastive, task_of
from tests.trainer.expansion.families import classifier, language_model
from tests.trainer.test_step import BATCH, CAPTIONS, CONTEXT, IMAGE_SIZE, Rows, config, stage

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fake tensors can't do: be pinned, and tell where the longest text ends (both of them on the CPU)."""

    def halves(tokens_CmT: Tensor, *, multiple_of: int, bucket_cost: int) -> Captions:
        assert tokens_CmT.device.type == "cpu", "reading the length of a text on the GPU waits for it"
        shorter_nT, longer_nT = tokens_CmT.flatten(0, 1).split(tokens_CmT.shape[1] * (CAPTIONS - 1))
        place_M = torch.empty(tokens_CmT.shape[0] * tokens_CmT.shape[1], dtype=torch.int64)
        shape = (tokens_CmT.shape[0], tokens_CmT.shape[1])
        return Captions((shorter_nT[:, :multiple_of], longer_nT), place_M, shape)

    monkeypatch.setattr(contrastive, "bucketed", halves)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    # torch keeps no constants of one trace for another test.
    monkeypatch.setattr(sample, "_statistics", sample._statistics.__wrapped__)


def run_on_cuda(
    monkeypatch: pytest.MonkeyPatch, *, micro_batch_size: int | None, task: str = "Contrastive"
) -> StepResult:
    """One step with teacher, projections and clipping; the task is a loss of CLIP's, or another task."""
    with FakeTensorMode():
        made_for = stage(micro_batch_size=micro_batch_size, gradient_clip_norm=1.0)
        if task == "Classification":
            made_for = made_for.model_copy(update={"task": TaskName.CLASSIFICATION})
            model, teacher = (Classifier(classifier(width=size, image=16), device=CUDA) for size in (32, 16))
        elif task == "LanguageModel":
            made_for = made_for.model_copy(update={"task": TaskName.LANGUAGE_MODEL})
            model, teacher = (LanguageModel(language_model(width=size), device=CUDA) for size in (32, 16))
        elif task in image_towers():
            vision = {"name": task, "imageSize": 32, "normBatchSize": 4}
            adapted = OpenClipConfig.model_validate(
                config(16, 24).model_dump(by_alias=True) | {"vision": vision}
            )
            model, teacher = OpenClip(adapted, device=CUDA), Clip(config(32, 16), device=CUDA)
        else:
            loss = LossName(task.partition(",")[0])
            made_for = made_for.model_copy(
                update={"training": made_for.training.model_copy(update={"loss": loss})}
            )
            biased = {"logit_bias": loss is LossName.SIGMOID}
            model, teacher = (
                Clip(config(32, size, causal="," not in task).model_copy(update=biased), device=CUDA)
                for size in (24, 16)
            )
        projections = task_of(made_for).projections(model.config, teacher.config)
        assert projections is not None
        for name, parameter in list(projections.named_parameters()):
            setattr(projections, name, nn.Parameter(torch.empty(parameter.shape, device=CUDA)))
        named = list(model.named_parameters()) + list(projections.named_parameters())

        def backward(_scalar: Tensor) -> None:
            """Torch's engine wants a real GPU; it would leave gradients beside the parameters."""
            for _, parameter in named:
                fresh = torch.empty_like(parameter)
                parameter.grad = fresh if parameter.grad is None else parameter.grad + fresh

        monkeypatch.setattr(Tensor, "backward", backward)
        optimizer = AdamW(named, made_for.training)
        trained = TrainStep(model, teacher, projections, optimizer, made_for, CUDA)
        tokens = torch.empty(2 if task == "LanguageModel" else CAPTIONS, BATCH, CONTEXT, dtype=torch.int64)
        rows = Rows(torch.empty(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8), tokens)
        return trained.run(rows, 0)


@pytest.mark.parametrize(
    "task", ["Contrastive", "Contrastive, not causal", "Sigmoid", "Classification", "LanguageModel"]
)
@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_a_step_mixes_no_devices_and_never_waits_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, micro_batch_size: int | None, task: str
) -> None:
    result = run_on_cuda(monkeypatch, micro_batch_size=micro_batch_size, task=task)
    assert result.figures.device == CUDA


@pytest.mark.slow
@pytest.mark.xdist_group("open_clip")
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_step_of_an_image_tower_of_open_clips_does_neither(
    monkeypatch: pytest.MonkeyPatch, micro_batch_size: int | None
) -> None:
    """With BatchNorm."""
    result = run_on_cuda(monkeypatch, micro_batch_size=micro_batch_size, task="resnet10t")
    assert result.figures.device == CUDA


def test_a_step_that_waits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = contrastive.loss_and_feature_gradients

    def waits(features: Features, *others: object, **named: object) -> object:
        features.image.max().item()
        return original(features, *others, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(contrastive, "loss_and_feature_gradients", waits)
    with pytest.raises(DataDependentOutputException):
        run_on_cuda(monkeypatch, micro_batch_size=None)
