"""Both programs' training steps on batches in memory, each as its program runs it.

Ours is `modelchain_trainer.step.TrainStep`. open_clip's is `train_one_epoch` of its training program, on a loader
that hands out batches from memory, with the optimizer, TF32 and compilation that its `main` chooses. It knows no
second caption; with several, its model and its loss are put together here: the mean of the loss over the captions.
Under compilation its teacher is compiled too, which its program leaves out and ours does.
"""

from __future__ import annotations

import copy
import gc
import math
import sys
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.gpu.flops import step_flops
from benchmarks.gpu.settings import Setting
from benchmarks.gpu.synthetic import Rows, batches, described
from modelchain.families import ModelConfig
from modelchain.resolved import (
    ChainReference,
    ResolvedData,
    ResolvedStage,
    ResolvedStore,
    ResolvedTraining,
    StageReference,
)
from modelchain_trainer.distillation import build_projections
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.open_clip_config import to_open_clip
from modelchain_trainer.optimizer import AdamW
from modelchain_trainer.step import TrainStep
from modelchain_trainer.tasks.contrastive import ContrastiveObjective

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-4, (0.9, 0.98), 1e-6, 0.1


class StepRunner(Protocol):
    """One program in one setting."""

    captions: dict[str, object]  # their lengths
    flops_per_sample: float  # of a step, of the tokens it computes

    def run(self, steps: int) -> float:
        """So many steps on; the loss of the last one. Returns when the device is done."""
        ...


class ModelChainSteps:
    """Our training step."""

    def __init__(
        self,
        setting: Setting,
        device: torch.device,
        *,
        micro_batch_size: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        if device.type == "cuda":  # as modelchain_trainer.attempt
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        config, teacher_config = setting.config(), setting.teacher_config()
        stage = _stage(setting, micro_batch_size)
        model = _new(config, 1).to(device)
        model.set_gradient_checkpointing(gradient_checkpointing)
        teacher = None if teacher_config is None else _new(teacher_config, 2).to(device)
        named = list(model.named_parameters())
        projections = (
            None if teacher_config is None else build_projections(config.embed_dim, teacher_config.embed_dim)
        )
        if projections is not None:
            projections.to(device)
            named += [(f"projections.{name}", p) for name, p in projections.named_parameters()]
        self._step = TrainStep(model, teacher, projections, AdamW(named, stage.training), stage, device)
        self._batches = batches(setting, pinned=device.type == "cuda")
        self._done = 0
        texts = self._texts_computed()
        tokens = sum(length * many for length, many in texts.items())
        self.captions = described(self._batches) | {"tokensComputed": tokens / sum(texts.values())}
        self.flops_per_sample = step_flops(config, teacher_config, texts, pooled_last_block=True)

    def _texts_computed(self) -> dict[int, float]:
        """Texts a sample by the tokens that the tower computes of each, over all batches."""
        objective = self._step.objective
        assert isinstance(objective, ContrastiveObjective)
        texts: Counter[int] = Counter()
        for batch in self._batches:
            for _, captions, _ in objective.micro_batches(batch):
                texts.update({bucket.shape[1]: bucket.shape[0] for bucket in captions.buckets})
        samples = sum(batch.images.shape[0] for batch in self._batches)
        return {length: many / samples for length, many in texts.items()}

    def run(self, steps: int) -> float:
        """Steps that read nothing back before the last one."""
        result = None
        for _ in range(steps):
            result = self._step.run(self._batches[self._done % len(self._batches)], self._done)
            self._done += 1
        assert result is not None
        return result.read().loss["total"]


class OpenClipSteps:
    """open_clip's training step."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        from open_clip import create_loss
        from open_clip_train.params import parse_args

        if device.type == "cuda":  # as its main
            torch.backends.cuda.matmul.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.deterministic = False
        config, teacher_config = setting.config(), setting.teacher_config()
        flags = [
            "--batch-size",
            str(setting.batch_size),
            "--device",
            device.type,
            "--log-every-n-steps",
            "1000000",
        ]
        flags += ["--precision", "amp_bf16" if setting.precision == "bf16" else "fp32"]
        self._args = parse_args(flags)
        for name, value in {
            "distributed": False,
            "rank": 0,
            "local_rank": 0,
            "world_size": 1,
            "wandb": False,
        }.items():
            setattr(self._args, name, value)
        self._args.distill = teacher_config is not None
        self._loss = create_loss(self._args)
        self._model: Any = _open_clip_model(config, 1, device).train()
        self._teacher: Any = None if teacher_config is None else _open_clip_model(teacher_config, 2, device)
        self._optimizer = _open_clip_optimizer(self._model)
        if setting.compile:
            self._model = torch.compile(self._model)
            self._teacher = None if self._teacher is None else torch.compile(self._teacher)
        self._device = device
        rows = batches(setting, pinned=False)
        self.captions = described(rows)
        self._several = setting.captions > 1
        self._loader = _Loader([_as_open_clip_loads(batch, device) for batch in rows], several=self._several)
        context = {config.text.context_length: float(setting.captions)}
        self.flops_per_sample = step_flops(config, teacher_config, context, pooled_last_block=False)

    def run(self, steps: int) -> float:
        """As many batches as an epoch of its program would have."""
        self._loader.num_batches = steps
        loss = self._run_several() if self._several else self._run_program()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return loss

    def _run_program(self) -> float:
        from open_clip_train.train import train_one_epoch

        seen: list[Tensor] = []

        def loss(**features: Any) -> dict[str, Tensor]:
            losses = self._loss(**features)
            seen[:] = list(losses.values())
            return losses

        data = {"train": SimpleNamespace(dataloader=self._loader, set_epoch=lambda _epoch: None)}
        train_one_epoch(
            self._model, data, loss, 0, self._optimizer, None, lambda _step: None, self._teacher, self._args
        )
        return float(sum(part.detach().float() for part in seen))

    def _run_several(self) -> float:
        """`train_one_epoch`'s steps, with the mean of the loss over the captions."""
        from open_clip_train.precision import get_autocast
        from open_clip_train.train import backward, unwrap_model

        autocast = get_autocast(self._args.precision, device_type=self._device.type)
        total = torch.zeros(())
        for images, texts_CbT in self._loader:
            images = images.to(self._device, non_blocking=True)
            texts_CbT = texts_CbT.to(self._device, non_blocking=True)
            self._optimizer.zero_grad()
            with autocast():
                # The model takes as many texts as it likes; images and texts meet in the loss only.
                out = self._model(images, texts_CbT.flatten(0, 1))
                texts = out["text_features"].unflatten(0, texts_CbT.shape[:2])
                total = self._mean_loss(out, texts, self._taught(images, texts_CbT))
            backward(total, None)
            self._optimizer.step()
            with torch.no_grad():
                unwrap_model(self._model).logit_scale.clamp_(0, math.log(100))
        return total.item()

    def _taught(self, images: Tensor, texts_CbT: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """The teacher's features of images and of texts [C, b, E], and its scale."""
        if self._teacher is None:
            return None
        with torch.no_grad():
            out = self._teacher(images, texts_CbT.flatten(0, 1))
        return (
            out["image_features"],
            out["text_features"].unflatten(0, texts_CbT.shape[:2]),
            out["logit_scale"],
        )

    def _mean_loss(
        self, out: dict[str, Tensor], texts: Tensor, taught: tuple[Tensor, Tensor, Tensor] | None
    ) -> Tensor:
        total = torch.zeros(())
        for number, text in enumerate(texts):
            if taught is None:
                total = total + self._loss(out["image_features"], text, out["logit_scale"])
            else:
                image, their_texts, scale = taught
                total = total + sum(
                    self._loss(
                        out["image_features"], text, out["logit_scale"], image, their_texts[number], scale
                    )
                )
        return total / len(texts)


class _Loader:
    """Hands out batches from memory; `train_one_epoch` reads its sizes."""

    def __init__(self, rows: list[Rows], *, several: bool) -> None:
        self.num_batches = 0
        self._rows = rows
        self._several = several
        self._next = 0

    @property
    def num_samples(self) -> int:
        """Of the epoch."""
        return self.num_batches * len(self._rows[0].images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.num_batches):
            batch = self._rows[self._next % len(self._rows)]
            self._next += 1
            yield batch.images, batch.tokens if self._several else batch.tokens[0]


def make(program: str, setting: Setting, device: torch.device) -> StepRunner:
    """`modelchain` or `open_clip`."""
    return ModelChainSteps(setting, device) if program == "modelchain" else OpenClipSteps(setting, device)


def release(device: torch.device) -> None:
    """Give memory that nothing uses back to the device, for other processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_compiled() -> None:
    """Drop what torch.compile keeps of models that are gone."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # noqa: SLF001


_built: dict[tuple[str, int], Clip] = {}


def _new(config: ModelConfig, seed: int) -> Clip:
    """A new model on the CPU. Drawing its numbers takes seconds, which is done once in a process."""
    key = (config.model_dump_json(), seed)
    if key not in _built:
        _built[key] = build_model(config, seed=seed)
    return copy.deepcopy(_built[key])


def _stage(setting: Setting, micro_batch_size: int | None) -> ResolvedStage:
    teacher = setting.teacher_config()
    training = ResolvedTraining.model_validate(
        {
            "epochs": 1,
            "global_batch_size": setting.batch_size,
            "micro_batch_size": micro_batch_size,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 10,
            "weight_decay": WEIGHT_DECAY,
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "epsilon": EPSILON,
            "precision": setting.precision.capitalize(),
            "compile": setting.compile,
            "checkpoint_every_steps": 10**6,
            "steps_per_epoch": 10**6,
            "steps": 10**6,
        }
    )
    teacher_stage = None
    if teacher is not None:
        teacher_stage = StageReference(
            name="teacher", digest="1" * 64, folder="stages/teacher", modelConfig=teacher
        )
    return ResolvedStage(
        chain=ChainReference(namespace="default", name="benchmark", uid="1"),
        name="student",
        index=1,
        digest="0" * 64,
        folder="stages/student",
        model=setting.model,
        modelConfig=setting.config(),
        teacher=teacher_stage,
        store=ResolvedStore(uri="store"),
        data=ResolvedData(shards=("none.tar",), samples=setting.batch_size),
        training=training,
    )


def _open_clip_model(config: ModelConfig, seed: int, device: torch.device) -> nn.Module:
    from open_clip.model import CLIP

    described: Any = to_open_clip(config)["model_cfg"]
    model = CLIP(**described, output_dict=True)
    model.load_state_dict(_new(config, seed).state_dict())
    return model.to(device)


def _open_clip_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The parameter groups and arguments of its main; torch picks the implementation, as there."""
    named = list(model.named_parameters())
    plain = [p for name, p in named if p.ndim < 2 or "ln" in name or "bias" in name or "logit_scale" in name]
    others = {id(p) for p in plain}
    return torch.optim.AdamW(
        [
            {"params": plain, "weight_decay": 0.0},
            {"params": [p for _, p in named if id(p) not in others], "weight_decay": WEIGHT_DECAY},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
    )


def _as_open_clip_loads(batch: Rows, device: torch.device) -> Rows:
    """Its loader's batches: normalised fp32 images, pinned, and all tokens up to the context."""
    from modelchain_trainer.data.sample import normalize

    images = normalize(batch.images, torch.float32)
    return (
        Rows(images.pin_memory(), batch.tokens.pin_memory())
        if device.type == "cuda"
        else Rows(images, batch.tokens)
    )
