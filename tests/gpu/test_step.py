"""The training step on a GPU against the CPU's, in both precisions, split up, compiled."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modelchain.spec import Precision
from modelchain_trainer import micro_batch
from modelchain_trainer.micro_batch import Trial
from modelchain_trainer.model.build import build_model
from modelchain_trainer.step import MOST_SKIPPED_STEPS, DivergedError
from tests.gpu.steps import CPU, Trained, batch, config, relative_error, stage, train_step

pytestmark = pytest.mark.gpu

RecordProperty = Callable[[str, object], None]


@pytest.mark.parametrize("micro_batch_size", [None, 10])
def test_fp32_gives_the_losses_and_gradients_of_the_cpu(
    device: torch.device, micro_batch_size: int | None, record_property: RecordProperty
) -> None:
    expected = train_step(CPU, stage())
    found = train_step(device, stage(micro_batch_size=micro_batch_size))
    for step in range(3):
        expected_reading = expected.step.run(batch(step), step).read()
        reading = found.step.run(batch(step), step).read()
        if step == 0:  # fp32's rounding grows through AdamW's division by tiny second moments
            error = relative_error(found.gradients(), expected.gradients())
            record_property("gradientError", error)
            assert error < 1e-4
            assert reading.gradient_norm == pytest.approx(expected_reading.gradient_norm, rel=1e-4)
        assert reading.loss == pytest.approx(expected_reading.loss, rel=1e-5 if step == 0 else 1e-3)
        assert reading.logit_scale == pytest.approx(expected_reading.logit_scale, rel=1e-5)


def test_bf16_is_finite_and_near_fp32(device: torch.device, record_property: RecordProperty) -> None:
    exact = train_step(device, stage())
    rounded = train_step(device, stage(precision=Precision.BF16))
    for step in range(3):
        expected = exact.step.run(batch(step), step).read()
        found = rounded.step.run(batch(step), step).read()
        assert all(math.isfinite(value) for value in [*found.loss.values(), found.gradient_norm])
        assert found.loss == pytest.approx(expected.loss, rel=2e-2)
        if step == 0:
            assert found.loss != expected.loss
            cosine = _cosine(rounded.gradients(), exact.gradients())
            record_property("gradientCosine", cosine)
            assert cosine > 0.99
    assert all(parameter.dtype == torch.float32 for parameter in rounded.named.values())


def test_a_trial_halves_micro_batches_until_they_fit(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        pytest.skip("there is no limit to run into")
    setting = train_step(device, stage()).step.break_off()
    assert setting is not None
    memory = torch.cuda.get_device_properties(device).total_memory
    limit = torch.cuda.memory_allocated(device) + 2**30
    monkeypatch.setattr(micro_batch, "MEMORY_SHARE", limit / memory)
    share = 2**14  # of a GiB, 200 MiB of pictures and over 70 times as much of activations
    found = Trial.of(setting).largest(share, share)
    assert found is not None
    assert 1 < found < share
    assert all(parameter.grad is None for parameter in setting.model.parameters())


def test_gradient_checkpointing_changes_nothing(device: torch.device) -> None:
    plain, again = (train_step(device, stage(precision=Precision.BF16)) for _ in range(2))
    again.model.set_gradient_checkpointing(True)
    expected, found = (each.step.run(batch(0), 0).read() for each in (plain, again))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert relative_error(again.gradients(), plain.gradients()) < 1e-2  # a GPU adds up in any order


@pytest.mark.parametrize("precision", list(Precision))
def test_a_student_that_equals_its_frozen_teacher_has_its_embeddings(
    device: torch.device, precision: Precision
) -> None:
    trained = train_step(device, stage(precision=precision), teacher=build_model(config(), seed=1))
    # One of bf16's roundings would make 1e-6 or more.
    assert trained.step.run(batch(0), 0).read().loss["distillation"] < 1e-10


def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_is_told_when_read(
    device: torch.device,
) -> None:
    trained = train_step(device, stage(gradient_clip_norm=1.0))
    trained.step.run(batch(0), 0).read()
    with torch.no_grad():
        trained.model.visual.ln_post.bias[0] = float("inf")
    before = trained.weights()
    for step in range(1, MOST_SKIPPED_STEPS + 1):
        assert trained.step.run(batch(step), step).read().skipped
    with pytest.raises(DivergedError, match="not finite at step 1"):
        trained.step.run(batch(9), MOST_SKIPPED_STEPS + 1).read()
    assert all(torch.equal(weight, before[name]) for name, weight in trained.weights().items())


@pytest.mark.slow
def test_compiled_it_is_the_same_step_and_lengths_of_captions_do_not_compile_anew(
    device: torch.device, record_property: RecordProperty
) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = train_step(device, stage()), train_step(device, stage(compile=True))
    for step, longest in enumerate((24, 32, 40, 48, 56, 77)):
        rows = batch(step, longest=longest)
        expected, found = (each.step.run(rows, step).read() for each in (plain, compiled))
        if step == 0:
            error = relative_error(compiled.gradients(), plain.gradients())
            record_property("gradientError", error)
            assert error < 1e-4
        assert found.loss == pytest.approx(expected.loss, rel=1e-5 if step == 0 else 1e-3)
    record_property("compilations", counters["stats"]["unique_graphs"])
    # Of student and teacher each: an image block, a text block, the last one of each tower; perhaps texts of 77 again.
    assert counters["stats"]["unique_graphs"] <= 12
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_bf16_is_finite_and_near_fp32(device: torch.device) -> None:
    torch._dynamo.reset()
    exact = train_step(device, stage())
    compiled = train_step(device, stage(precision=Precision.BF16, compile=True))
    expected, found = (each.step.run(batch(0), 0).read() for each in (exact, compiled))
    assert found.loss == pytest.approx(expected.loss, rel=2e-2)
    assert _cosine(compiled.gradients(), exact.gradients()) > 0.99
    torch._dynamo.reset()


def test_steps_are_queued_without_waiting_for_the_device(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("a CPU waits for itself")
    trained: Trained = train_step(device, stage(precision=Precision.BF16, gradient_clip_norm=1.0))
    rows = [type(rows)(rows.images.pin_memory(), rows.tokens.pin_memory()) for rows in map(batch, range(4))]
    trained.step.run(rows[0], 0)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")  # whatever reads a number of a tensor raises
    try:
        results = [trained.step.run(rows[step], step) for step in (1, 2, 3)]
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert all(math.isfinite(result.read().loss["total"]) for result in results)


def _cosine(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Between two whole gradients."""
    assert found.keys() == expected.keys()
    one, other = (
        torch.cat([tensors[name].double().flatten() for name in expected]) for tensors in (found, expected)
    )
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))
