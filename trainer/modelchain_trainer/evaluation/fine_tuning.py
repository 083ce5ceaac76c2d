"""What a model's image tower comes to on another data set after a short training (fine-tuning).

The recipe: a linear head begins as the linear probe (Kumar et al., arXiv 2202.10054), then tower and head learn
together by cross-entropy with AdamW (beta 0.9 and 0.999, epsilon 1e-8, gradients clipped to a norm of 1). The rate
rises over a tenth of the steps to 3e-5 and falls to 0 along a half cosine; 10 epochs, batches of 128, weight decay 0.1,
images with the random crops of training. `FineTuneSpec` changes the numbers. It counts as no MACs of the stage.

Shapes: m rows of a micro-batch, D features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from modelchain.resolve import largest_divisor
from modelchain.resolved import ResolvedStage, ResolvedTraining
from modelchain.spec import FOUND_BY_TRAINER, EvaluationSpec, FineTuneSpec
from modelchain_trainer.data.evaluation_data import MAX_CORRUPT_FRACTION
from modelchain_trainer.data.loader import TrainingLoader
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.data.text_field import LabelField
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.evaluation.evaluation_set import Opening, Run
from modelchain_trainer.evaluation.image_features import ImageEncoder, copied_encoder, image_encoder
from modelchain_trainer.evaluation.linear_probe import (
    TrainAndTest,
    fit_probe,
    labelled,
    open_both,
    shares_of_hits,
    summary,
)
from modelchain_trainer.evaluation.logistic_regression import LinearClassifier
from modelchain_trainer.model.family import AnyModel
from modelchain_trainer.model.layers import Linear
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.schedule import learning_rate
from modelchain_trainer.tasks.local_loss import rows_of
from modelchain_trainer.tasks.task import StepBatch

EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 10, 128, 3e-5, 0.1
CLIP_NORM = 1.0
MICRO_BATCH = 16  # where the stage leaves it open: small enough wherever the stage itself could be trained


@dataclass(frozen=True)
class FineTuneSet(TrainAndTest):
    """One that a copy of the image tower is trained on further."""

    stage: ResolvedStage

    @classmethod
    def open(cls, spec: EvaluationSpec, opening: Opening) -> FineTuneSet:
        """The samples of both parts. Raises as `linear_probe.open_both`."""
        return cls(spec, *open_both(spec, opening), opening.stage)

    def measure(self, model: AnyModel, run: Run) -> dict[str, float]:
        """The metrics of a linear probe, after fine-tuning. `model` stays as it is."""
        hits: list[tuple[float, float]] = []
        device = next(model.parameters()).device
        train, _, classes = self.features(image_encoder(model), run)
        for seed in range(self.spec.seeds or 1):
            checkpointing = self.stage.training.gradient_checkpointing
            encoder = copied_encoder(model, gradient_checkpointing=checkpointing)
            probe = fit_probe(train, classes, seed=seed, on_progress=run.on_progress)
            head = _head(probe, run.group)
            training = self.training(seed)
            with torch.enable_grad():
                _train(encoder, head, training, self.loader(training, run.group, head), run)
            test = labelled(encoder, self.source, f"{self.spec.name}: data", run)
            hits.append(shares_of_hits(head(test.features), test.labels))
        return summary(hits, classes, run.group, device=device)

    def training(self, seed: int) -> ResolvedTraining:
        """The recipe, in the words of a stage's training."""
        recipe, stage = self.spec.fine_tune or FineTuneSpec(), self.stage.training
        samples = len(self.train_source.index)
        epochs, batch = recipe.epochs or EPOCHS, min(recipe.batch_size or BATCH_SIZE, samples)
        steps_per_epoch = samples // batch
        found_by_trainer = stage.micro_batch_size == FOUND_BY_TRAINER
        return ResolvedTraining(
            epochs=epochs,
            global_batch_size=batch,
            micro_batch_size=MICRO_BATCH if found_by_trainer else stage.micro_batch_size,
            learning_rate=recipe.learning_rate or LEARNING_RATE,
            minimum_learning_rate=0.0,
            warmup_steps=epochs * steps_per_epoch // 10,
            weight_decay=WEIGHT_DECAY if recipe.weight_decay is None else recipe.weight_decay,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            seed=seed,
            checkpoint_every_steps=epochs * steps_per_epoch,
            data_workers=stage.data_workers,
            steps_per_epoch=steps_per_epoch,
            steps=epochs * steps_per_epoch,
        )

    def loader(self, training: ResolvedTraining, group: Group, head: nn.Linear) -> TrainingLoader | None:
        """This rank's rows, with the classes of `head`. A batch is shared by as many ranks as divide it; the others
        have none, and None.
        """
        readers = largest_divisor(training.global_batch_size, group.world_size)
        if group.rank >= readers:
            return None
        data = self.stage.data.model_copy(
            update={"sources": (), "max_corrupt_fraction": MAX_CORRUPT_FRACTION}
        )
        return TrainingLoader(
            self.train_source.index,
            self.stage.model_copy(update={"training": training, "data": data}),
            rank=group.rank,
            world_size=readers,
            first_step=0,
            field=LabelField(head.out_features),
            processes=head.weight.device.type == "cuda",
        )


def _head(probe: LinearClassifier, group: Group) -> nn.Linear:
    """The probe as a layer, rank 0's on every rank."""
    classes, size = probe.weight.shape
    head = Linear(size, classes, device=probe.weight.device, dtype=probe.weight.dtype)
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
        for parameter in head.parameters():
            group.broadcast(parameter.data)
    return head


def _train(
    encoder: ImageEncoder,
    head: nn.Linear,
    training: ResolvedTraining,
    loader: TrainingLoader | None,
    run: Run,
) -> None:
    """Train both in place."""
    named = [*encoder.named_parameters(), *((f"head.{name}", p) for name, p in head.named_parameters())]
    optimizer = AdamW(named, training)
    parameters = optimizer.parameters
    try:
        for step in range(training.steps):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            if loader is not None:
                _add_gradients(encoder, head, next(loader), training, run)
            _sum_gradients(parameters, run.group)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            optimizer.step(
                learning_rate(training, step),
                divisor=(norm / CLIP_NORM).clamp(min=1).float(),
                skip=(~norm.isfinite()).float(),
            )
            run.on_progress()
    finally:
        if loader is not None:
            loader.close()


def _add_gradients(
    encoder: ImageEncoder, head: nn.Linear, batch: StepBatch, training: ResolvedTraining, run: Run
) -> None:
    device, dtype = head.weight.device, head.weight.dtype
    images, labels = batch.images.to(device), batch.tokens[0, :, 0].to(device)
    for rows in rows_of(batch, training.micro_batch_size):
        with run.autocast(device):
            features_mD = encoder(normalize(images[rows], dtype))
        loss = functional.cross_entropy(head(features_mD), labels[rows], reduction="sum")
        (loss / training.global_batch_size).backward()


def _sum_gradients(parameters: list[nn.Parameter], group: Group) -> None:
    """Over all ranks, in one piece."""
    if group.alone:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = group.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
