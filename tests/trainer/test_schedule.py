import math

import pytest

from modelchain.resolved import ResolvedDistillation, ResolvedTraining
from modelchain.spec import (
    DistillationSchedule,
    DistillationScheduleType,
    LearningRateSchedule,
    LearningRateScheduleType,
)
from modelchain_trainer.schedule import distillation_weight, learning_rate


def training(*, warmup_steps: int, steps: int, decay: float | None = None) -> ResolvedTraining:
    """With `decay`, a WarmupStableDecay schedule."""
    return ResolvedTraining(
        epochs=1,
        learning_rate=1e-3,
        minimum_learning_rate=1e-5,
        warmup_steps=warmup_steps,
        schedule=LearningRateSchedule()
        if decay is None
        else LearningRateSchedule(type=LearningRateScheduleType.WARMUP_STABLE_DECAY, decay_fraction=decay),
        checkpoint_every_steps=10,
        steps_per_epoch=steps,
        steps=steps,
    )


def test_learning_rate_rises_linearly_to_its_peak_at_the_last_step_of_the_warmup() -> None:
    rates = [learning_rate(training(warmup_steps=4, steps=100), step) for step in range(4)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])


def test_learning_rate_falls_along_a_half_cosine_to_its_minimum_at_the_last_step() -> None:
    block = training(warmup_steps=4, steps=104)
    assert learning_rate(block, 53) == pytest.approx((1e-3 + 1e-5) / 2)  # half way from step 3 to step 103
    assert learning_rate(block, 103) == pytest.approx(1e-5, rel=1e-12)
    assert learning_rate(block, 28) == pytest.approx(1e-5 + 0.99e-3 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_learning_rate_without_warmup_never_exceeds_its_peak_or_leaves_its_minimum() -> None:
    block = training(warmup_steps=0, steps=7)
    rates = [learning_rate(block, step) for step in range(7)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] < 1e-3
    assert rates[-1] == pytest.approx(1e-5)


@pytest.mark.parametrize("steps", [1, 5])
def test_learning_rate_of_a_stage_that_is_all_warmup(steps: int) -> None:
    assert learning_rate(training(warmup_steps=steps, steps=steps), steps - 1) == pytest.approx(1e-3)


def test_learning_rate_is_constant_over_the_trunk_and_then_falls_along_a_line_to_its_minimum() -> None:
    block = training(warmup_steps=2, steps=10, decay=0.4)
    assert block.trunk_steps == 6
    rates = [learning_rate(block, step) for step in range(10)]
    fall = (1e-3 - 1e-5) / 4
    assert rates == pytest.approx([0.5e-3] + [1e-3] * 5 + [1e-3 - fall * step for step in (1, 2, 3, 4)])
    assert rates[-1] == pytest.approx(1e-5)


def test_learning_rate_that_decays_all_the_time_falls_along_a_line_and_leaves_no_trunk() -> None:
    block = training(warmup_steps=2, steps=6, decay=1.0)
    assert block.trunk_steps is None
    rates = [learning_rate(block, step) for step in range(6)]
    fall = (1e-3 - 1e-5) / 4
    assert rates == pytest.approx([0.5e-3, 1e-3] + [1e-3 - fall * step for step in (1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("steps", "decay", "trunk"), [(1, 0.2, None), (2, 0.2, 1), (0, 0.2, None), (10, 0.01, 9)]
)
def test_at_least_the_last_step_decays(steps: int, decay: float, trunk: int | None) -> None:
    assert training(warmup_steps=0, steps=steps, decay=decay).trunk_steps == trunk


def test_constant_distillation_weight_stays() -> None:
    block = ResolvedDistillation(weight=0.98)
    assert [distillation_weight(block, step, 10) for step in (0, 5, 9)] == [0.98] * 3


def test_linear_distillation_weight_reaches_zero_at_its_share_of_the_stage_and_stays_there() -> None:
    block = ResolvedDistillation(
        weight=2.0, schedule=DistillationSchedule(type=DistillationScheduleType.LINEAR, until=0.5)
    )
    weights = [distillation_weight(block, step, 8) for step in range(8)]
    assert weights == pytest.approx([2.0, 1.5, 1.0, 0.5, 0, 0, 0, 0])
    assert weights[4:] == [0.0] * 4  # exactly: the teacher's forward is skipped there


def test_linear_distillation_weight_may_end_above_zero_or_rise() -> None:
    schedule = DistillationSchedule(type=DistillationScheduleType.LINEAR, until=0.5, end_weight=1.0)
    falling = ResolvedDistillation(weight=3.0, schedule=schedule)
    rising = ResolvedDistillation(weight=0.0, schedule=schedule)
    assert [distillation_weight(falling, step, 4) for step in range(4)] == pytest.approx([3.0, 2.0, 1.0, 1.0])
    assert [distillation_weight(rising, step, 4) for step in range(4)] == pytest.approx([0.0, 0.5, 1.0, 1.0])


def test_linear_distillation_weight_runs_over_the_whole_stage_by_default() -> None:
    block = ResolvedDistillation(
        weight=1.0, schedule=DistillationSchedule(type=DistillationScheduleType.LINEAR)
    )
    assert [distillation_weight(block, step, 4) for step in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])
