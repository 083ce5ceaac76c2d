"""The written-out gradients against autograd over the whole batch, for one rank and for several."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelchain_trainer import losses
from modelchain_trainer.distillation import Projections, build_projections
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.expansion import embedding_map
from modelchain_trainer.losses import Features, LossAndGradients, loss_and_feature_gradients
from tests.trainer.ranks import on_ranks

WEIGHT = 1.7


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(x, dim=-1).to(dtype)


def case(
    n: int, captions: int, student_size: int, teacher_size: int, dtype: torch.dtype = torch.float64
) -> tuple[Features, Features, Tensor, Projections | None]:
    student = Features(rows(0, n, student_size, dtype=dtype), rows(1, captions, n, student_size, dtype=dtype))
    teacher = Features(rows(2, n, teacher_size, dtype=dtype), rows(3, captions, n, teacher_size, dtype=dtype))
    projections = build_projections(student_size, teacher_size)
    if projections is not None:
        projections.to(dtype)
        with torch.no_grad():
            projections.text.add_(0.1 * rows(4, teacher_size, student_size, dtype=dtype))
    return student, teacher, torch.tensor(math.log(1 / 0.07), dtype=dtype), projections


def reference(
    student: Features, teacher: Features | None, log_scale: Tensor, projections: Projections | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """task, distillation and all gradients by autograd, from the definitions and nothing else."""
    image, text, log_scale = (x.clone().requires_grad_() for x in (student.image, student.text, log_scale))
    labels = torch.arange(image.shape[0])
    terms = []
    for column in text:
        logits = log_scale.exp() * image @ column.T
        terms.append(
            functional.cross_entropy(logits, labels) / 2 + functional.cross_entropy(logits.T, labels) / 2
        )
    task = torch.stack(terms).mean()
    distillation = torch.zeros_like(task)
    if teacher is not None:
        image_map, text_map = (None, None) if projections is None else (projections.image, projections.text)
        for x, y, weight in ((image, teacher.image, image_map), (text, teacher.text, text_map)):
            z = x if weight is None else x @ weight.T
            distillation = distillation + WEIGHT * ((z - y) ** 2).sum(-1).mean()
    inputs = [image, text, log_scale, *([] if projections is None else projections.parameters())]
    gradients = torch.autograd.grad(task + distillation, inputs, allow_unused=True)
    return task.detach(), distillation.detach(), [g for g in gradients if g is not None]


def split_over_ranks(
    world_size: int,
    student: Features,
    teacher: Features | None,
    log_scale: Tensor,
    projections: Projections | None,
) -> list[LossAndGradients]:
    b = student.image.shape[0] // world_size

    def part(features: Features, rank: int) -> Features:
        mine = slice(rank * b, (rank + 1) * b)
        return Features(features.image[mine], features.text[:, mine])

    def work(group: Group) -> LossAndGradients:
        return loss_and_feature_gradients(
            part(student, group.rank),
            None if teacher is None else part(teacher, group.rank),
            log_scale,
            projections,
            weight=WEIGHT,
            group=group,
        )

    return on_ranks(world_size, work) if world_size > 1 else [work(Group())]


def check(
    results: list[LossAndGradients], expected: tuple[Tensor, Tensor, list[Tensor]], tolerance: float
) -> None:
    task, distillation, gradients = expected
    found = [
        torch.cat([result.feature_gradients.image for result in results]),
        torch.cat([result.feature_gradients.text for result in results], dim=1),
        sum(result.log_scale_gradient for result in results),
    ]
    if results[0].projection_gradients is not None:
        pairs = [result.projection_gradients for result in results if result.projection_gradients]
        found += [sum(image for image, _ in pairs), sum(text for _, text in pairs)]
    torch.testing.assert_close(sum(result.task for result in results), task, rtol=tolerance, atol=0)
    torch.testing.assert_close(
        sum(result.distillation for result in results), distillation, rtol=tolerance, atol=0
    )
    assert len(found) == len(gradients)
    for mine, theirs in zip(found, gradients, strict=True):
        assert isinstance(mine, Tensor)
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("teacher_size", [16, 24])
def test_loss_and_gradients_are_those_of_the_whole_batch(
    world_size: int, captions: int, teacher_size: int
) -> None:
    inputs = case(12, captions, 16, teacher_size)
    check(split_over_ranks(world_size, *inputs), reference(*inputs), 1e-12)


def test_in_fp32_two_ranks_agree_with_the_whole_batch_in_fp64() -> None:
    small = case(64, 2, 32, 48, torch.float32)
    large = case(64, 2, 32, 48)
    check_inputs = split_over_ranks(2, *small)
    expected = reference(*large)
    check(
        [
            LossAndGradients(
                task=r.task.double(),
                distillation=r.distillation.double(),
                feature_gradients=Features(
                    r.feature_gradients.image.double(), r.feature_gradients.text.double()
                ),
                log_scale_gradient=r.log_scale_gradient.double(),
                projection_gradients=r.projection_gradients
                and (r.projection_gradients[0].double(), r.projection_gradients[1].double()),
            )
            for r in check_inputs
        ],
        expected,
        1e-5,
    )


@pytest.mark.parametrize("world_size", [1, 2])
def test_logits_computed_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch, world_size: int) -> None:
    inputs = case(12, 2, 16, 16)
    monkeypatch.setattr(
        losses, "CHUNK_ELEMENTS", 12 * 4
    )  # 4 rows at once: for 2 ranks the last chunk is shorter
    check(split_over_ranks(world_size, *inputs), reference(*inputs), 1e-12)


def test_without_a_teacher_only_the_task_counts() -> None:
    student, _, log_scale, _ = case(8, 2, 16, 16)
    results = split_over_ranks(2, student, None, log_scale, None)
    assert all(result.distillation == 0 and result.projection_gradients is None for result in results)
    check(results, reference(student, None, log_scale, None), 1e-12)


def test_the_distance_of_equal_embeddings_is_zero_and_of_opposite_ones_four() -> None:
    student, _, log_scale, _ = case(8, 1, 16, 16)
    group = Group()
    equal = loss_and_feature_gradients(student, student, log_scale, None, weight=WEIGHT, group=group)
    opposite = Features(-student.image, -student.text)
    far = loss_and_feature_gradients(student, opposite, log_scale, None, weight=WEIGHT, group=group)
    assert equal.distillation == 0
    assert far.distillation.item() == pytest.approx(
        WEIGHT * (4 + 4)
    )  # |x + x|^2 = 4 for image and text, at any size


def test_projections_of_a_grown_student_start_at_distance_zero() -> None:
    small = Features(rows(0, 8, 16), rows(1, 2, 8, 16))
    map_FE = embedding_map(16, 24)
    grown = Features(small.image @ map_FE, small.text @ map_FE)
    projections = build_projections(24, 16)
    assert projections is not None
    result = loss_and_feature_gradients(
        grown, small, torch.tensor(1.0).double(), projections.double(), weight=WEIGHT, group=Group()
    )
    assert result.distillation.item() == pytest.approx(0, abs=1e-12)  # the projections start in fp32


def test_embeddings_of_equal_size_need_no_projection() -> None:
    assert build_projections(32, 32) is None


def test_features_keep_their_values() -> None:
    inputs = case(8, 2, 16, 16)
    before = inputs[0].image.clone(), inputs[0].text.clone()
    loss_and_feature_gradients(*inputs, weight=WEIGHT, group=Group())
    assert torch.equal(inputs[0].image, before[0])
    assert torch.equal(inputs[0].text, before[1])
