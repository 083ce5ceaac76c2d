"""A training step on a device, on a model of shapes that the fused kernels of a GPU take: heads 64 wide."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain.resolved import (
    ChainReference,
    ResolvedData,
    ResolvedDistillation,
    ResolvedStage,
    ResolvedStore,
    ResolvedTraining,
)
from modelchain_trainer.distillation import build_projections
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.step import TrainStep

CPU = torch.device("cpu")
IMAGE_SIZE, CONTEXT, CAPTIONS, BATCH = 64, 77, 2, 24
EMBEDDING, TEACHER_EMBEDDING = 96, 64


@dataclass(frozen=True)
class Rows:
    images: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Trained:
    """A step, and the parameters that it trains by name."""

    step: TrainStep
    model: Clip
    named: dict[str, nn.Parameter]

    def gradients(self) -> dict[str, Tensor]:
        return {
            name: parameter.grad.detach().cpu().clone()
            for name, parameter in self.named.items()
            if parameter.grad is not None
        }

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.named.items()}


def config(*, width: int = 128, layers: int = 3, embed_dim: int = EMBEDDING) -> ModelConfig:
    return ModelConfig(
        embed_dim=embed_dim,
        vision=VisionSpec(image_size=IMAGE_SIZE, patch_size=16, width=width, layers=layers, head_width=64),
        text=TextSpec(context_length=CONTEXT, width=width, layers=layers, heads=width // 64),
    )


def stage(**training: object) -> ResolvedStage:
    block = ResolvedTraining.model_validate(
        {
            "epochs": 1,
            "global_batch_size": BATCH,
            "warmup_steps": 1,
            "checkpoint_every_steps": 10,
            "steps_per_epoch": 20,
            "steps": 20,
            **training,
        }
    )
    return ResolvedStage(
        chain=ChainReference(namespace="default", name="test", uid="1"),
        name="second",
        index=1,
        digest="0" * 64,
        folder="stages/second-0",
        model="second",
        modelConfig=config(),
        store=ResolvedStore(uri="store"),
        data=ResolvedData(shards=("a.tar",), samples=480),
        training=block,
        distillation=ResolvedDistillation(weight=1.0),
    )


def batch(number: int, *, longest: int = 40) -> Rows:
    """Captions of 3 to `longest` tokens, one of them as long as that."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator, dtype=torch.uint8)
    tokens = torch.zeros(CAPTIONS, BATCH, CONTEXT, dtype=torch.int64)
    lengths = torch.randint(3, longest + 1, (CAPTIONS * BATCH,), generator=generator)
    lengths[0] = longest
    for row, length in zip(tokens.view(-1, CONTEXT), lengths.tolist(), strict=True):
        row[:length] = torch.randint(1, 49000, (length,), generator=generator)
        row[0], row[length - 1] = 49406, 49407
    return Rows(images, tokens)


def train_step(
    device: torch.device, made_for: ResolvedStage, *, teacher: Clip | None = None, group: Group | None = None
) -> Trained:
    """A step on a new model, with a teacher of another embedding unless one is given."""
    model = build_model(config(), seed=1).to(device)
    teacher = teacher or build_model(config(embed_dim=TEACHER_EMBEDDING, layers=2), seed=2)
    projections = build_projections(EMBEDDING, teacher.config.embed_dim)
    named = dict(model.named_parameters())
    if projections is not None:
        projections.to(device)
        named |= {f"projections.{name}": parameter for name, parameter in projections.named_parameters()}
    optimizer = AdamW(named.items(), made_for.training)
    step = TrainStep(model, teacher.to(device), projections, optimizer, made_for, device, group)
    return Trained(step, model, named)


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest error of a tensor relative to its own norm; biases of keys have no gradient but rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.norm()) for tensor in expected.values())
    return max(
        float((found[name].double() - tensor.double()).norm()) / max(float(tensor.norm()), 1e-3 * largest)
        for name, tensor in expected.items()
    )
