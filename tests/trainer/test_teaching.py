"""Distillation ends when the student is better than its teacher, at a step that nothing but the losses decides."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from modelchain.resolved import ResolvedDistillation, ResolvedStage
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.step import Teaching
from tests.trainer.test_step import BATCH, WEIGHT, batch, config, stage, train_step


def _surpassing(window: int | None) -> ResolvedStage:
    return stage(distillation=ResolvedDistillation(weight=WEIGHT, surpass_window_steps=window))


def _task_losses(model: Clip, teacher: Clip, step: int) -> tuple[float, float]:
    """The student's and its teacher's task loss on the batch of a step, by the definition."""
    rows, losses = batch(step), []
    for one in (model, teacher):
        with torch.no_grad():
            image = one.encode_image(normalize(rows.images, torch.float64))
            texts = [one.encode_text(tokens) for tokens in rows.tokens]
            logits = [one.logit_scale.exp() * image @ text.T for text in texts]
            target = torch.arange(BATCH)
            both = [functional.cross_entropy(x, target) for each in logits for x in (each, each.T)]
            losses.append(float(torch.stack(both).mean()))
    return losses[0], losses[1]


def _reference(window: int, steps: int) -> list[bool]:
    """Whether the teacher runs at each step, by hand: windows one after the other, the mean of each."""
    trained, model, _ = train_step(_surpassing(None), dtype=torch.float64, teacher=_weak_teacher())
    taught, margins, runs = _weak_teacher(), [], []
    for step in range(steps):
        if len(margins) == window and sum(margins) < 0:
            runs.append(False)
            continue
        margins = [] if len(margins) == window else margins
        student, teacher = _task_losses(model, taught, step)
        margins.append(student - teacher)
        runs.append(True)
        trained.run(batch(step), step)
    return runs


def _weak_teacher() -> Clip:
    """One that a student is better than after a few steps."""
    return build_model(config(32, 16), seed=2).double()


@pytest.mark.parametrize("window", [1, 2, 3])
def test_distillation_ends_with_the_window_in_which_the_student_is_better(window: int) -> None:
    trained, _, _ = train_step(_surpassing(window), dtype=torch.float64, teacher=_weak_teacher())
    readings = [trained.run(batch(step), step).read() for step in range(12)]
    runs = _reference(window, 12)
    assert True in runs
    assert False in runs, "the student never becomes better: nothing is tested"
    assert [reading.distillation_weight for reading in readings] == [WEIGHT * run for run in runs]
    assert [reading.loss["distillation"] > 0 for reading in readings] == runs
    assert trained.teacher_steps == sum(runs)
    assert sum(runs) % window == 0
    assert trained.teaching() == Teaching(sum(runs), 0.0, surpassed=True)


def test_a_teacher_that_stays_better_goes_on_teaching() -> None:
    student = build_model(config(32, 24), seed=1).double()
    trained, _, _ = train_step(
        stage(learning_rate=1e-12, distillation=ResolvedDistillation(weight=WEIGHT, surpass_window_steps=2)),
        dtype=torch.float64,
        teacher=_better_than(student, batches=6),
        teacher_size=24,
    )
    for step in range(6):
        assert trained.run(batch(step), step).read().distillation_weight == WEIGHT
    assert trained.teaching().steps == 6
    assert not trained.teaching().surpassed


def _better_than(student: Clip, *, batches: int) -> Clip:
    """The student with the logit scale of a random model turned down: its losses are lower."""
    teacher = build_model(config(32, 24), seed=1).double()
    with torch.no_grad():
        teacher.logit_scale.fill_(0.0)
    for step in range(batches):
        losses = _task_losses(student, teacher, step)
        assert losses[0] > losses[1]
    return teacher


def test_resumed_within_a_window_distillation_ends_at_the_same_step() -> None:
    window = 3
    calm, _, _ = train_step(_surpassing(window), dtype=torch.float64, teacher=_weak_teacher())
    expected = [calm.run(batch(step), step).read() for step in range(12)]
    for at in (2, 4, 11):
        before, model, _ = train_step(_surpassing(window), dtype=torch.float64, teacher=_weak_teacher())
        for step in range(at):
            before.run(batch(step), step)
        after, again, _ = train_step(
            _surpassing(window), dtype=torch.float64, teacher=_weak_teacher(), teaching=before.teaching()
        )
        again.load_state_dict(model.state_dict())
        after.load_state_dict(before.state_dict())
        assert [after.run(batch(step), step).read() for step in range(at, 12)] == expected[at:]
        assert after.teaching() == calm.teaching()


def test_micro_batches_judge_the_teacher_alike() -> None:
    def judged(size: int | None) -> float:
        nine = ResolvedDistillation(weight=WEIGHT, surpass_window_steps=9)
        trained, _, _ = train_step(stage(distillation=nine, micro_batch_size=size), dtype=torch.float64)
        for step in range(3):
            trained.run(batch(step), step)
        return trained.teaching().margin

    whole = judged(None)
    assert whole != 0
    assert judged(3) == pytest.approx(whole, rel=1e-9)
