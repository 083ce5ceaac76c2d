"""What a chain costs, in multiply-accumulates (MACs), without building a model.

The accounting is that of the CoM-PT paper (arXiv 2604.12391), which it reproduces: a training step costs
three forward passes, learning from a teacher one forward pass of the teacher more. The image tower
runs once a sample, the text tower once a caption. Evaluation, loss and growth are left out: they are far
below a percent.

The figures are those of the models as published. The trainer computes less (it cuts texts after their last
token and the last block to what is read), which no figure here credits, so that chains compare with the
literature; `computed_macs` counts that, for the trainer, who alone knows how long the texts are. Patches that
`training.patchDropout` leaves out are part of the recipe, and are not counted.

What is counted are the products of the forward pass: patches, attention (also the masked half, which is
computed), projections, MLPs. Norms, activations, softmax and sums are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from modelchain.block import memoised
from modelchain.exactness import Change, growth_changes
from modelchain.families import AnyConfig, LockedTower, family_of
from modelchain.families.towers import image_tower_macs
from modelchain.resolved import BaselineRun, ResolvedChain, ResolvedDistillation, ResolvedStage
from modelchain.spec import DistillationScheduleType
from modelchain.tasks import task_of

MODELS = 256  # of which figures are kept
TRAINING_PASSES = 3  # forward; backward by the weights; backward by the activations


@dataclass(frozen=True)
class StagePlan:
    """One stage of a `Plan`. All MACs are of the stage as a whole unless the name says otherwise."""

    name: str
    model: str
    predecessor: str | None
    teacher: str | None  # who is asked in some step
    digest: str
    folder: str
    parameters: int
    macs_per_sample: int  # forward: the image once, the text once a caption
    epochs: int
    steps: int
    samples: int  # samples seen: steps x global batch
    teacher_samples: int  # of these, with the teacher's forward pass
    macs: int
    teacher_macs: int  # of these the teacher's
    alone_macs: int  # the same model trained alone, for the baseline's epochs
    growth: tuple[Change, ...] | None  # out of the predecessor; None: its first weights are new, or are given


@dataclass(frozen=True)
class BaselinePlan:
    """One model trained alone, so that the chain can be compared with it."""

    name: str  # of the stage that trains it; one of the chain's own costs nothing more
    stage: str  # the chain's stage whose model it is
    epochs: int
    macs: int
    budget_macs: int | None  # budget-matched: what the chain spends up to and with its stage
    own: bool  # a stage of the chain itself is this run


@dataclass(frozen=True)
class Plan:
    """What a chain costs, against training its models alone."""

    namespace: str
    name: str
    sample: str  # what of a sample is learnt: 5 captions
    baseline_epochs: int
    stages: tuple[StagePlan, ...]
    metric: str | None = None  # by which models are compared that are trained alone too
    baselines: tuple[BaselinePlan, ...] = ()

    @property
    def baseline_macs(self) -> int:
        """What the models trained alone cost beside the chain; each run once."""
        return sum({run.name: run.macs for run in self.baselines if not run.own}.values())

    @property
    def chain_macs(self) -> int:
        """All stages of the chain."""
        return sum(stage.macs for stage in self.stages)

    @property
    def largest(self) -> StagePlan:
        """The stage with the largest model, by its forward pass; the last of them."""
        return max(reversed(self.stages), key=lambda stage: stage.macs_per_sample)

    @property
    def family_macs(self) -> int:
        """Every model of the family trained alone."""
        return sum(stage.alone_macs for stage in self.stages)

    @property
    def cost_ratio(self) -> float:
        """The whole chain over the largest model alone: 0.28 means that all come for 28 % of the largest."""
        return self.chain_macs / self.largest.alone_macs

    @property
    def speedup(self) -> float:
        """The family, each model alone, over the chain."""
        return self.family_macs / self.chain_macs


def plan(chain: ResolvedChain) -> Plan:
    """The plan of a resolved chain."""
    return Plan(
        namespace=chain.chain.namespace,
        name=chain.chain.name,
        sample=" and ".join(dict.fromkeys(map(_sample, chain.stages))),
        baseline_epochs=chain.baseline_epochs,
        stages=tuple(_plan_stage(stage, chain.baseline_epochs) for stage in chain.stages),
        metric=chain.baseline.metric if chain.baseline else None,
        baselines=tuple(
            _plan_baseline(run, chain) for run in (chain.baseline.runs if chain.baseline else ())
        ),
    )


@memoised(MODELS)
def parameters(model: AnyConfig) -> int:
    """Trainable parameters, embeddings included."""
    return family_of(model).parameters(model)


@memoised(MODELS)
def forward_macs(model: AnyConfig, texts: int) -> int:
    """MACs of a forward pass over one sample with so many texts (captions)."""
    return family_of(model).forward_macs(model, texts)


def stage_macs(
    stage: ResolvedStage, *, until_step: int | None = None, teacher_steps: int | None = None
) -> int:
    """MACs of training a stage, or of its first `until_step` steps.

    `teacher_steps` is how many of these had the teacher's forward pass, where it was counted; without it the
    distillation's schedule says how many do, at most.
    """
    steps = stage.training.steps if until_step is None else min(until_step, stage.training.steps)
    captions = _texts(stage)
    macs = steps * _training_macs(stage)
    if stage.teacher is not None:
        taught = teacher_steps
        if taught is None:
            taught = scheduled_teacher_steps(stage.distillation, stage.training.steps, until_step=steps)
        macs += taught * forward_macs(stage.teacher.model_config_, captions)
    return macs * stage.training.global_batch_size


def computed_macs(stage: ResolvedStage, rows: int, texts: Mapping[int, int], *, taught: bool) -> int:
    """MACs that a training step computes for so many samples, by the accounting above but of real tokens alone.

    `texts` is how many texts of these lengths the text tower was handed, padding included; empty where there is none.
    What micro-batches and gradient checkpointing compute a second time is not counted.
    """
    training = stage.training
    image, rest = family_of(stage.model_config_).computed_macs(
        stage.model_config_, rows, texts, training.patch_dropout
    )
    macs = (1 if training.locked_tower is LockedTower.IMAGE else TRAINING_PASSES) * image
    macs += (1 if training.locked_tower is LockedTower.TEXT else TRAINING_PASSES) * rest
    if taught and stage.teacher is not None:
        teacher = stage.teacher.model_config_
        macs += sum(family_of(teacher).computed_macs(teacher, rows, texts, 0.0))
    return macs


def scheduled_teacher_steps(
    distillation: ResolvedDistillation, steps: int, *, until_step: int | None = None
) -> int:
    """How many of the first `until_step` steps of `steps` run the teacher: those with a weight above 0.

    The weight of a linear schedule is `weight` at step 0 and `endWeight` from step until * steps on.
    """
    last = steps if until_step is None else min(until_step, steps)
    schedule = distillation.schedule
    if schedule.type is DistillationScheduleType.CONSTANT:
        return last if distillation.weight > 0 else 0
    if schedule.end_weight:
        return last if distillation.weight > 0 else max(0, last - 1)  # a line that rises from 0
    if distillation.weight == 0:
        return 0
    end = steps * (1.0 if schedule.until is None else schedule.until)
    taught = math.ceil(end)
    if (taught - 1) / end >= 1:  # `end` lies above a whole number by a rounding error only
        taught -= 1
    return min(last, taught)


def _texts(stage: ResolvedStage) -> int:
    return len(task_of(stage.task).text_keys(stage.data))


def _sample(stage: ResolvedStage) -> str:
    return task_of(stage.task).sample(stage.data, stage.model_config_)


def _student_macs(stage: ResolvedStage) -> int:
    """MACs of the student's forward pass over one sample in training: dropped patches are embedded alone."""
    whole, dropout = forward_macs(stage.model_config_, _texts(stage)), stage.training.patch_dropout
    vision = stage.model_config_.patch_tower
    if vision is None or not dropout:
        return whole
    return whole - image_tower_macs(vision) + image_tower_macs(vision, dropout)


def _training_macs(stage: ResolvedStage) -> int:
    """MACs of a step for one sample, without the teacher: a locked tower is not gone through backwards."""
    macs = TRAINING_PASSES * _student_macs(stage)
    tower = stage.training.locked_tower
    if tower is None:
        return macs
    _, locked = family_of(stage.model_config_).of_tower(stage.model_config_, tower, _texts(stage))
    if tower is LockedTower.IMAGE:
        locked -= forward_macs(stage.model_config_, _texts(stage)) - _student_macs(stage)  # dropped patches
    return macs - (TRAINING_PASSES - 1) * locked


def _plan_stage(stage: ResolvedStage, baseline_epochs: int) -> StagePlan:
    training = stage.training
    samples = training.steps * training.global_batch_size
    taught = 0 if stage.teacher is None else scheduled_teacher_steps(stage.distillation, training.steps)
    student, total = _training_macs(stage), stage_macs(stage)
    return StagePlan(
        name=stage.name,
        model=stage.model,
        predecessor=stage.predecessor and stage.predecessor.name,
        teacher=stage.teacher.name if stage.teacher and taught else None,
        digest=stage.digest,
        folder=stage.folder,
        parameters=parameters(stage.model_config_),
        macs_per_sample=forward_macs(stage.model_config_, _texts(stage)),
        epochs=training.epochs,
        steps=training.steps,
        samples=samples,
        teacher_samples=taught * training.global_batch_size,
        macs=total,
        teacher_macs=total - student * samples,
        alone_macs=(
            # Alone it has no weights of a predecessor that could be locked.
            TRAINING_PASSES * _student_macs(stage) if stage.predecessor else student
        )
        * baseline_epochs
        * training.steps_per_epoch
        * training.global_batch_size,
        growth=_growth(stage),
    )


def _growth(stage: ResolvedStage) -> tuple[Change, ...] | None:
    if stage.predecessor is None:
        return None
    return growth_changes(stage.predecessor.model_config_, stage.model_config_, stage.expansion)


def _plan_baseline(run: BaselineRun, chain: ResolvedChain) -> BaselinePlan:
    stage = chain.stage(run.run)
    return BaselinePlan(
        name=run.run,
        stage=run.stage,
        epochs=stage.training.epochs,
        macs=stage_macs(stage),
        budget_macs=run.budget_macs,
        own=stage in chain.stages,
    )
